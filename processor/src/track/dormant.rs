//! A tracker that sleeps, packed into some two hundred bytes. The bytes never leave this process, so their form may change
//! with any build: each part in its encoding, and of every eight bytes only those that are not zero.

use protocol::record::Vehicle;
use protocol::update::SilentCause;
use protocol::{DeliveryPolicy, EdgeId, Time, TrackerKey};
use wincode::SchemaWrite;
use wincode::config::DefaultConfig;
use wincode::{SchemaReadOwned, deserialize_from, serialize_into};

use super::clock::FoldClock;
use super::clock_set::ClockSet;
use super::listening::Listening;
use super::tracker::{LIVE_MS, Tracker};

#[derive(Clone)]
pub(super) struct Dormant {
    heard: Time,
    edge: EdgeId,
    silent: Option<SilentCause>,
    vehicle: Vehicle,
    /// First by how much the clock was set since it was packed, in eight bytes, then the tracker.
    packed: Box<[u8]>,
}

impl Dormant {
    /// None if the tracker does not sleep, or not yet.
    pub(super) fn pack(tracker: &Tracker, now: Time) -> Option<Dormant> {
        let (heard, edge) = tracker.heard_before_sleep(now)?;
        let mut bytes = Writer(Vec::with_capacity(1_024));
        bytes.write(&0_i64)?;
        tracker.write_dormant(&mut bytes)?;
        Some(Dormant {
            heard,
            edge,
            silent: tracker.silent(),
            vehicle: tracker.vehicle(),
            packed: without_zeros(&bytes.0),
        })
    }

    pub(super) fn unpack(&self, key: TrackerKey) -> Tracker {
        let bytes = with_zeros(&self.packed);
        let Dormant { heard, edge, silent, vehicle, packed: _ } = *self;
        let mut reader = Reader(&bytes);
        let set_by_ms: i64 = reader.read().expect("it was packed by this very process");
        let unpacked = Tracker::read_dormant(key, (heard, edge), silent, vehicle, &mut reader);
        let mut tracker = unpacked.expect("it was packed by this very process");
        if set_by_ms != 0 {
            // What it keeps happened long ago, so none of it comes to lie in the future.
            tracker.move_times(ClockSet { by_ms: set_by_ms, now: Time(i64::MAX) });
            tracker.set_heard(heard);
        }
        tracker
    }

    /// The clock was set: when it was heard is known at once, the rest when it wakes.
    pub(super) fn handle_clock_set(&mut self, set: ClockSet) {
        set.stamp(&mut self.heard);
        let (first, rest) = self.packed.split_at(first_eight(&self.packed));
        let mut before = [0; 8];
        before.copy_from_slice(&with_zeros(first));
        let set_by_ms = i64::from_le_bytes(before).saturating_add(set.by_ms);
        self.packed = [&*without_zeros(&set_by_ms.to_le_bytes()), rest].concat().into_boxed_slice();
    }

    /// Somebody may be looking at the driver. See `Tracker::is_live`: one that sleeps has no delivery.
    pub(super) fn is_live(&self, now: Time) -> bool {
        now.millis_since(self.heard) < LIVE_MS
    }

    pub(super) fn vehicle(&self) -> Vehicle {
        self.vehicle
    }

    /// With what the allocator adds.
    #[cfg(test)]
    pub(super) fn heap_bytes(&self) -> usize {
        (self.packed.len() + 8).next_multiple_of(16)
    }

    /// See `Tracker::silence_due`: one that sleeps has no delivery.
    pub(super) fn silence_due(&self, clock: &FoldClock, listening: &Listening) -> Option<Time> {
        let timeout_ms = DeliveryPolicy::default().stale_after_ms();
        if clock.silence(self.edge, self.heard, timeout_ms) != self.silent {
            return Some(clock.now());
        }
        listening.due(clock, self.edge, self.heard, timeout_ms, self.silent)
    }
}

/// Writes parts one after the other.
pub(super) struct Writer(Vec<u8>);

impl Writer {
    /// None for what has no encoding, so that the tracker stays as it is.
    pub(super) fn write<T: SchemaWrite<DefaultConfig, Src = T>>(&mut self, part: &T) -> Option<()> {
        serialize_into(&mut self.0, part).ok()
    }
}

/// Reads them in the same order.
pub(super) struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    pub(super) fn read<T: SchemaReadOwned<DefaultConfig, Dst = T>>(&mut self) -> Option<T> {
        deserialize_from(&mut self.0).ok()
    }
}

/// For every eight bytes a byte that says which of them are not zero, and those.
fn without_zeros(bytes: &[u8]) -> Box<[u8]> {
    let mut packed = Vec::with_capacity(bytes.len());
    for eight in bytes.chunks(8) {
        let at = packed.len();
        packed.push(0);
        for (i, byte) in eight.iter().enumerate().filter(|(_, byte)| **byte != 0) {
            packed[at] |= 1 << i;
            packed.push(*byte);
        }
    }
    packed.into_boxed_slice()
}

/// How many packed bytes stand for the first eight.
fn first_eight(packed: &[u8]) -> usize {
    packed.first().map_or(0, |mask| 1 + mask.count_ones() as usize)
}

/// The last bytes may be zeros that were never there: nobody reads them.
fn with_zeros(packed: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(packed.len() * 3);
    let mut rest = packed.iter();
    while let Some(mask) = rest.next() {
        for i in 0..8 {
            let is_there = mask >> i & 1 == 1;
            bytes.push(if is_there { rest.next().copied().unwrap_or_default() } else { 0 });
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_packed_comes_out_again() {
        for length in 0..64 {
            let bytes: Vec<u8> = (0..length).map(|i: u8| if i.is_multiple_of(3) { i } else { 0 }).collect();
            let unpacked = with_zeros(&without_zeros(&bytes));
            assert_eq!(unpacked[..bytes.len()], bytes);
            assert!(unpacked[bytes.len()..].iter().all(|byte| *byte == 0));
        }
    }
}
