//! The sessions an edge thread has met lately. A million of them must fit in 128 bytes each, so a slot holds raw keys
//! and packed integers, and the index over the slots is one array of 32-bit words: part slot number, part hash.
//!
//! **Invariant:** never more than the configured number of sessions; the coldest of a few makes way for a new one.

use super::fleet_key::SessionKeys;
use super::record::RECORD_LEN;
use super::window::ReplayWindow;
use crate::datagram::ranges::{NumberRanges, NumberRun};
use crate::datagram::seal::{IV_LEN, KEY_LEN_MAX};
use crate::datagram::{AeadKey, TICKS_PER_S};
use crate::time::Time;

/// Where a session sits in its thread's table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SlotNumber(u32);

/// Tenant, driver, device, start: what tells a session from all others, whatever its alias. The device comes first,
/// because sessions of one device share a hash and so can find each other.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SessionIdentity([u8; 13]);

impl SessionIdentity {
    /// From a record's bytes, whether or not they are one.
    pub fn of(record: &[u8; RECORD_LEN]) -> Self {
        let mut bytes = [0; 13];
        bytes[..9].copy_from_slice(&record[6..15]);
        bytes[9..].copy_from_slice(&record[1..5]);
        SessionIdentity(bytes)
    }

    fn start_s(&self) -> u32 {
        u32::from_be_bytes([self.0[9], self.0[10], self.0[11], self.0[12]])
    }

    fn is_same_device(&self, other: &SessionIdentity) -> bool {
        self.0[..9] == other.0[..9]
    }

    /// Of the device only. Nobody outside chooses these numbers, so a fixed multiplier is enough.
    fn hash(&self) -> u64 {
        let mut word = [0; 8];
        word.copy_from_slice(&self.0[..8]);
        let folded = u64::from_le_bytes(word) ^ u64::from(self.0[8]).rotate_left(60);
        let product = u128::from(folded ^ 0x9e37_79b9_7f4a_7c15) * 0xd6e8_feb8_6659_fd93_u128;
        (product >> 64) as u64 ^ product as u64
    }
}

/// One warm session: two cache lines.
#[derive(Clone, Copy, Debug)]
pub struct WarmSession {
    identity: SessionIdentity,
    key: [u8; KEY_LEN_MAX],
    iv: [u8; IV_LEN],
    pub window: ReplayWindow,
    tokens: [u8; 2],
    /// Low bits of the second in which tokens were last added.
    refilled_s: [u8; 2],
    unreported: [PackedRun; UNREPORTED_RUNS],
}

impl WarmSession {
    pub fn starting_with(identity: SessionIdentity, keys: &SessionKeys, counter: u32, tokens: u16, now: Time) -> Self {
        WarmSession {
            identity,
            key: keys.phone_to_edge.key,
            iv: keys.phone_to_edge.iv,
            window: ReplayWindow::starting_with(counter),
            tokens: tokens.to_ne_bytes(),
            refilled_s: (now.as_secs() as u16).to_ne_bytes(),
            unreported: [PackedRun::NONE; UNREPORTED_RUNS],
        }
    }

    pub fn phone_to_edge(&self) -> AeadKey {
        AeadKey { key: self.key, iv: self.iv }
    }

    /// When the newest datagram was sent, as its counter says: right to 128 s, and it costs no room.
    pub fn last_sent_s(&self) -> i64 {
        i64::from(self.identity.start_s()) + i64::from(self.window.largest()) / TICKS_PER_S
    }

    pub fn tokens(&self) -> u16 {
        u16::from_ne_bytes(self.tokens)
    }

    pub fn refill(&mut self, now: Time, per_s: u16, max: u16) {
        let now_s = now.as_secs() as u16;
        let elapsed_s = now_s.wrapping_sub(u16::from_ne_bytes(self.refilled_s));
        if elapsed_s > 0 {
            let more = u32::from(elapsed_s) * u32::from(per_s);
            let tokens = (u32::from(self.tokens()) + more).min(u32::from(max)) as u16;
            self.tokens = tokens.to_ne_bytes();
            self.refilled_s = now_s.to_ne_bytes();
        }
    }

    /// The clock that `refill` goes by was set.
    fn handle_step(&mut self, by_s: i64) {
        let refilled_s = u16::from_ne_bytes(self.refilled_s);
        self.refilled_s = refilled_s.wrapping_add(by_s as u16).to_ne_bytes();
    }

    /// False, and nothing taken, if there are not that many.
    pub fn take_tokens(&mut self, count: u16) -> bool {
        let Some(left) = self.tokens().checked_sub(count) else { return false };
        self.tokens = left.to_ne_bytes();
        true
    }

    /// Notes numbers that are durable and that no ack has named yet. Where there is no room the lowest are forgotten:
    /// the phone will send those again.
    pub fn note_durable(&mut self, ranges: &NumberRanges) {
        let mut all = NumberRanges::default();
        for run in self.unreported.iter().filter_map(|run| run.unpack()).chain(ranges.runs().iter().copied()) {
            all.insert(run);
        }
        let newest = all.runs().len().saturating_sub(UNREPORTED_RUNS);
        self.unreported = [PackedRun::NONE; UNREPORTED_RUNS];
        for (slot, run) in self.unreported.iter_mut().zip(&all.runs()[newest..]) {
            *slot = PackedRun::pack(*run);
        }
    }

    /// Durable numbers that no ack has named, with `ranges`; they count as named from here on.
    pub fn take_unreported(&mut self, ranges: &NumberRanges) -> NumberRanges {
        let mut all = *ranges;
        for slot in &mut self.unreported {
            if slot.unpack().is_some_and(|run| all.insert(run)) {
                *slot = PackedRun::NONE;
            }
        }
        all
    }
}

/// A run of numbers below 2³²; larger ones are not noted, which costs a repetition and no fix.
#[derive(Clone, Copy, Debug)]
struct PackedRun {
    first: [u8; 4],
    len: [u8; 2],
}

impl PackedRun {
    const NONE: PackedRun = PackedRun { first: [0; 4], len: [0; 2] };

    fn pack(run: NumberRun) -> Self {
        let Ok(first) = u32::try_from(run.first) else { return Self::NONE };
        let len = u16::try_from(run.len).unwrap_or(u16::MAX);
        PackedRun { first: first.to_ne_bytes(), len: len.to_ne_bytes() }
    }

    fn unpack(self) -> Option<NumberRun> {
        let len = u32::from(u16::from_ne_bytes(self.len));
        (len > 0).then_some(NumberRun { first: u64::from(u32::from_ne_bytes(self.first)), len })
    }
}

/// The table.
#[derive(Debug)]
pub struct WarmSessions {
    sessions_max: usize,
    /// 0 is empty; else slot number + 1 in the low bits, hash bits above.
    index: Vec<u32>,
    slot_bits: u32,
    /// Has room for all from the beginning, so that it is never moved and can lie in large pages. What was never
    /// used is address space, not memory.
    slots: Vec<WarmSession>,
    free: Vec<u32>,
    hand: usize,
    evicted_while_fresh: u64,
}

impl WarmSessions {
    pub fn new(sessions_max: usize) -> Self {
        let sessions_max = sessions_max.clamp(1, SESSIONS_MAX_MAX);
        WarmSessions {
            sessions_max,
            index: vec![0; sessions_max * 8 / 7 + 2],
            slot_bits: usize::BITS - sessions_max.leading_zeros(),
            slots: Vec::with_capacity(sessions_max),
            free: Vec::new(),
            hand: 0,
            evicted_while_fresh: 0,
        }
    }

    pub fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many sessions had to make way although a replay of theirs could still be fresh.
    pub fn evicted_while_fresh(&self) -> u64 {
        self.evicted_while_fresh
    }

    /// Bytes of memory in use, index included.
    pub fn memory_bytes(&self) -> usize {
        self.slots.len() * size_of::<WarmSession>() + (self.index.capacity() + self.free.capacity()) * size_of::<u32>()
    }

    pub fn session(&self, slot: SlotNumber) -> &WarmSession {
        &self.slots[slot.0 as usize]
    }

    pub fn session_mut(&mut self, slot: SlotNumber) -> &mut WarmSession {
        &mut self.slots[slot.0 as usize]
    }

    /// The session at a slot, if it is still this one.
    pub fn session_if(&mut self, slot: SlotNumber, identity: &SessionIdentity) -> Option<&mut WarmSession> {
        let session = self.slots.get_mut(slot.0 as usize)?;
        (session.identity == *identity).then_some(session)
    }

    pub fn find(&self, identity: &SessionIdentity) -> Option<SlotNumber> {
        self.probe(identity.hash(), |session| session.identity == *identity)
    }

    /// Any warm session of the same device.
    pub fn find_device(&self, identity: &SessionIdentity) -> Option<SlotNumber> {
        self.probe(identity.hash(), |session| session.identity.is_same_device(identity))
    }

    /// **Contract:** the identity is not in the table.
    pub fn insert(&mut self, session: WarmSession, now: Time) -> SlotNumber {
        if self.len() >= self.sessions_max {
            self.evict_coldest(now);
        }
        let slot = match self.free.pop() {
            Some(slot) => {
                self.slots[slot as usize] = session;
                slot
            }
            None => {
                self.slots.push(session);
                (self.slots.len() - 1) as u32
            }
        };
        let hash = session.identity.hash();
        let mut at = self.home(hash);
        while self.index[at] != 0 {
            at = self.after(at);
        }
        self.index[at] = self.tag(hash) | (slot + 1);
        SlotNumber(slot)
    }

    /// Looks at a few slots and forgets those whose newest datagram was sent before `before_s`.
    pub fn sweep(&mut self, before_s: i64, slots_looked_at: usize) {
        for _ in 0..slots_looked_at.min(self.slots.len()) {
            self.hand = (self.hand + 1) % self.slots.len();
            let slot = SlotNumber(self.hand as u32);
            if self.is_taken(slot) && self.session(slot).last_sent_s() < before_s {
                self.remove(slot);
            }
        }
    }

    /// The clock was set: buckets fill on as if nothing had been.
    pub fn handle_step(&mut self, by_s: i64) {
        self.slots.iter_mut().for_each(|session| session.handle_step(by_s));
    }

    fn evict_coldest(&mut self, now: Time) {
        let mut coldest: Option<(i64, SlotNumber)> = None;
        for _ in 0..EVICTION_SAMPLE {
            self.hand = (self.hand + 1) % self.slots.len();
            let slot = SlotNumber(self.hand as u32);
            let sent_s = self.session(slot).last_sent_s();
            if self.is_taken(slot) && coldest.is_none_or(|(least, _)| sent_s < least) {
                coldest = Some((sent_s, slot));
            }
        }
        if let Some((sent_s, slot)) = coldest {
            self.evicted_while_fresh += u64::from(sent_s + FRESH_S >= now.as_secs());
            self.remove(slot);
        }
    }

    fn is_taken(&self, slot: SlotNumber) -> bool {
        self.session(slot).identity != FREED
    }

    fn remove(&mut self, slot: SlotNumber) {
        let identity = self.session(slot).identity;
        let mut at = self.home(identity.hash());
        while self.index[at] & self.slot_mask() != slot.0 + 1 {
            if self.index[at] == 0 {
                return;
            }
            at = self.after(at);
        }
        self.close_gap(at);
        let session = self.session_mut(slot);
        session.identity = FREED;
        session.key = [0; KEY_LEN_MAX];
        self.free.push(slot.0);
    }

    /// Empties a place of the index and moves up what had to go past it, so that no search ends early.
    fn close_gap(&mut self, mut gap: usize) {
        self.index[gap] = 0;
        let mut at = self.after(gap);
        while self.index[at] != 0 {
            let slot = SlotNumber((self.index[at] & self.slot_mask()) - 1);
            let home = self.home(self.session(slot).identity.hash());
            let from_home = (at + self.index.len() - home) % self.index.len();
            let from_gap = (at + self.index.len() - gap) % self.index.len();
            if from_home >= from_gap {
                self.index[gap] = self.index[at];
                self.index[at] = 0;
                gap = at;
            }
            at = self.after(at);
        }
    }

    fn probe(&self, hash: u64, is_it: impl Fn(&WarmSession) -> bool) -> Option<SlotNumber> {
        let tag = self.tag(hash);
        let mut at = self.home(hash);
        loop {
            let entry = self.index[at];
            if entry == 0 {
                return None;
            }
            if entry & !self.slot_mask() == tag {
                let slot = SlotNumber((entry & self.slot_mask()) - 1);
                if is_it(self.session(slot)) {
                    return Some(slot);
                }
            }
            at = self.after(at);
        }
    }

    fn home(&self, hash: u64) -> usize {
        ((u128::from(hash) * self.index.len() as u128) >> 64) as usize
    }

    fn after(&self, at: usize) -> usize {
        if at + 1 == self.index.len() { 0 } else { at + 1 }
    }

    fn slot_mask(&self) -> u32 {
        (1 << self.slot_bits) - 1
    }

    fn tag(&self, hash: u64) -> u32 {
        hash as u32 & !self.slot_mask()
    }
}

/// Tenant 0 begins no session at second 0, so this names no session.
const FREED: SessionIdentity = SessionIdentity([0; 13]);
const UNREPORTED_RUNS: usize = 2;
const EVICTION_SAMPLE: usize = 8;
/// 16 million, so that the index has hash bits left.
const SESSIONS_MAX_MAX: usize = 1 << 24;
/// A counter older than this is refused without any memory.
pub const FRESH_S: i64 = 128;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::datagram::Suite;
    use crate::id::{DeviceKey, DeviceNumber, DriverId, TenantId};
    use crate::session::{Lifetime, SessionRecord};

    const NOW: Time = Time(1_700_000_000_000);

    fn session(driver: u32, start_s: u32, counter: u32) -> WarmSession {
        let device = DeviceKey { tenant: TenantId(1), driver: DriverId(driver), device: DeviceNumber(1) };
        let record = SessionRecord { suite: Suite::Aes128Gcm, start_s, lifetime: Lifetime::MAX, device, alias: 0 };
        let key = AeadKey { key: [driver as u8; KEY_LEN_MAX], iv: [0; IV_LEN] };
        let keys = SessionKeys { phone_to_edge: key, edge_to_phone: key };
        WarmSession::starting_with(SessionIdentity::of(&record.to_bytes().unwrap()), &keys, counter, 10, NOW)
    }

    #[test]
    fn a_million_sessions_take_at_most_128_bytes_each() {
        let mut table = WarmSessions::new(1_000_000);
        for driver in 0..1_000_000 {
            table.insert(session(driver, 1_700_000_000, 5), NOW);
        }

        assert_eq!(table.len(), 1_000_000);
        assert!(table.memory_bytes() <= 128 * 1_000_000, "{} bytes", table.memory_bytes());
        for driver in (0..1_000_000).step_by(997) {
            let wanted = session(driver, 1_700_000_000, 5).identity;
            let slot = table.find(&wanted).expect("inserted");
            assert_eq!(table.session(slot).identity, wanted);
        }
    }

    #[test]
    fn the_coldest_make_way_and_the_table_stays_bounded() {
        let mut table = WarmSessions::new(64);
        for driver in 0..10_000u32 {
            table.insert(session(driver, 1_699_990_000 + driver, 1), NOW);
        }

        assert_eq!(table.len(), 64);
        assert!(table.find(&session(9_999, 1_699_999_999, 1).identity).is_some());
        assert!(table.find(&session(0, 1_699_990_000, 1).identity).is_none());
    }

    #[test]
    fn evicting_what_could_still_be_replayed_is_counted() {
        let mut table = WarmSessions::new(2);
        for driver in 0..3 {
            table.insert(session(driver, 1_700_000_000, 1), NOW);
        }

        assert_eq!(table.evicted_while_fresh(), 1);
    }

    #[test]
    fn sessions_of_one_device_find_each_other() {
        let mut table = WarmSessions::new(10);
        let old = table.insert(session(7, 1_700_000_000, 1), NOW);

        let new = session(7, 1_700_003_600, 1).identity;

        assert_eq!(table.find(&new), None);
        assert_eq!(table.find_device(&new), Some(old));
    }

    #[test]
    fn a_third_run_pushes_out_the_oldest() {
        let mut warm = session(1, 1_700_000_000, 1);
        let runs = |runs: &[(u64, u32)]| {
            let mut ranges = NumberRanges::default();
            runs.iter().for_each(|(first, len)| assert!(ranges.insert(NumberRun { first: *first, len: *len })));
            ranges
        };

        warm.note_durable(&runs(&[(10, 2)]));
        warm.note_durable(&runs(&[(12, 2), (20, 1)]));
        warm.note_durable(&runs(&[(30, 1)]));

        assert_eq!(warm.take_unreported(&runs(&[(40, 1)])), runs(&[(20, 1), (30, 1), (40, 1)]));
        assert_eq!(warm.take_unreported(&runs(&[])), runs(&[]));
    }

    proptest! {
        /// Against the slow obvious one: a list.
        #[test]
        fn it_finds_what_was_inserted_and_not_removed(steps in prop::collection::vec((0u32..40, any::<bool>()), 1..200)) {
            let mut table = WarmSessions::new(24);
            let mut held: Vec<u32> = Vec::new();

            for (driver, add) in steps {
                let wanted = session(driver, 1_700_000_000, 1);
                match (table.find(&wanted.identity), add) {
                    (Some(slot), false) => {
                        table.remove(slot);
                        held.retain(|d| *d != driver);
                    }
                    (None, true) if held.len() < 24 => {
                        table.insert(wanted, NOW);
                        held.push(driver);
                    }
                    (found, _) => prop_assert_eq!(found.is_some(), held.contains(&driver)),
                }
                prop_assert_eq!(table.len(), held.len());
                for driver in &held {
                    prop_assert!(table.find(&session(*driver, 1_700_000_000, 1).identity).is_some());
                }
            }
        }
    }
}
