//! What a tracker keeps of one device: which fixes it has seen, and how far the device's clock is off. A fix counts
//! once, however often and by whatever door it comes.

use std::collections::VecDeque;

use protocol::{DeviceNumber, FixNumber, FixRecord, MeasuredTime, Position, Time};
use wincode::{SchemaRead, SchemaWrite};

use super::clock_set::ClockSet;
use super::dormant::{Reader, Writer};
use super::fields::{One, Plain, Required, fields};
use super::judge::Neighbours;
use super::phone_clock::PhoneClock;

#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Device {
    pub number: DeviceNumber,
    pub clock: PhoneClock,
    pub neighbours: Neighbours,
    /// When a record of it was last received.
    pub heard: Time,
    numbers: Numbers,
    /// The newest identities, the oldest first.
    identities: VecDeque<Identity>,
    measured_max: Option<MeasuredTime>,
}

fields! {
    Device {
        1 number: Required<Plain>,
        2 clock: One = PhoneClock::default(),
        3 neighbours: One = Neighbours::default(),
        4 heard: Plain,
        5 numbers: Plain,
        6 identities: Plain,
        7 measured_max: Plain,
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, SchemaWrite, SchemaRead)]
pub(super) struct Identity {
    measured: MeasuredTime,
    position: Position,
}

/// How the identities lie before a fix is handled: enough to take back what it adds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct IdentitiesBefore {
    len: usize,
    oldest: Option<Identity>,
    newest: Option<Identity>,
}

/// Whether a fix was seen before.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Novelty {
    New,
    /// This very fix: it has had its effects and its breadcrumb.
    Seen,
    /// Its number is settled, so it may have been seen: to be recorded, without effects.
    Settled,
}

impl Device {
    pub(crate) fn new(number: DeviceNumber) -> Self {
        Device {
            number,
            clock: PhoneClock::default(),
            neighbours: Neighbours::default(),
            heard: Time::default(),
            numbers: Numbers::default(),
            identities: VecDeque::new(),
            measured_max: None,
        }
    }

    /// Says whether a fix is new, and remembers it.
    pub(crate) fn handle_fix(&mut self, record: &FixRecord) -> Novelty {
        let identity = Identity { measured: record.fix.measured, position: record.fix.position };
        let may_be_seen = self.measured_max.is_some_and(|max| identity.measured <= max);
        let is_seen = may_be_seen && self.identities.iter().rev().any(|seen| *seen == identity);
        let is_settled = record.number.is_some_and(|number| !self.numbers.insert(number));
        self.settle_below(record.lowest_held.min(record.number.unwrap_or_default()));
        if is_seen {
            return Novelty::Seen;
        }
        if self.identities.len() == IDENTITIES_MAX {
            self.identities.pop_front();
        }
        self.identities.push_back(identity);
        self.measured_max = self.measured_max.max(Some(identity.measured));
        if is_settled { Novelty::Settled } else { Novelty::New }
    }

    /// The identities are most of a device's state, and a fix adds one of them: whoever wants to undo a fix copies the
    /// device without them.
    pub(super) fn take_identities(&mut self) -> VecDeque<Identity> {
        std::mem::take(&mut self.identities)
    }

    pub(super) fn put_identities(&mut self, identities: VecDeque<Identity>) {
        self.identities = identities;
    }

    pub(super) fn identities_before(&self) -> IdentitiesBefore {
        let identities = &self.identities;
        let (oldest, newest) = (identities.front().copied(), identities.back().copied());
        IdentitiesBefore { len: identities.len(), oldest, newest }
    }

    /// Takes back the one that was added since, if there is one.
    pub(super) fn undo_identity(&mut self, before: IdentitiesBefore) {
        let IdentitiesBefore { len, oldest, newest } = before;
        if self.identities.len() < len || self.identities.len() == len && self.identities.back().copied() == newest {
            return;
        }
        self.identities.pop_back();
        if self.identities.len() < len
            && let Some(oldest) = oldest
        {
            self.identities.push_front(oldest);
        }
    }

    /// Our clock was set.
    pub(super) fn handle_clock_set(&mut self, set: ClockSet) {
        self.clock.handle_clock_set(set);
        self.neighbours.handle_clock_set(set);
        set.stamp(&mut self.heard);
    }

    pub(super) fn write_dormant(&self, to: &mut Writer) -> Option<()> {
        let Device { number, clock, neighbours, heard, numbers, identities, measured_max } = self;
        to.write(number)?;
        clock.write_dormant(to)?;
        neighbours.write_dormant(to)?;
        to.write(heard)?;
        to.write(numbers)?;
        to.write(identities)?;
        to.write(measured_max)
    }

    pub(super) fn read_dormant(from: &mut Reader<'_>) -> Option<Device> {
        Some(Device {
            number: from.read()?,
            clock: PhoneClock::read_dormant(from)?,
            neighbours: Neighbours::read_dormant(from)?,
            heard: from.read()?,
            numbers: from.read()?,
            identities: from.read()?,
            measured_max: from.read()?,
        })
    }

    pub(crate) fn is_trimmed(&self) -> bool {
        self.identities.is_empty() && self.neighbours.is_trimmed()
    }

    /// Keeps what little is likely to be needed of a device that has not been heard of for long. A fix of an unnumbered
    /// door that comes again after that counts as late: it is recorded once more, which history notices, and moves
    /// nothing.
    pub(crate) fn trim(&mut self) {
        self.identities = VecDeque::new();
        self.neighbours.trim();
    }

    /// The device holds nothing below this number any more. Believed only for numbers below one that was seen, so that
    /// a wrong word can settle nothing that is still to come.
    pub(crate) fn settle_below(&mut self, lowest_held: FixNumber) {
        self.numbers.settle_below(lowest_held);
    }
}

/// Which numbers were seen, as at most `INTERVALS_MAX` intervals.
#[derive(Clone, PartialEq, Debug, Default, SchemaWrite, SchemaRead)]
struct Numbers {
    /// (first, last), rising, never touching.
    intervals: Vec<(FixNumber, FixNumber)>,
}

impl Numbers {
    /// False if it was there.
    fn insert(&mut self, number: FixNumber) -> bool {
        let at = self.intervals.partition_point(|(_, last)| *last < number);
        if self.intervals.get(at).is_some_and(|(first, _)| *first <= number) {
            return false;
        }
        let joins_before = at > 0 && self.intervals[at - 1].1.0.checked_add(1) == Some(number.0);
        let joins_after = self.intervals.get(at).is_some_and(|(first, _)| number.0.checked_add(1) == Some(first.0));
        match (joins_before, joins_after) {
            (true, true) => {
                self.intervals[at - 1].1 = self.intervals[at].1;
                self.intervals.remove(at);
            }
            (true, false) => self.intervals[at - 1].1 = number,
            (false, true) => self.intervals[at].0 = number,
            (false, false) => self.intervals.insert(at, (number, number)),
        }
        if self.intervals.len() > INTERVALS_MAX {
            // The lowest hole is the oldest: it is closed.
            self.intervals[1].0 = self.intervals[0].0;
            self.intervals.remove(0);
        }
        true
    }

    fn settle_below(&mut self, lowest_held: FixNumber) {
        let at = self.intervals.partition_point(|(first, _)| *first < lowest_held);
        if at == 0 {
            return;
        }
        let mut last = self.intervals[at - 1].1;
        let mut joined = at - 1;
        if let Some((first, end)) = self.intervals.get(at).copied() {
            last = last.max(FixNumber(lowest_held.0 - 1));
            if last.0 + 1 == first.0 {
                (last, joined) = (end, at);
            }
        }
        self.intervals.drain(..joined);
        self.intervals[0] = (FixNumber(0), last);
    }
}

/// Identities kept of every device; doors without numbers have only these.
const IDENTITIES_MAX: usize = 256;
const INTERVALS_MAX: usize = 64;

#[cfg(test)]
mod tests {
    use protocol::record::Door;
    use protocol::{DeviceKey, DriverId, EdgeId, Fix, TenantId, Verdict};

    use super::*;

    fn record(number: Option<u64>, lowest_held: u64, measured: i64) -> FixRecord {
        FixRecord {
            device: DeviceKey { tenant: TenantId(1), driver: DriverId(1), device: DeviceNumber(1) },
            session_start: 0,
            number: number.map(FixNumber),
            lowest_held: FixNumber(lowest_held),
            edge: EdgeId(1),
            door: Door::Udp,
            received: Time(0),
            fix: Fix::at(MeasuredTime(measured), Position { lat_e7: 1, lon_e7: 1 }),
            verdict: Verdict::Accepted,
        }
    }

    #[test]
    fn a_fix_counts_once_by_number_and_by_identity() {
        let mut device = Device::new(DeviceNumber(1));

        assert_eq!(device.handle_fix(&record(Some(5), 0, 50)), Novelty::New);
        assert_eq!(device.handle_fix(&record(Some(5), 0, 50)), Novelty::Seen);
        assert_eq!(device.handle_fix(&record(None, 0, 50)), Novelty::Seen);
        assert_eq!(device.handle_fix(&record(Some(6), 0, 50)), Novelty::Seen);
        assert_eq!(device.handle_fix(&record(Some(6), 0, 51)), Novelty::Settled);
        assert_eq!(device.handle_fix(&record(None, 0, 52)), Novelty::New);
    }

    #[test]
    fn a_fix_that_falls_into_a_settled_hole_is_recorded_without_effects() {
        let mut device = Device::new(DeviceNumber(1));
        device.handle_fix(&record(Some(1), 0, 1));
        device.handle_fix(&record(Some(9), 9, 9));

        assert_eq!(device.handle_fix(&record(Some(4), 0, 4)), Novelty::Settled);
        assert_eq!(device.handle_fix(&record(Some(10), 0, 10)), Novelty::New);
    }

    #[test]
    fn a_wrong_lowest_number_settles_nothing_that_is_still_to_come() {
        let mut device = Device::new(DeviceNumber(1));
        device.handle_fix(&record(Some(3), u64::MAX, 3));
        device.settle_below(FixNumber(u64::MAX));

        assert_eq!(device.handle_fix(&record(Some(4), 0, 4)), Novelty::New);
        assert_eq!(device.handle_fix(&record(Some(2), 0, 2)), Novelty::Settled);
    }

    #[test]
    fn holes_beyond_what_is_kept_are_closed_from_the_oldest_on() {
        let mut device = Device::new(DeviceNumber(1));
        for i in 0..200 {
            device.handle_fix(&record(Some(10 + 2 * i), 0, i as i64));
        }

        assert_eq!(device.numbers.intervals.len(), INTERVALS_MAX);
        assert_eq!(device.handle_fix(&record(Some(11), 0, -1)), Novelty::Settled);
        assert_eq!(device.handle_fix(&record(Some(10 + 2 * 199 - 1), 0, -2)), Novelty::New);
    }

    #[test]
    fn numbers_agree_with_a_plain_set_while_holes_are_few() {
        let mut numbers = Numbers::default();
        let mut plain = std::collections::BTreeSet::new();
        let mut state = 7_u64;
        for _ in 0..2_000 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let number = (state >> 33) % 60;
            assert_eq!(numbers.insert(FixNumber(number)), plain.insert(number), "{number}");
        }
    }
}
