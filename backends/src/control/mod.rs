//! What flows in the `control` topic: wrapped keys, revoked devices, tenants' policies. An edge that has read it can
//! open sessions and check credentials with nothing else at hand: no registry, no database.

pub mod credential;
mod entry;
mod reader;
pub mod reconcile;
mod region_key;
pub mod rotation;
pub mod secret;
#[cfg(test)]
mod tests;
mod writer;

pub use credential::{CredentialError, TokenKeyId, TokenKeys};
pub use entry::{ControlEntry, ControlKey, Kid};
pub use reader::{Control, ControlReader, DEGRADED_AFTER, FleetKey};
pub use region_key::{Purpose, RegionKey, RegionKeyError, UnwrapError};
pub use rotation::Moment;
pub use secret::{SECRET_BYTES, Secret};
pub use writer::ControlWriter;
