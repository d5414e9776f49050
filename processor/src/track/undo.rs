//! Undoing a step of the fold that failed: what is copied of a tracker before each step, and how it is put back. It is
//! done before every record, so as little is copied as the step can change.

use protocol::DeviceNumber;

use super::delivery::Numbering;
use super::device::IdentitiesBefore;
use super::tracker::Tracker;

/// What a step may change of a tracker.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Changes {
    All,
    /// All that a fix of this device may change.
    ByFix(DeviceNumber),
    /// What is pending, which is dropped if the step fails, and the numbers of updates.
    Numbering,
}

/// So much of a tracker as it takes to undo a step.
pub(super) enum Before {
    Whole(Box<Tracker>),
    Fix(BeforeFix),
    Numberings(Vec<Numbering>),
}

/// The identities of fixes are a third of a tracker, and a fix adds one of them: the copy is without them.
pub(super) struct BeforeFix {
    tracker: Box<Tracker>,
    device: DeviceNumber,
    identities: IdentitiesBefore,
}

impl Before {
    pub(super) fn of(tracker: &mut Tracker, changes: Changes) -> Before {
        match changes {
            Changes::All => Before::Whole(Box::new(tracker.clone())),
            Changes::ByFix(device) => match BeforeFix::of(tracker, device) {
                Some(before) => Before::Fix(before),
                None => Before::Whole(Box::new(tracker.clone())),
            },
            Changes::Numbering => Before::Numberings(tracker.numberings()),
        }
    }

    pub(super) fn restore(self, tracker: &mut Tracker) {
        match self {
            Before::Whole(before) => *tracker = *before,
            Before::Fix(before) => before.restore(tracker),
            Before::Numberings(before) => tracker.restore_numberings(before),
        }
    }
}

impl BeforeFix {
    /// None if the device is not known yet: another may have to be forgotten for it.
    fn of(tracker: &mut Tracker, number: DeviceNumber) -> Option<BeforeFix> {
        let device = tracker.devices_mut().iter().find(|device| device.number == number)?;
        let identities = device.identities_before();
        let taken: Vec<_> = tracker.devices_mut().iter_mut().map(|device| device.take_identities()).collect();
        let copy = Box::new(tracker.clone());
        tracker.devices_mut().iter_mut().zip(taken).for_each(|(device, taken)| device.put_identities(taken));
        Some(BeforeFix { tracker: copy, device: number, identities })
    }

    fn restore(self, tracker: &mut Tracker) {
        let BeforeFix { tracker: before, device, identities } = self;
        let mut failed = std::mem::replace(tracker, *before);
        for kept in tracker.devices_mut() {
            if let Some(failed) = failed.devices_mut().iter_mut().find(|failed| failed.number == kept.number) {
                kept.put_identities(failed.take_identities());
            }
            if kept.number == device {
                kept.undo_identity(identities);
            }
        }
    }
}
