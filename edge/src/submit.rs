//! How fixes of a door without sessions get in, whoever made the door: `POST /api/v1/tracking/locations` comes this way,
//! and so does the door of a program that embeds an edge.

use std::time::Duration;

use backends::control::CredentialError;
use protocol::record::Door;
use protocol::{DeviceKey, Fix};
use tokio::sync::oneshot;

use crate::http::DoorState;
use crate::intake::RejectedFix;
use crate::udp::inbox::{Submission, SubmissionOutcome, Visitor};

/// Why fixes were not taken. In every case they can be sent again later.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum NotTaken {
    #[error("fixes cannot be stored at the moment; keep them and send them again")]
    LogAway,
    #[error("this device has sent more fixes than its share")]
    Limited { wait: Duration },
    #[error("this edge has more to do than it can; send the fixes again")]
    Overloaded,
    #[error("the fixes may not have been stored; keep them and send them again")]
    Uncertain,
}

impl DoorState {
    /// Whose credential this is. Whoever shows a bad one is better not told what is bad about it.
    pub fn check_credential(&self, credential: &str) -> Result<DeviceKey, CredentialError> {
        self.control().check_credential(credential)
    }

    /// Judges fixes and waits until all of them are durable, those rejected too, which are answered by their place.
    ///
    /// **Contract:** acknowledge nothing to a device before this has answered `Ok`. Bound the fixes of one call.
    pub async fn submit(&self, device: DeviceKey, door: Door, fixes: Vec<Fix>) -> Result<Vec<RejectedFix>, NotTaken> {
        if self.0.log_state.is_away() {
            return Err(NotTaken::LogAway);
        }
        self.0.limit.take(device, fixes.len()).map_err(|wait| NotTaken::Limited { wait })?;
        let (reply, outcome) = oneshot::channel();
        // All of one driver go to one thread, so that they stay in order.
        let thread = &self.0.threads[device.driver.0 as usize % self.0.threads.len()];
        let submission = Submission { device, door, fixes, reply };
        thread.visit(Visitor::Submission(submission)).map_err(|_| NotTaken::Overloaded)?;
        let wait = self.0.clock.real(self.0.wait_max).max(WAIT_MIN);
        match tokio::time::timeout(wait, outcome).await {
            Ok(Ok(SubmissionOutcome::Durable { rejected })) => Ok(rejected),
            Ok(Ok(SubmissionOutcome::Overloaded)) => Err(NotTaken::Overloaded),
            Ok(Ok(SubmissionOutcome::Lost) | Err(_)) | Err(_) => Err(NotTaken::Uncertain),
        }
    }
}

/// A scaled clock must not make the disk look slow.
const WAIT_MIN: Duration = Duration::from_secs(2);
