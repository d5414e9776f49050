//! What an edge keeps over restarts beside its spool: its number, by which marks and records of before and after a
//! restart are known to be of one edge, and files that nobody else may read.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use protocol::EdgeId;
use rand::Rng;

#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    #[error("{path} cannot be read or written")]
    File { path: PathBuf, source: io::Error },
    #[error("{path} does not hold an edge's number")]
    NotANumber { path: PathBuf },
}

/// The number that is configured, else the one kept in `folder`, else a new one.
pub fn edge_id(folder: &Path, configured: Option<u32>) -> Result<EdgeId, IdentityError> {
    if let Some(id) = configured {
        return Ok(EdgeId(id));
    }
    let path = folder.join("edge-id");
    let failed = |source| IdentityError::File { path: path.clone(), source };
    match std::fs::read_to_string(&path) {
        Ok(text) => {
            let id = text.trim().parse().map_err(|_| IdentityError::NotANumber { path: path.clone() })?;
            Ok(EdgeId(id))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let id = rand::rng().random_range(1..=u32::MAX);
            write_private(&path, format!("{id}\n").as_bytes()).map_err(failed)?;
            Ok(EdgeId(id))
        }
        Err(error) => Err(failed(error)),
    }
}

/// Writes a file that only its owner may read, whole or not at all.
pub fn write_private(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder)?;
    let unfinished = path.with_extension("unfinished");
    // One that a crash left behind may have other rights.
    match std::fs::remove_file(&unfinished) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&unfinished)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(&unfinished, path)?;
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn an_edge_keeps_its_number() {
        let folder = tempfile::tempdir().unwrap();

        let first = edge_id(folder.path(), None).unwrap();

        assert_ne!(first, EdgeId(0));
        assert_eq!(edge_id(folder.path(), None).unwrap(), first);
        assert_eq!(edge_id(folder.path(), Some(9)).unwrap(), EdgeId(9));
    }

    #[test]
    fn a_damaged_number_is_said_and_not_replaced() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("edge-id"), "seven").unwrap();

        let error = edge_id(folder.path(), None).unwrap_err().to_string();

        assert!(error.contains("edge-id"), "{error}");
        assert_eq!(std::fs::read_to_string(folder.path().join("edge-id")).unwrap(), "seven");
    }

    #[test]
    fn a_private_file_is_its_owners_alone_whatever_lay_there() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key.pem");
        std::fs::write(folder.path().join("key.unfinished"), "left by a crash").unwrap();

        write_private(&path, b"secret").unwrap();

        assert_eq!(std::fs::read(&path).unwrap(), b"secret");
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }
}
