//! Files that only their owner may read, whole or not at all.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Writes a file that only its owner may read: whole under another name first, synced, then put in its place, and the
/// folder synced too. After a crash it is as it was before, or as it is now. Makes the folder where it is missing.
pub fn write_private(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder)?;
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(".unfinished");
    let unfinished = folder.join(name);
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
    fn a_private_file_is_its_owners_alone_whatever_lay_there() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key.pem");
        std::fs::write(&path, "an older one").unwrap();
        std::fs::write(folder.path().join("key.pem.unfinished"), "left by a crash").unwrap();

        write_private(&path, b"secret").unwrap();

        assert_eq!(std::fs::read(&path).unwrap(), b"secret");
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 1, "nothing else is left");
    }

    #[test]
    fn files_whose_names_differ_in_their_end_do_not_share_a_half_written_one() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().join("made/too");

        for name in ["key.pem", "key.txt", "key"] {
            write_private(&folder.join(name), name.as_bytes()).unwrap();
        }

        for name in ["key.pem", "key.txt", "key"] {
            assert_eq!(std::fs::read(folder.join(name)).unwrap(), name.as_bytes());
        }
    }
}
