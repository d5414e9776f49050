//! Which file a path named when it was opened. A file that was removed or replaced under a running process can still be
//! written to, and nobody finds what was written.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// A path with the device and the inode that it named.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FileIdentity {
    path: PathBuf,
    device: u64,
    inode: u64,
}

impl FileIdentity {
    /// None where there is nothing.
    pub fn of(path: &Path) -> Option<Self> {
        let meta = std::fs::metadata(path).ok()?;
        Some(FileIdentity { path: path.to_path_buf(), device: meta.dev(), inode: meta.ino() })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// One look at the folder: about a microsecond.
    pub fn is_in_place(&self) -> bool {
        match std::fs::metadata(&self.path) {
            Ok(meta) => (meta.dev(), meta.ino()) == (self.device, self.inode),
            Err(error) => error.kind() != std::io::ErrorKind::NotFound,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_removed_or_replaced_is_not_in_place() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        assert_eq!(FileIdentity::of(&path), None);
        std::fs::write(&path, "one").unwrap();
        let identity = FileIdentity::of(&path).unwrap();

        assert!(identity.is_in_place());

        std::fs::write(folder.path().join("b"), "two").unwrap();
        std::fs::rename(folder.path().join("b"), &path).unwrap();
        assert!(!identity.is_in_place(), "another file of the same name");
        std::fs::remove_file(&path).unwrap();
        assert!(!identity.is_in_place());
    }
}
