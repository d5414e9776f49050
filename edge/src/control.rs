//! What an edge takes from `control`: which fleet keys open sessions at this moment, and which devices were revoked.
//! With that alone it goes on opening, whatever else is away.

use std::collections::BTreeSet;
use std::sync::Arc;

use backends::control::Control;
use protocol::datagram::Kid;
use protocol::session::{FleetKey, FleetKeys};
use protocol::{DeviceKey, Time};

/// What changed for those who open sessions.
#[derive(Clone, Debug, Default)]
pub struct ControlChange {
    /// All of them, if any came or went.
    pub keys: Option<FleetKeys>,
    /// Those that were not said to be before.
    pub revoked: Vec<DeviceKey>,
}

/// Tells changes from repetitions, so that keys are derived once per change and not per look.
#[derive(Debug, Default)]
pub struct ControlDiff {
    keys: [Option<Arc<FleetKey>>; 4],
    secrets: [Option<[u8; 32]>; 4],
    revoked: BTreeSet<DeviceKey>,
}

impl ControlDiff {
    /// To be asked at every change and at least once a minute: a key dies by time alone.
    pub fn handle_control(&mut self, control: &Control, now: Time) -> Option<ControlChange> {
        let keys = self.changed_keys(control, now);
        let revoked: Vec<DeviceKey> = control.revoked.difference(&self.revoked).copied().collect();
        self.revoked.extend(revoked.iter().copied());
        (keys.is_some() || !revoked.is_empty()).then_some(ControlChange { keys, revoked })
    }

    fn changed_keys(&mut self, control: &Control, now: Time) -> Option<FleetKeys> {
        let mut has_changed = false;
        for (index, (key, secret)) in (0u8..).zip(self.keys.iter_mut().zip(&mut self.secrets)) {
            let Some(kid) = Kid::new(index) else { continue };
            let held = control.opening_key(backends::control::Kid(index), now).map(|key| *key.secret.bytes());
            if held != *secret {
                has_changed = true;
                *key = held.map(|bytes| Arc::new(FleetKey::new(kid, &bytes)));
                *secret = held;
            }
        }
        has_changed.then(|| {
            let mut all = FleetKeys::default();
            self.keys.iter().flatten().for_each(|key| all.set(key.clone()));
            all
        })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use backends::control::Secret;
    use backends::control::rotation::FleetKeySpan;
    use protocol::{DeviceNumber, DriverId, TenantId};

    use super::*;

    const NOW: Time = Time(1_700_000_000_000);

    fn control_with_key(kid: u8, wiped_after: Time) -> Control {
        let span = FleetKeySpan { kid: backends::control::Kid(kid), not_before: NOW, wiped_after };
        let key = backends::control::FleetKey { span, secret: Secret::new([kid; 32]) };
        Control { fleet_keys: [(span.kid, key)].into(), ..Control::default() }
    }

    #[test]
    fn a_change_is_told_once_and_a_key_goes_when_its_time_has_come() {
        let mut diff = ControlDiff::default();
        let control = control_with_key(2, NOW + Duration::from_secs(60));

        let first = diff.handle_control(&control, NOW).and_then(|change| change.keys).expect("a key came");
        assert!(first.of(Kid::new(2).unwrap()).is_some());
        assert!(diff.handle_control(&control, NOW).is_none());

        let last = diff.handle_control(&control, NOW + Duration::from_secs(60)).and_then(|change| change.keys);
        assert!(last.expect("it went").of(Kid::new(2).unwrap()).is_none());
    }

    #[test]
    fn every_revocation_is_told_once() {
        let mut diff = ControlDiff::default();
        let device = DeviceKey { tenant: TenantId(1), driver: DriverId(2), device: DeviceNumber(3) };
        let control = Control { revoked: BTreeSet::from([device]), ..Control::default() };

        assert_eq!(diff.handle_control(&control, NOW).map(|change| change.revoked), Some(vec![device]));
        assert!(diff.handle_control(&control, NOW).is_none());
    }
}
