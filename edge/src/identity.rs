//! What an edge keeps over restarts beside its spool: its number, by which marks and records of before and after a
//! restart are known to be of one edge.

use std::io;
use std::path::{Path, PathBuf};

use daemon::write_private;
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

#[cfg(test)]
mod tests {
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
}
