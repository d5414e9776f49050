//! What the log holds, held to its promises: what goes in comes out, bytes that are damaged are refused, and the bytes
//! are those of bincode's format.

use proptest::prelude::*;
use protocol::envelope::{EnvelopeError, decode, encode};
use protocol::record::{Door, Fence, OwnerId};
use protocol::update::{Changed, DeliveryBody, Epoch, Eta, EtaBasis, Event, Generation, ShownPosition, Source};
use protocol::{
    AssignmentNumber, Delivery, DeliveryId, DeliveryKey, DeliveryPolicy, DeliveryState, DeliveryUpdate, DeviceKey,
    DeviceNumber, DriverId, DriverKey, EdgeId, Fix, FixNumber, FixRecord, JournalEntry, JournalKind, JournalNumber,
    MeasuredTime, Offset, PartitionId, PhoneState, Position, Record, RecordBatch, RejectReason, Stop, StopKind,
    TenantId, Time, TrackerKey, Update, UpdateBatch, Verdict,
};

fn position() -> impl Strategy<Value = Position> {
    (any::<i32>(), any::<i32>()).prop_map(|(lat_e7, lon_e7)| Position { lat_e7, lon_e7 })
}

fn device() -> impl Strategy<Value = DeviceKey> {
    (any::<u32>(), any::<u32>(), any::<u16>()).prop_map(|(tenant, driver, device)| DeviceKey {
        tenant: TenantId(tenant),
        driver: DriverId(driver),
        device: DeviceNumber(device),
    })
}

prop_compose! {
    fn fix()(
        measured in any::<i64>(),
        position in position(),
        speed_dm_s in any::<Option<u16>>(),
        heading_255 in any::<Option<u8>>(),
        accuracy_m in any::<Option<u8>>(),
        altitude_m in any::<Option<i16>>(),
        battery_percent in any::<Option<u8>>(),
        state in any::<Option<u8>>(),
    ) -> Fix {
        let phone_state = state.map(PhoneState);
        Fix { measured: MeasuredTime(measured), position, speed_dm_s, heading_255, accuracy_m, altitude_m,
              battery_percent, phone_state }
    }
}

prop_compose! {
    fn fix_record()(
        device in device(),
        session_start in any::<u32>(),
        number in any::<Option<u64>>(),
        received in any::<i64>(),
        fix in fix(),
        reason in proptest::option::of(0..RejectReason::ALL.len()),
    ) -> Record {
        let verdict = reason.map_or(Verdict::Accepted, |i| Verdict::Rejected(RejectReason::ALL[i]));
        Record::Fix(FixRecord { device, session_start, number: number.map(FixNumber), lowest_held: FixNumber(3),
            edge: EdgeId(9), door: Door::Udp, received: Time(received), fix, verdict })
    }
}

fn delivery() -> Delivery {
    let key = DeliveryKey { tenant: TenantId(7), delivery: DeliveryId(1 << 40) };
    let stop = Stop { kind: StopKind::DropOff, position: Position::default(), radius_m: 60, label: "Küche 3".into() };
    let kind = JournalKind::Status { status: DeliveryState::Ready, reason: Some("früh".into()) };
    Delivery {
        key,
        state: DeliveryState::Ready,
        assignment: AssignmentNumber(2),
        driver: Some(DriverId(5)),
        stops: vec![stop],
        policy: DeliveryPolicy::default(),
        journal: vec![JournalEntry { number: JournalNumber(1), at: Time(1), kind }],
        reference: "A-17".into(),
        created: Time(-1),
    }
}

fn other_records() -> Vec<Record> {
    let driver = DriverKey { tenant: TenantId(7), driver: DriverId(5) };
    let fence = Fence {
        name: "yard".into(),
        ring: vec![Position::default(); 3],
        center: Position::default(),
        radius_m: 0,
        dwell_s: 9,
    };
    vec![
        Record::Assign { to: TrackerKey::Driver(driver), delivery: Box::new(delivery()) },
        Record::Fences { driver, fences: vec![fence] },
        Record::Mark { edge: EdgeId(1), received_before: Time(i64::MAX) },
        Record::Tick { owner: OwnerId(u64::MAX), at: Time(0) },
        Record::Claim { owner: OwnerId(1), at: Time(0), incarnation: 1 },
    ]
}

fn update() -> UpdateBatch {
    let shown = ShownPosition {
        position: Position { lat_e7: 1, lon_e7: -1 },
        snapped: true,
        confidence_percent: 97,
        heading_255: Some(3),
        speed_dm_s: None,
        accuracy_m: Some(5),
        measured: MeasuredTime(5),
        event_time: Time(500),
        received: Time(700),
        standing: false,
    };
    let eta = Eta { arrival: Time(9), p10: Time(8), p90: Time(12), basis: EtaBasis::Road, stop: 1 };
    let changed = Changed { position: Some(shown), eta: Some(Some(eta)), silent: Some(None), ..Changed::default() };
    let generation = Generation { incarnation: 1, claim: Offset(77) };
    UpdateBatch {
        updates: vec![
            Update::Delivery(DeliveryUpdate {
                key: delivery().key,
                epoch: Epoch { assignment: AssignmentNumber(2), generation },
                number: 12,
                source: Source { partition: PartitionId(3), offset: Offset(5), index: 1, ordinal: 0 },
                at: Time(1000),
                events: vec![Event::Moved, Event::OffRoute { off_m: 12 }],
                body: DeliveryBody::Changed { changed },
                is_last: false,
            }),
            Update::Heartbeat { source: PartitionId(0), offset: Offset(1), at: Time(2) },
        ],
    }
}

proptest! {
    #[test]
    fn what_goes_in_comes_out(fixes in proptest::collection::vec(fix_record(), 0..50)) {
        let mut records = fixes;
        records.extend(other_records());
        let batch = RecordBatch { records };

        prop_assert_eq!(decode::<RecordBatch>(&encode(&batch)), Ok(batch));
    }

    #[test]
    fn garbage_is_refused_and_never_breaks_the_reader(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        prop_assert!(decode::<RecordBatch>(&bytes).is_err());
        prop_assert!(decode::<UpdateBatch>(&bytes).is_err());
    }
}

#[test]
fn every_truncation_and_every_flipped_bit_is_refused() {
    let bytes = encode(&RecordBatch { records: other_records() });
    for len in 0..bytes.len() {
        assert!(decode::<RecordBatch>(&bytes[..len]).is_err(), "cut to {len}");
    }
    for bit in 0..bytes.len() * 8 {
        let mut damaged = bytes.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        assert!(decode::<RecordBatch>(&damaged).is_err(), "bit {bit}");
    }
    let longer = [&bytes[..], &[0]].concat();
    assert!(decode::<RecordBatch>(&longer).is_err());
}

#[test]
fn an_entry_of_another_kind_or_version_is_refused_by_name() {
    let bytes = encode(&update());
    assert_eq!(decode::<UpdateBatch>(&bytes), Ok(update()));

    let other_kind = decode::<RecordBatch>(&bytes);
    let mut newer = bytes;
    newer[2] = 9;

    assert_eq!(other_kind, Err(EnvelopeError::Kind { expected: b'R', found: b'U' }));
    assert_eq!(decode::<UpdateBatch>(&newer), Err(EnvelopeError::Version { known: 2, found: 9 }));
}

/// The bytes that the log of a region already holds must stay readable: they change only with the version.
#[test]
fn the_bytes_of_a_record_are_pinned() {
    let batch = RecordBatch { records: vec![Record::Mark { edge: EdgeId(0x0102_0304), received_before: Time(-2) }] };

    let bytes = encode(&batch);

    assert_eq!(&bytes[..4], b"WR\x01\0");
    assert_eq!(&bytes[8..], [1, 0, 0, 0, 0, 0, 0, 0, 10, 4, 3, 2, 1, 254, 255, 255, 255, 255, 255, 255, 255]);
}

/// Bincode's own encoder writes the same body for what has no enum in it: fixed-int, little-endian, lengths as u64.
#[test]
fn the_bytes_are_bincodes() {
    let config = bincode::config::legacy();
    let stop = delivery().stops.remove(0);
    let fields = (stop.position.lat_e7, stop.position.lon_e7, stop.radius_m, stop.label.clone());
    let by_bincode = bincode::encode_to_vec(fields, config).expect("bincode encodes a tuple");

    let by_us = wincode::serialize(&(stop.position, stop.radius_m, stop.label)).expect("wincode encodes a tuple");

    assert_eq!(by_us, by_bincode);
    let policy = delivery().policy;
    let fields = (
        policy.auto_picked_up,
        policy.auto_arriving,
        policy.stale_after_s,
        policy.unavailable_after_s,
        policy.expected_interval_s,
    );
    let by_bincode = bincode::encode_to_vec(fields, config).expect("bincode encodes a tuple");
    assert_eq!(wincode::serialize(&policy).expect("wincode encodes"), by_bincode);
    let some: (Option<u32>, Vec<u16>) = (Some(7), vec![1, 2]);
    let by_bincode = bincode::encode_to_vec(&some, config).expect("bincode encodes a tuple");
    assert_eq!(wincode::serialize(&some).expect("wincode encodes"), by_bincode);
}

#[test]
fn a_claim_that_says_what_its_owners_clock_shows_is_framed_and_comes_back() {
    let wall = Record::WallOffset { owner: OwnerId(1), boot: u64::MAX, offset_ms: i64::MIN };
    let batch = RecordBatch { records: vec![wall, Record::Claim { owner: OwnerId(1), at: Time(5), incarnation: 1 }] };

    let bytes = encode(&batch);

    assert_eq!(decode::<RecordBatch>(&bytes), Ok(batch));
    assert_ne!(bytes[2], 1, "a build that does not know the one record reads the other");
}
