//! What flows in the `control` topic: wrapped keys, revoked devices, tenants' policies. An edge that has read it can
//! open sessions and check credentials with nothing else at hand: no registry, no database.

pub mod credential;
pub mod secret;

pub use credential::{CredentialError, TokenKeyId, TokenKeys};
pub use secret::Secret;
