//! What the snapshots topic says: where a partition's state at an offset lies.

use protocol::envelope::Enveloped;
use protocol::record::BlobHash;
use protocol::update::Generation;
use protocol::{Offset, PartitionId, Time};
use wincode::{SchemaRead, SchemaWrite};

/// Announced only once all that the records below `next` brought forth is durable, and the body too.
#[derive(Clone, Copy, PartialEq, Eq, Debug, SchemaWrite, SchemaRead)]
pub struct SnapshotNotice {
    pub partition: PartitionId,
    /// The records entry to fold next.
    pub next: Offset,
    /// Of the owner that took it.
    pub generation: Generation,
    pub fold_version: u32,
    pub format: u16,
    pub hash: BlobHash,
    pub size: u64,
    pub at: Time,
}

impl Enveloped for SnapshotNotice {
    const KIND: u8 = b'S';
    const VERSION: u8 = 1;
}
