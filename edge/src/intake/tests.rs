//! Intake held to its promises: marks that are true, acks that name only what is durable, batches that are bounded.

use std::collections::BTreeMap;

use proptest::prelude::*;
use protocol::datagram::{DatagramKind, Kid, Suite, payload};
use protocol::session::{
    EdgeConfig as SessionsConfig, EdgeSessions, FleetKey, FleetKeys, Lifetime, PhoneSession, SessionTerms, issue,
};
use protocol::{
    DeviceNumber, DriverId, DriverKey, MeasuredTime, PhoneState, Position, RecordBatch, TenantId, envelope,
};

use super::*;

const T0: Time = Time(1_700_000_000_000);

#[test]
fn a_number_is_told_as_durable_only_once_its_parcel_is() {
    let mut edge = Edge::new(config());
    let taken = edge.hear(T0, 1, DatagramKind::FixesAckWanted, &[good_fix(T0)]);
    assert_eq!(taken, DatagramTaken::AnswerFollows);
    edge.intake.handle_timeout(T0 + Duration::from_millis(200));
    let parcel = edge.intake.poll_parcel().expect("the linger is over");
    assert!(edge.intake.poll_settled().is_none());

    edge.intake.handle_settled(parcel.sequence - 1, ParcelOutcome::Durable);
    assert!(edge.intake.poll_settled().is_none(), "that was another parcel");
    edge.intake.handle_settled(parcel.sequence, ParcelOutcome::Durable);

    let (receipts, outcome) = edge.intake.poll_settled().expect("it is durable");
    assert_eq!(outcome, ParcelOutcome::Durable);
    assert!(receipts.answers[0].ranges.contains(FixNumber(1)));
    assert_eq!(receipts.answers[0].ranges.count(), 1);
}

#[test]
fn after_a_second_without_durability_the_phone_is_told_to_hold_and_a_later_ack_still_names_its_fix() {
    let mut edge = Edge::new(config());
    edge.hear(T0, 1, DatagramKind::FixesAckWanted, &[good_fix(T0)]);
    edge.intake.handle_timeout(T0 + Duration::from_millis(200));
    let parcel = edge.intake.poll_parcel().expect("the linger is over");

    edge.intake.handle_timeout(T0 + Duration::from_millis(999));
    assert!(edge.intake.poll_hold().is_none());
    assert_eq!(edge.intake.poll_timeout().min(T0 + ANSWER_AFTER), edge.intake.poll_timeout());
    edge.intake.handle_timeout(T0 + ANSWER_AFTER);
    assert!(edge.intake.poll_hold().is_some());
    edge.intake.handle_timeout(T0 + ANSWER_AFTER * 2);
    assert!(edge.intake.poll_hold().is_none(), "once");

    edge.intake.handle_settled(parcel.sequence, ParcelOutcome::Durable);
    let (receipts, _) = edge.intake.poll_settled().expect("it is durable after all");
    assert!(receipts.answers.is_empty());
    assert_eq!(receipts.runs[0].1.first, 1);
}

#[test]
fn a_datagram_that_never_left_the_open_parcel_is_answered_with_hold_too() {
    let mut edge = Edge::new(IntakeConfig { parcels_max: 1, ..config() });
    edge.hear(T0, 1, DatagramKind::Fixes, &[good_fix(T0)]);
    edge.intake.handle_timeout(T0 + Duration::from_millis(200));
    let _kept_by_the_shipper = edge.intake.poll_parcel().expect("the linger is over");
    edge.hear(T0 + Duration::from_millis(300), 1, DatagramKind::FixesAckWanted, &[good_fix(T0)]);

    edge.intake.handle_timeout(T0 + Duration::from_millis(1300));

    assert!(edge.intake.poll_parcel().is_none());
    assert!(edge.intake.poll_hold().is_some());
}

#[test]
fn when_the_clock_is_set_all_that_waits_goes_on_and_records_bear_the_new_time() {
    const DAY_MS: i64 = 86_400_000;
    for by_ms in [2_000, 7_200_000, 2 * DAY_MS, 7_300 * DAY_MS].into_iter().flat_map(|ms| [ms, -ms]) {
        let set = |after_ms: i64| Time(T0.0 + by_ms + after_ms);
        let mut edge = Edge::new(config());
        edge.hear(T0, 1, DatagramKind::FixesAckWanted, &[good_fix(T0)]);

        edge.intake.handle_step(by_ms);

        let before = edge.intake.poll_parcel().expect("what came before is shipped");
        assert_eq!((before.received_before, before.steps), (T0, 0), "{by_ms} ms: with its times");
        edge.intake.set_unset(&[T0], set(0));
        let rejected = edge.submit(set(100), 7, &[good_fix(T0 + Duration::from_millis(100))]);
        assert_eq!(rejected, [], "{by_ms} ms: a phone that is right is not called wrong");
        edge.intake.handle_timeout(set(700));
        let after = edge.intake.poll_parcel().expect("the pulse goes on");
        assert_eq!((after.received_before, after.steps), (set(700), 1), "{by_ms} ms");
        edge.intake.handle_timeout(set(999));
        assert!(edge.intake.poll_hold().is_none(), "{by_ms} ms: a second has not passed");
        edge.intake.handle_timeout(set(1_000));
        assert!(edge.intake.poll_hold().is_some(), "{by_ms} ms");
        assert!(edge.intake.poll_timeout() <= set(1_200), "{by_ms} ms: the next pulse is soon");
    }
}

#[test]
fn bad_fixes_are_recorded_with_their_verdict_and_counted() {
    let mut edge = Edge::new(config());
    let good = good_fix(T0);
    let island = Fix { position: Position { lat_e7: 0, lon_e7: 0 }, ..good };
    let fast = Fix { speed_dm_s: Some(700), ..good };

    let rejected = edge.submit(T0, 7, &[good, island, fast]);

    assert_eq!(
        rejected,
        [
            RejectedFix { index: 1, reason: RejectReason::NullIsland },
            RejectedFix { index: 2, reason: RejectReason::TooFast }
        ]
    );
    let verdicts: Vec<_> = edge.ship(T0).into_values().flatten().map(|r| fix_of(&r).verdict).collect();
    assert_eq!(
        verdicts,
        [Verdict::Accepted, Verdict::Rejected(RejectReason::NullIsland), Verdict::Rejected(RejectReason::TooFast)]
    );
    let counts = edge.intake.take_counts();
    assert_eq!((counts.fixes_accepted, counts.fixes_rejected.iter().sum()), (1, 2));
}

#[test]
fn records_go_to_the_partition_that_the_drivers_key_names() {
    let mut edge = Edge::new(config());
    for driver in 0..100 {
        edge.submit(T0, driver, &[good_fix(T0)]);
    }

    let shipped = edge.ship(T0);

    assert_eq!(shipped.values().map(Vec::len).sum::<usize>(), 100);
    for (partition, records) in shipped {
        for record in records {
            let key = record.key().expect("fixes have a tracker").key_bytes();
            assert_eq!(partition_of(&key, config().partition_count).0, partition);
        }
    }
}

#[test]
fn a_ping_is_recorded_as_heard_and_answered() {
    let mut edge = Edge::new(config());
    let ping = payload::Ping { lowest_held: Some(FixNumber(9)), state: PhoneState(PhoneState::STANDING) };
    let mut bytes = Vec::new();
    ping.encode(&mut bytes);

    let taken = edge.hear_payload(T0, 1, DatagramKind::Ping, &bytes);

    assert_eq!(taken, DatagramTaken::AnswerFollows);
    let shipped = edge.ship(T0);
    let records: Vec<_> = shipped.into_values().flatten().collect();
    let [Record::Heard(heard)] = records.as_slice() else { panic!("{records:?}") };
    assert_eq!(heard.phone_state, Some(PhoneState(PhoneState::STANDING)));
    assert_eq!(heard.lowest_held, FixNumber(9));
}

#[test]
fn a_full_intake_sheds_whole_datagrams_and_recovers_when_a_parcel_returns() {
    let mut edge = Edge::new(IntakeConfig { parcels_max: 1, parcel_bytes_max: 2000, ..config() });
    let mut taken = 0u64;
    while edge.hear(T0, 1, DatagramKind::Fixes, &[good_fix(T0)]) != DatagramTaken::Full(()) {
        taken += 1;
        assert!(taken < 1000, "it never fills");
    }
    let parcel = edge.intake.poll_parcel().expect("the first full one");
    let first = parcel.record_count();
    assert_eq!(edge.intake.take_counts().fixes_accepted, taken);

    edge.intake.handle_returned(parcel);

    assert_ne!(edge.hear(T0, 1, DatagramKind::Fixes, &[good_fix(T0)]), DatagramTaken::Full(()));
    let second = edge.intake.poll_parcel().expect("the second full one").record_count();
    assert_eq!(first + second, taken, "nothing that was taken is missing");
}

#[test]
fn while_the_log_is_away_for_ever_what_is_remembered_stays_bounded() {
    let mut edge = Edge::new(IntakeConfig { runs_max: 100, ..config() });
    let mut now = T0;
    for _ in 0..UNSETTLED_MAX * 2 {
        edge.submit(now, 3, &[good_fix(now)]);
        edge.hear(now, 1, DatagramKind::Fixes, &[good_fix(now)]);
        now = now + Duration::from_millis(500);
        edge.intake.handle_timeout(now);
        let parcel = edge.intake.poll_parcel().expect("the linger is never above 500 ms");
        edge.intake.handle_returned(parcel);
    }

    assert!(edge.intake.unsettled.len() <= UNSETTLED_MAX);
    assert!(edge.intake.unsettled_runs <= 100);
    let told: usize = std::iter::from_fn(|| edge.intake.poll_settled())
        .inspect(|(_, outcome)| assert_eq!(*outcome, ParcelOutcome::Lost))
        .map(|(receipts, _)| receipts.submissions.len())
        .sum();
    assert_eq!(told + edge.intake.unsettled.len(), UNSETTLED_MAX * 2, "nobody waits unanswered");
}

#[test]
fn a_lone_fix_is_shipped_at_once_and_what_comes_behind_two_under_way_when_one_is_settled() {
    let mut edge = Edge::new(config());
    for _ in 0..2 {
        edge.submit(T0, 3, &[good_fix(T0)]);
        assert_eq!(edge.intake.poll_timeout(), T0, "it waits for nobody");
        edge.intake.handle_timeout(T0);
        edge.intake.poll_parcel().expect("it is shipped at once");
    }
    let at = T0 + Duration::from_millis(3);
    for _ in 0..10 {
        edge.submit(at, 3, &[good_fix(at)]);
        edge.intake.handle_timeout(at);
        assert!(edge.intake.poll_parcel().is_none(), "two are under way");
    }

    edge.intake.handle_settled(1, ParcelOutcome::Durable);

    assert!(edge.intake.poll_timeout() <= at);
    edge.intake.handle_timeout(at);
    assert_eq!(edge.intake.poll_parcel().expect("one is settled").record_count(), 10, "they go together");
}

#[test]
fn an_idle_thread_still_says_up_to_when_it_has_heard_all() {
    let mut edge = Edge::new(config());

    edge.intake.handle_timeout(T0 + PULSE_EVERY);

    let parcel = edge.intake.poll_parcel().expect("a pulse");
    assert!(parcel.is_empty());
    assert_eq!(parcel.received_before, T0 + PULSE_EVERY);
}

proptest! {
    /// What marks rest on: no record is older than what an earlier parcel promised to have been all of, whatever the
    /// clock does within its jitter.
    #[test]
    fn a_parcel_never_carries_what_an_earlier_one_said_was_all(
        steps in prop::collection::vec((-40i64..200, 0u8..3), 1..200),
    ) {
        let mut edge = Edge::new(config());
        let mut now = T0;
        let mut promised = Time(i64::MIN);
        for (step_ms, action) in steps {
            now = Time(now.0 + step_ms);
            match action {
                0 => drop(edge.submit(now, 5, &[good_fix(now)])),
                1 => edge.intake.handle_timeout(now),
                _ => {}
            }
            while let Some(parcel) = edge.intake.poll_parcel() {
                for record in records_of(&parcel).into_values().flatten() {
                    prop_assert!(fix_of(&record).received >= promised);
                }
                promised = parcel.received_before;
                edge.intake.handle_returned(parcel);
            }
        }
    }
}

fn config() -> IntakeConfig {
    IntakeConfig {
        edge: EdgeId(77),
        thread: 0,
        partition_count: 8,
        judge: JudgeLimits::default(),
        linger: LingerRule::None,
        parcel_bytes_max: 1 << 20,
        parcels_max: 4,
        runs_max: 10_000,
    }
}

fn good_fix(at: Time) -> Fix {
    Fix::at(MeasuredTime::from_time(at), Position { lat_e7: 411_500_000, lon_e7: -86_100_000 })
}

fn fix_of(record: &Record) -> FixRecord {
    let Record::Fix(fix) = record else { panic!("{record:?} is no fix") };
    *fix
}

fn records_of(parcel: &Parcel) -> BTreeMap<u32, Vec<Record>> {
    let decode = |records| {
        let bytes = envelope::encode_records([records].into_iter());
        envelope::decode::<RecordBatch>(&bytes).expect("just encoded").records
    };
    (0..).zip(parcel.partitions.iter().map(decode)).filter(|(_, records): &(_, Vec<_>)| !records.is_empty()).collect()
}

/// An intake and a phone, with real seals between them.
struct Edge {
    intake: Intake<()>,
    sessions: EdgeSessions,
    key: FleetKey,
    phones: BTreeMap<u32, (PhoneSession, u64)>,
}

impl Edge {
    fn new(config: IntakeConfig) -> Self {
        let secret = [7; 32];
        let mut keys = FleetKeys::default();
        keys.set(std::sync::Arc::new(FleetKey::new(Kid::new(0).unwrap(), &secret)));
        Edge {
            intake: Intake::new(config, T0),
            sessions: EdgeSessions::new(SessionsConfig { sessions_max: 100, ..SessionsConfig::default() }, keys),
            key: FleetKey::new(Kid::new(0).unwrap(), &secret),
            phones: BTreeMap::new(),
        }
    }

    fn hear(&mut self, now: Time, driver: u32, kind: DatagramKind, fixes: &[Fix]) -> DatagramTaken<()> {
        let (phone, next_number) = self.phone(driver);
        let numbered: Vec<_> =
            fixes.iter().zip(*next_number..).map(|(fix, number)| (FixNumber(number), *fix)).collect();
        *next_number += fixes.len() as u64;
        let mut bytes = Vec::new();
        let lowest_held = kind.wants_answer().then_some(None);
        payload::encode_fixes(&mut bytes, phone.start_s(), lowest_held, &numbered, 1163);
        self.hear_payload(now, driver, kind, &bytes)
    }

    fn hear_payload(&mut self, now: Time, driver: u32, kind: DatagramKind, payload: &[u8]) -> DatagramTaken<()> {
        let (phone, _) = self.phone(driver);
        let mut datagram = Vec::new();
        phone.seal(kind, payload, now, &mut datagram).expect("the session is young");
        let mut said = OpenedDatagram::default();
        let opened = self.sessions.handle_datagram(now, &mut datagram, &mut said).expect("it is authentic");
        self.intake.handle_datagram(now, &opened, &said, Door::Udp, ())
    }

    fn submit(&mut self, now: Time, driver: u32, fixes: &[Fix]) -> Vec<RejectedFix> {
        let mut answer = Vec::new();
        let taken = self.intake.handle_submission(now, device(driver), Door::Json, fixes, |rejected| {
            answer = rejected;
        });
        taken.expect("there is room");
        answer
    }

    fn ship(&mut self, now: Time) -> BTreeMap<u32, Vec<Record>> {
        self.intake.handle_stop(now);
        records_of(&self.intake.poll_parcel().expect("there is one free"))
    }

    fn phone(&mut self, driver: u32) -> &mut (PhoneSession, u64) {
        let key = &self.key;
        self.phones.entry(driver).or_insert_with(|| {
            let terms = SessionTerms {
                suite: Suite::Aes128Gcm,
                device: device(driver),
                start_s: T0.as_secs() as u32,
                lifetime: Lifetime::MAX,
                numbers_from: FixNumber(1),
                edges: Vec::new(),
                ack_every: 8,
                interval_ms: 4000,
            };
            let grant = issue(key, &terms, T0).expect("good terms");
            (PhoneSession::new(&grant, T0).expect("a good grant"), 1)
        })
    }
}

fn device(driver: u32) -> DeviceKey {
    let DriverKey { tenant, driver } = DriverKey { tenant: TenantId(1), driver: DriverId(driver) };
    DeviceKey { tenant, driver, device: DeviceNumber(1) }
}
