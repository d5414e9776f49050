//! The blob store: large immutable bodies (maps, tables, snapshots, proofs) by the hash of their content.
//!
//! **Contract:** a body is durable before `put` answers, and so before any record names it; `get` checks the hash;
//! putting the same body again changes nothing but its age; bodies are at most `BLOB_BYTES_MAX`.
//!
//! A body lies here before anything names it. So whoever removes what nothing names must leave alone what was put, or put
//! again, not long ago: `remove_old` looks at the age once more and removes in one step that no `put` can fall into.

pub mod conformance;
pub mod embedded;

pub use embedded::hash_of;

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use protocol::record::BlobHash;

#[derive(Debug, thiserror::Error)]
pub enum BlobStoreError {
    #[error("body {hash} is not in the store")]
    NotFound { hash: BlobHash },
    #[error("a body of {bytes} bytes is larger than {BLOB_BYTES_MAX}")]
    TooLarge { bytes: u64 },
    #[error("body {hash} is damaged")]
    Damaged { hash: BlobHash },
    #[error("the blob store cannot be reached: {reason}")]
    Unavailable { reason: String },
}

impl BlobStoreError {
    pub fn is_transient(&self) -> bool {
        matches!(self, BlobStoreError::Unavailable { .. })
    }
}

/// A body as a list has it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ListedBlob {
    pub hash: BlobHash,
    pub bytes: u64,
    /// Since it was put, or put again; by the store's clock.
    pub age: Duration,
}

#[async_trait]
pub trait BlobStore: Send + Sync + 'static {
    async fn put(&self, body: Bytes) -> Result<BlobHash, BlobStoreError>;
    async fn get(&self, hash: BlobHash) -> Result<Bytes, BlobStoreError>;
    async fn contains(&self, hash: BlobHash) -> Result<bool, BlobStoreError>;
    /// Nothing names it any more. Removing what is not there is fine.
    async fn remove(&self, hash: BlobHash) -> Result<(), BlobStoreError>;
}

pub const BLOB_BYTES_MAX: u64 = 4 << 30;

/// What a sweep needs beyond: a store that can be looked through.
#[async_trait]
pub trait SweptBlobStore: BlobStore {
    /// Bodies by hash, those above `after`, at most `limit`: fewer only at the end. What is put or removed meanwhile may be
    /// on it or not.
    async fn list(&self, after: Option<BlobHash>, limit: usize) -> Result<Vec<ListedBlob>, BlobStoreError>;

    /// The first bytes of a body, unchecked.
    async fn begin_of(&self, hash: BlobHash, bytes: usize) -> Result<Bytes, BlobStoreError>;

    /// Removes the body if it was put longer ago; says whether it did.
    async fn remove_old(&self, hash: BlobHash, longer_ago: Duration) -> Result<bool, BlobStoreError>;
}
