//! The blob store: large immutable bodies (maps, tables, snapshots, proofs) by the hash of their content.
//!
//! **Contract:** a body is durable before `put` answers, and so before any record names it; `get` checks the hash;
//! putting the same body again changes nothing; bodies are at most `BLOB_BYTES_MAX`.

pub mod conformance;
pub mod embedded;

pub use embedded::hash_of;

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

#[async_trait]
pub trait BlobStore: Send + Sync + 'static {
    async fn put(&self, body: Bytes) -> Result<BlobHash, BlobStoreError>;
    async fn get(&self, hash: BlobHash) -> Result<Bytes, BlobStoreError>;
    async fn contains(&self, hash: BlobHash) -> Result<bool, BlobStoreError>;
    /// Nothing names it any more. Removing what is not there is fine.
    async fn remove(&self, hash: BlobHash) -> Result<(), BlobStoreError>;
}

pub const BLOB_BYTES_MAX: u64 = 4 << 30;
