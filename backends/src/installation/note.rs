//! What is written down about one store, elsewhere: fixed bytes with a checksum, small enough to be written in one go.
//!
//! `"WFN1" ‖ id 16 ‖ incarnation u32 ‖ store u8 ‖ sequence u64 ‖ mark u64 ‖ six numbers u64 ‖ SHA-256 of all before, cut
//! to 8`, big-endian.

use aws_lc_rs::digest::{SHA256, digest};

use super::{Commit, Installation, InstallationId, Numbers, Store};

/// One store's newest acknowledged commit, and the highest numbers given by then.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Note {
    pub installation: Installation,
    pub store: Store,
    pub commit: Commit,
    pub numbers: Numbers,
}

impl Note {
    pub fn encode(&self) -> [u8; NOTE_BYTES] {
        let Numbers { tenant, driver, device, delivery, assignment, journal } = self.numbers;
        let words = [self.commit.sequence, self.commit.mark, tenant, driver, device, delivery, assignment, journal];
        let mut bytes = Vec::with_capacity(NOTE_BYTES);
        bytes.extend(MAGIC);
        bytes.extend(self.installation.id.0);
        bytes.extend(self.installation.incarnation.to_be_bytes());
        bytes.push(number_of(self.store));
        words.iter().for_each(|word| bytes.extend(word.to_be_bytes()));
        bytes.extend(check_of(&bytes));
        bytes.try_into().expect("the fields are as long as a note")
    }

    /// None for what is no whole note.
    pub fn decode(bytes: &[u8]) -> Option<Note> {
        let (body, check) = bytes.split_last_chunk::<8>()?;
        if bytes.len() != NOTE_BYTES || check_of(body) != *check {
            return None;
        }
        let (magic, rest) = body.split_first_chunk::<4>()?;
        let (id, rest) = rest.split_first_chunk::<16>()?;
        let (incarnation, rest) = rest.split_first_chunk::<4>()?;
        let ([store], rest) = rest.split_first_chunk::<1>()?;
        if magic != MAGIC {
            return None;
        }
        let mut words = rest.chunks_exact(8).map(|word| word.try_into().map_or(0, u64::from_be_bytes));
        let mut word = || words.next().unwrap_or_default();
        Some(Note {
            installation: Installation { id: InstallationId(*id), incarnation: u32::from_be_bytes(*incarnation) },
            store: Store::ALL.into_iter().find(|known| number_of(*known) == *store)?,
            commit: Commit { sequence: word(), mark: word() },
            numbers: Numbers {
                tenant: word(),
                driver: word(),
                device: word(),
                delivery: word(),
                assignment: word(),
                journal: word(),
            },
        })
    }

    /// Several, one after the other, as a database keeps those about the other stores.
    pub fn decode_all(bytes: &[u8]) -> Vec<Note> {
        bytes.chunks(NOTE_BYTES).filter_map(Note::decode).collect()
    }
}

fn number_of(store: Store) -> u8 {
    match store {
        Store::Log => 1,
        Store::Registry => 2,
        Store::Ledger => 3,
        Store::Trail => 4,
        Store::Blobs => 5,
        Store::RegionKey => 6,
    }
}

fn check_of(bytes: &[u8]) -> [u8; 8] {
    let mut check = [0; 8];
    check.copy_from_slice(&digest(&SHA256, bytes).as_ref()[..8]);
    check
}

const MAGIC: &[u8; 4] = b"WFN1";
pub const NOTE_BYTES: usize = 4 + 16 + 4 + 1 + 8 * 8 + 8;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_comes_back_whole_or_not_at_all() {
        let note = Note {
            installation: Installation { id: InstallationId([7; 16]), incarnation: 3 },
            store: Store::Ledger,
            commit: Commit { sequence: 77, mark: u64::MAX },
            numbers: Numbers { tenant: 1, driver: 2, device: 3, delivery: 4, assignment: 5, journal: 6 },
        };

        let bytes = note.encode();

        assert_eq!(Note::decode(&bytes), Some(note));
        for at in 0..bytes.len() {
            let mut changed = bytes;
            changed[at] ^= 0x10;
            assert_eq!(Note::decode(&changed), None, "{at}");
            assert_eq!(Note::decode(&bytes[..at]), None, "{at}");
        }
        assert_eq!(Note::decode(&[0; NOTE_BYTES]), None);
        assert_eq!(Note::decode_all(&[bytes, bytes].concat()), [note, note]);
    }
}
