//! The installation: which stores belong together, and how far each of them had come.
//!
//! Every installation has a random id and an incarnation, and both stand in every store. Each commit of a store is
//! written down in places outside that store before anybody is told of it (`witness`), together with the highest
//! numbers ever given. A start compares what a store holds with what the others know of it (`compare`): less than that
//! is refused. Whoever accepts a loss raises the incarnation, and all numbers go on above the highest one known.
//!
//! **Invariant:** a note about a store never runs ahead of the store: it is written after the commit is durable. So an
//! old or lost note notices less, and never accuses wrongly.

pub mod compare;
mod file;
mod note;
pub mod witness;

use std::fmt;

pub use self::file::{Fingerprint, InstallationFile, InstallationFileError, Raise, fingerprint};
pub use self::note::{NOTE_BYTES, Note};
pub use self::witness::{Given, Witnesses};

use crate::control::secret::random_bytes;

/// What tells one installation from every other.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InstallationId(pub [u8; 16]);

impl InstallationId {
    pub fn random() -> Self {
        InstallationId(random_bytes())
    }
}

impl fmt::Display for InstallationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for InstallationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// An installation at one time of its life: the incarnation rises at every loss that somebody accepted and at every
/// restored copy.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Installation {
    pub id: InstallationId,
    pub incarnation: u32,
}

impl Installation {
    pub fn new() -> Self {
        Installation { id: InstallationId::random(), incarnation: FIRST_INCARNATION }
    }

    pub fn raised(self) -> Self {
        Installation { incarnation: self.incarnation.saturating_add(1), ..self }
    }
}

/// Of a log that was never lost, also in folders of releases that had no incarnations.
pub const FIRST_INCARNATION: u32 = 1;

impl Default for Installation {
    fn default() -> Self {
        Installation::new()
    }
}

/// The stores of an installation.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Store {
    Log,
    Registry,
    Ledger,
    Trail,
    Blobs,
    RegionKey,
}

impl Store {
    pub const ALL: [Store; 6] =
        [Store::Log, Store::Registry, Store::Ledger, Store::Trail, Store::Blobs, Store::RegionKey];

    /// As `wayfix repair --accept-loss` names it.
    pub fn name(self) -> &'static str {
        match self {
            Store::Log => "log",
            Store::Registry => "registry",
            Store::Ledger => "ledger",
            Store::Trail => "trail",
            Store::Blobs => "blobs",
            Store::RegionKey => "region-key",
        }
    }

    /// Whether its commits are counted and written down elsewhere.
    pub fn is_witnessed(self) -> bool {
        match self {
            Store::Log | Store::Registry | Store::Ledger => true,
            Store::Trail | Store::Blobs | Store::RegionKey => false,
        }
    }
}

/// One commit of a store.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Commit {
    /// Rises by one with every commit.
    pub sequence: u64,
    /// Drawn for each commit of a database, so that two stores that took different ways from a common copy are told
    /// apart. The log has none: 0.
    pub mark: u64,
}

/// The highest numbers ever given, over all tenants, drivers and deliveries together: one mark for each kind is enough
/// to go on above it, and costs nothing for each number.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Numbers {
    pub tenant: u64,
    pub driver: u64,
    pub device: u64,
    /// Only those that the ledger itself gave; a tenant's own numbers may lie anywhere.
    pub delivery: u64,
    pub assignment: u64,
    pub journal: u64,
}

impl Numbers {
    pub fn max(self, other: Numbers) -> Numbers {
        Numbers {
            tenant: self.tenant.max(other.tenant),
            driver: self.driver.max(other.driver),
            device: self.device.max(other.device),
            delivery: self.delivery.max(other.delivery),
            assignment: self.assignment.max(other.assignment),
            journal: self.journal.max(other.journal),
        }
    }

    /// Numbers that lie above everything that can have been given after these were written down: whole blocks further
    /// than the notes on disk may lag behind.
    pub fn after_loss(self) -> Numbers {
        self.jumped(BLOCK)
    }

    /// The same for a copy that is older by nobody knows how much.
    pub fn after_restore(self) -> Numbers {
        self.jumped(RESTORE)
    }

    fn jumped(self, by: Numbers) -> Numbers {
        let above = |number: u64, block: u64| (number / block).saturating_add(2).saturating_mul(block);
        Numbers {
            tenant: above(self.tenant, by.tenant),
            driver: above(self.driver, by.driver),
            device: above(self.device, by.device),
            delivery: above(self.delivery, by.delivery),
            assignment: above(self.assignment, by.assignment),
            journal: above(self.journal, by.journal),
        }
    }

    /// Whether a number has entered a block that no synced note knows of.
    pub(crate) fn is_in_later_block_than(self, synced: Numbers) -> bool {
        self.blocks() != synced.blocks()
    }

    fn blocks(self) -> [u64; 6] {
        [
            self.tenant / BLOCK.tenant,
            self.driver / BLOCK.driver,
            self.device / BLOCK.device,
            self.delivery / BLOCK.delivery,
            self.assignment / BLOCK.assignment,
            self.journal / BLOCK.journal,
        ]
    }
}

/// A note is synced once for so many numbers of a kind: what a power cut can take from it is less than a block.
const BLOCK: Numbers = Numbers { tenant: 16, driver: 1024, device: 16, delivery: 4096, assignment: 64, journal: 64 };
/// What a busy installation gives in months: 65,535 devices of one driver are the tightest.
const RESTORE: Numbers = Numbers {
    tenant: 10_000,
    driver: 1_000_000,
    device: 256,
    delivery: 1_000_000_000,
    assignment: 10_000,
    journal: 10_000,
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_after_a_loss_lie_above_all_that_a_lagging_note_can_have_missed() {
        let synced = Numbers { tenant: 15, driver: 1023, device: 3, delivery: 5000, assignment: 2, journal: 63 };
        let given = Numbers { tenant: 15, driver: 1023, device: 15, delivery: 8191, assignment: 63, journal: 63 };
        assert!(!given.is_in_later_block_than(synced), "no further sync was due");

        let floor = synced.after_loss();

        for (floor, given) in floor.blocks().into_iter().zip(given.blocks()) {
            assert!(floor > given);
        }
        assert!(Numbers { device: 16, ..given }.is_in_later_block_than(synced));
    }

    #[test]
    fn a_restored_copy_leaves_room_for_what_its_original_went_on_to_give() {
        let floor =
            Numbers { tenant: 3, driver: 40, device: 2, delivery: 77, assignment: 4, journal: 9 }.after_restore();

        assert!(floor.tenant >= 10_000 && floor.driver >= 1_000_000 && floor.device >= 256);
        assert!(floor.delivery >= 1_000_000_000 && floor.device < 65_535 / 2);
    }
}
