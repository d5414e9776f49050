//! The installation's own file: its id, its incarnation and what its keys hash to. The same text lies in several
//! places, so that no loss of a single file makes the stores strangers to each other.

use std::path::Path;

use aws_lc_rs::digest::{SHA256, digest};

use super::{Installation, InstallationId};

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct InstallationFile {
    pub installation: Installation,
    /// Every store was made: from then on one that is not there is missing.
    pub is_whole: bool,
    /// Of the region key, once there is one.
    pub region_key: Option<Fingerprint>,
    /// Who has begun to bring the stores to this incarnation, and did not come to an end yet.
    pub raised_by: Option<Raise>,
}

/// Which command raises the incarnation. Only the same one can go on where it ended: they do not do the same.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Raise {
    Restore,
    Repair,
}

impl Raise {
    pub fn name(self) -> &'static str {
        match self {
            Raise::Restore => "restore",
            Raise::Repair => "repair",
        }
    }
}

/// The beginning of a hash: enough to tell keys apart, too little to learn one.
pub type Fingerprint = [u8; 8];

#[derive(Debug, thiserror::Error)]
pub enum InstallationFileError {
    #[error("{path} cannot be read or written: {source}")]
    File { path: String, source: std::io::Error },
    #[error("{path} is damaged")]
    Damaged { path: String },
}

impl InstallationFile {
    pub fn encode(&self) -> String {
        let mut text = format!("{TITLE}\nid {}\nincarnation {}\n", self.installation.id, self.installation.incarnation);
        text += if self.is_whole { "state whole\n" } else { "state begun\n" };
        if let Some(region_key) = self.region_key {
            text += &format!("region_key {}\n", hex(&region_key));
        }
        if let Some(raise) = self.raised_by {
            text += &format!("raised_by {}\n", raise.name());
        }
        let check = hex(&fingerprint(text.as_bytes()));
        text + &format!("check {check}\n")
    }

    pub fn decode(text: &str) -> Option<Self> {
        let (body, check) = text.trim_end().rsplit_once("\ncheck ")?;
        let body = format!("{body}\n");
        if hex(&fingerprint(body.as_bytes())) != check {
            return None;
        }
        let mut lines = body.lines();
        if lines.next() != Some(TITLE) {
            return None;
        }
        let (mut id, mut incarnation, mut region_key, mut is_whole) = (None, None, None, false);
        let mut raised_by = None;
        for (name, value) in lines.filter_map(|line| line.split_once(' ')) {
            match name {
                "id" => id = unhex::<16>(value).map(InstallationId),
                "incarnation" => incarnation = value.parse().ok(),
                "state" => is_whole = value == "whole",
                "region_key" => region_key = unhex::<8>(value),
                "raised_by" => {
                    raised_by = [Raise::Restore, Raise::Repair].into_iter().find(|raise| raise.name() == value)
                }
                // A later build's: what this one does not know it leaves out.
                _ => {}
            }
        }
        let installation = Installation { id: id?, incarnation: incarnation? };
        Some(InstallationFile { installation, is_whole, region_key, raised_by })
    }

    /// None where there is none.
    pub fn read(path: &Path) -> Result<Option<Self>, InstallationFileError> {
        let text = match std::fs::read(path) {
            Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(InstallationFileError::File { path: path.display().to_string(), source }),
        };
        let damaged = || InstallationFileError::Damaged { path: path.display().to_string() };
        Self::decode(&text).map(Some).ok_or_else(damaged)
    }

    /// Whole under another name first: a crash leaves the old text or the new one.
    pub fn write(&self, path: &Path) -> Result<(), InstallationFileError> {
        let failed = |source| InstallationFileError::File { path: path.display().to_string(), source };
        daemon::write_private(path, self.encode().as_bytes()).map_err(failed)
    }
}

pub fn fingerprint(bytes: &[u8]) -> Fingerprint {
    let mut fingerprint = [0; 8];
    fingerprint.copy_from_slice(&digest(&SHA256, bytes).as_ref()[..8]);
    fingerprint
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let digits = text.as_bytes();
    if digits.len() != N * 2 {
        return None;
    }
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        let digit = |at: usize| char::from(pair[at]).to_digit(16);
        *byte = (digit(0)? << 4 | digit(1)?) as u8;
    }
    Some(bytes)
}

const TITLE: &str = "wayfix installation 1";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_comes_back_and_any_change_to_it_is_seen() {
        let file = InstallationFile {
            installation: Installation { id: InstallationId([0xab; 16]), incarnation: 4 },
            is_whole: true,
            region_key: Some([1, 2, 3, 4, 5, 6, 7, 8]),
            raised_by: None,
        };

        let text = file.encode();

        assert_eq!(InstallationFile::decode(&text), Some(file.clone()));
        let begun = InstallationFile { is_whole: false, raised_by: Some(Raise::Repair), region_key: None, ..file };
        assert_eq!(InstallationFile::decode(&begun.encode()), Some(begun));
        for at in 0..text.trim_end().len() {
            let mut bytes = text.clone().into_bytes();
            bytes[at] ^= 1;
            assert_eq!(InstallationFile::decode(&String::from_utf8_lossy(&bytes)), None, "{at}");
            assert_eq!(InstallationFile::decode(&text[..at]), None, "{at}");
        }
    }
}
