//! Both ends of a session: what lets a device seal datagrams for up to 24 hours, without a round trip first and
//! without a table that edges share.
//!
//! The registry seals who a device is into a session id under the region's fleet key (`fleet_key`, `record`, `grant`).
//! Any edge that holds the fleet key opens it and so knows device and keys (`edge`, `warm`, `window`). The phone only
//! ever sees opaque ids and its own keys (`phone`).

pub mod edge;
pub mod fleet_key;
pub mod grant;
pub mod phone;
pub mod record;
pub mod sealer;
pub mod warm;
pub mod window;

pub use edge::{AnswerTo, EdgeConfig, EdgeSessions, Opened, OpenedDatagram, RefuseReason, SessionRef};
pub use fleet_key::{FLEET_KEY_LEN, FleetKey, FleetKeys, SessionKeys};
pub use grant::{EdgeAddress, GrantFault, SessionGrant, SessionTerms, issue};
pub use phone::{AnswerFault, PhoneSession, SealFault, Sealed};
pub use record::{Lifetime, SessionRecord};
pub use sealer::{AnswerSealer, SealedAnswer};
