//! What every Wayfix process needs and that knows nothing of deliveries: clock, settings, logs, metrics, drain, retry.

pub mod admin;
pub mod clock;
pub mod descriptors;
pub mod drain;
pub mod huge_pages;
pub mod logging;
pub mod meter;
pub mod private_file;
pub mod problem;
pub mod process;
pub mod request_id;
pub mod retry;
pub mod serve;
pub mod signals;

pub use clock::{Clock, ClockWatch, Reading, Scale, StepSeen};
pub use drain::Drain;
pub use meter::Meter;
pub use private_file::write_private;
pub use problem::{Problem, ProblemKind};
pub use process::ProcessContext;
pub use request_id::RequestId;
pub use retry::{Backoff, retry};
pub use signals::Signals;
