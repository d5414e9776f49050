//! Makes the golden vectors. The test compares what this makes with the files; only the example `golden_vectors`
//! writes them. Everything is given as hex, times and numbers as integers, so that any language can read it.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failure here fails the test")]

use std::path::PathBuf;

use protocol::datagram::answer::{Answer, AnswerSays, Control};
use protocol::datagram::payload::{self, Ping};
use protocol::datagram::ranges::{NumberRanges, NumberRun};
use protocol::datagram::{DatagramKind, Kid, PAYLOAD_LEN_MAX, Suite, varint};
use protocol::session::fleet_key::FleetKeyParts;
use protocol::session::{
    AnswerSealer, EdgeAddress, FleetKey, Lifetime, PhoneSession, SessionRecord, SessionTerms, issue,
};
use protocol::{DeviceKey, DeviceNumber, DriverId, Fix, FixNumber, MeasuredTime, PhoneState, Position, TenantId, Time};
use serde_json::{Value, json};

pub const START_S: u32 = 1_790_000_000;

pub fn secret() -> [u8; 32] {
    std::array::from_fn(|i| i as u8)
}

pub fn kid() -> Kid {
    Kid::new(2).unwrap()
}

pub fn device() -> DeviceKey {
    DeviceKey { tenant: TenantId(0x01_0203), driver: DriverId(0x0405_0607), device: DeviceNumber(0x0809) }
}

/// Every file under `vectors/` with its content.
pub fn files() -> Vec<(&'static str, Value)> {
    vec![
        ("varints.json", varints()),
        ("fleet_key.json", fleet_key()),
        ("sessions.json", sessions()),
        ("grant.json", grant()),
        ("datagrams.json", datagrams()),
        ("answers.json", answers()),
        ("payloads_refused.json", payloads_refused()),
    ]
}

pub fn text(value: &Value) -> String {
    serde_json::to_string_pretty(value).unwrap() + "\n"
}

pub fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("vectors")
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn varints() -> Value {
    let unsigned = [0u64, 1, 127, 128, 16_383, 16_384, 2_097_151, 2_097_152, u64::from(u32::MAX), u64::MAX];
    let signed = [0i64, -1, 1, -64, 64, 41_141_412, -8_618_643, i64::MAX, i64::MIN];
    let of = |coded: u64| {
        let mut bytes = Vec::new();
        varint::put(&mut bytes, coded);
        hex(&bytes)
    };
    json!({
        "varint": unsigned.map(|value| json!({ "value": value, "bytes": of(value) })),
        "zigzag": signed.map(|value| json!({ "value": value, "bytes": of(varint::zigzag(value)) })),
        "refused": ["", "80", "8000", "ff8000", "ffffffffffffffffff02", "ffffffffffffffffff8100"],
    })
}

fn fleet_key() -> Value {
    let parts = FleetKeyParts::of(&secret());
    json!({
        "fleet_key": hex(&secret()),
        "k_sid": hex(&parts.sid),
        "k_msk": hex(&parts.mask),
        "k_ses": hex(&parts.sessions),
    })
}

fn record(suite: Suite, alias: u8) -> SessionRecord {
    SessionRecord { suite, start_s: START_S, lifetime: Lifetime::MAX, device: device(), alias }
}

fn sessions() -> Value {
    let fleet_key = FleetKey::new(kid(), &secret());
    let mut cases = Vec::new();
    for suite in [Suite::ChaCha20Poly1305, Suite::Aes128Gcm] {
        for alias in [0, 1, 63] {
            let record = record(suite, alias);
            let bytes = record.to_bytes().unwrap();
            let sid = fleet_key.seal_sid(&record).unwrap();
            let keys = fleet_key.session_keys(&bytes);
            let key_len = suite.key_len();
            cases.push(json!({
                "suite": suite,
                "start": START_S,
                "lifetime_quarters": 96,
                "tenant": device().tenant.0,
                "driver": device().driver.0,
                "device": device().device.0,
                "alias": alias,
                "record": hex(&bytes),
                "sid": hex(&sid),
                "mask": hex(&fleet_key.mask(&sid)),
                "phone_to_edge_key": hex(&keys.phone_to_edge.key[..key_len]),
                "phone_to_edge_iv": hex(&keys.phone_to_edge.iv),
                "edge_to_phone_key": hex(&keys.edge_to_phone.key[..key_len]),
                "edge_to_phone_iv": hex(&keys.edge_to_phone.iv),
            }));
        }
    }
    json!({ "fleet_key": hex(&secret()), "kid": kid().as_u8(), "sessions": cases })
}

pub fn terms(suite: Suite) -> SessionTerms {
    SessionTerms {
        suite,
        device: device(),
        start_s: START_S,
        lifetime: Lifetime::MAX,
        numbers_from: FixNumber(32_769),
        edges: vec![EdgeAddress {
            udp: "192.0.2.7:443".into(),
            https: "https://edge-7.example".into(),
            pin: Some([7; 32]),
        }],
        ack_every: 8,
        interval_ms: 4000,
    }
}

fn grant() -> Value {
    let grant = issue(&FleetKey::new(kid(), &secret()), &terms(Suite::Aes128Gcm), now()).unwrap();
    serde_json::to_value(grant).unwrap()
}

/// 10 s after session start.
pub fn now() -> Time {
    Time::from_secs(i64::from(START_S) + 10)
}

fn fix(tenths: i64, lat_e7: i32, lon_e7: i32) -> Fix {
    Fix {
        speed_dm_s: Some(83),
        heading_255: Some(190),
        accuracy_m: Some(5),
        ..Fix::at(MeasuredTime(i64::from(START_S) * 10 + tenths), Position { lat_e7, lon_e7 })
    }
}

/// What a datagram of the vectors says: its name, its kind, the lowest number held, its fixes.
type Case = (&'static str, DatagramKind, Option<FixNumber>, Vec<(FixNumber, Fix)>);

fn cases() -> Vec<Case> {
    let first = fix(96, 411_414_120, -86_186_430);
    let bare = Fix::at(first.measured, first.position);
    let full = Fix {
        altitude_m: Some(-12),
        battery_percent: Some(87),
        phone_state: Some(PhoneState(PhoneState::SAVER | PhoneState::STANDING)),
        ..first
    };
    let moved = fix(136, 411_412_330, -86_184_011);
    let unsure =
        Fix { speed_dm_s: None, heading_255: None, accuracy_m: Some(255), ..fix(186, 411_412_335, -86_184_015) };
    let still = Fix { measured: MeasuredTime(unsure.measured.0 + 40), ..unsure };
    let climbed =
        Fix { measured: MeasuredTime(full.measured.0 + 40), altitude_m: Some(31), battery_percent: None, ..full };
    let before_start = fix(-36_000, i32::MAX, i32::MIN + 1);
    let n = |number: u64, fix: Fix| (FixNumber(number), fix);
    vec![
        ("one bare fix", DatagramKind::Fixes, None, vec![n(32_769, bare)]),
        ("one fix with speed, heading, accuracy", DatagramKind::Fixes, None, vec![n(32_769, first)]),
        ("the same, ack wanted", DatagramKind::FixesAckWanted, Some(FixNumber(32_769)), vec![n(32_769, first)]),
        ("nothing held", DatagramKind::FixesAckWanted, None, vec![n(32_769, first)]),
        (
            "moved, then unsure, then standing, with a number skipped",
            DatagramKind::Fixes,
            None,
            vec![n(32_769, first), n(32_770, moved), n(32_772, unsure), n(32_773, still)],
        ),
        ("every field", DatagramKind::FixesAckWanted, Some(FixNumber(1)), vec![n(32_769, full), n(32_770, climbed)]),
        ("queued before the session, at the edge of the world", DatagramKind::Fixes, None, vec![n(9, before_start)]),
        ("ping, standing", DatagramKind::Ping, None, vec![]),
    ]
}

fn datagrams() -> Value {
    let fleet_key = FleetKey::new(kid(), &secret());
    let mut out = Vec::new();
    for suite in [Suite::ChaCha20Poly1305, Suite::Aes128Gcm] {
        let grant = issue(&fleet_key, &terms(suite), now()).unwrap();
        let mut phone = PhoneSession::new(&grant, now()).unwrap();
        for (name, kind, lowest_held, fixes) in cases() {
            let mut payload = Vec::new();
            if kind == DatagramKind::Ping {
                Ping { lowest_held, state: PhoneState(PhoneState::STANDING) }.encode(&mut payload);
            } else {
                let lowest = kind.wants_answer().then_some(lowest_held);
                let encoded = payload::encode_fixes(&mut payload, START_S, lowest, &fixes, PAYLOAD_LEN_MAX);
                assert_eq!(encoded.count, fixes.len(), "{name}");
            }
            let mut datagram = Vec::new();
            let sealed = phone.seal(kind, &payload, now(), &mut datagram).unwrap();
            out.push(json!({
                "name": name,
                "suite": suite,
                "type": kind as u8,
                "alias": 0,
                "counter": sealed.counter,
                "lowest_held": lowest_held,
                "fixes": fixes.iter().map(|(number, fix)| fix_json(*number, fix)).collect::<Vec<_>>(),
                "payload": hex(&payload),
                "datagram": hex(&datagram),
            }));
        }
    }
    json!({ "fleet_key": hex(&secret()), "kid": kid().as_u8(), "start": START_S, "datagrams": out })
}

pub fn fix_json(number: FixNumber, fix: &Fix) -> Value {
    let sent = payload::as_sent(fix);
    json!({
        "number": number,
        "measured_ds": sent.measured,
        "lat_e7": sent.position.lat_e7,
        "lon_e7": sent.position.lon_e7,
        "speed_dm_s": sent.speed_dm_s,
        "heading_255": sent.heading_255,
        "accuracy_m": sent.accuracy_m,
        "altitude_m": sent.altitude_m,
        "battery_percent": sent.battery_percent,
        "phone_state": sent.phone_state,
    })
}

fn answers() -> Value {
    let fleet_key = FleetKey::new(kid(), &secret());
    let mut out = Vec::new();
    for suite in [Suite::ChaCha20Poly1305, Suite::Aes128Gcm] {
        let keys = fleet_key.session_keys(&record(suite, 0).to_bytes().unwrap());
        let mut sealer = AnswerSealer::new(Box::new(|| [0xa1, 0xb2, 0xc3, 0xd4]));
        for (name, says) in answers_said() {
            let answer = Answer { counter_low: 162, says };
            let mut payload = Vec::new();
            answer.encode(&mut payload);
            let sealed = sealer.seal(kid(), suite, &keys.edge_to_phone, &answer);
            let runs = match says {
                AnswerSays::Ack(ranges) => ranges.runs().iter().map(|run| [run.first, u64::from(run.len)]).collect(),
                AnswerSays::Control(_) => vec![],
            };
            out.push(json!({
                "name": name,
                "suite": suite,
                "counter_low": answer.counter_low,
                "runs": runs,
                "payload": hex(&payload),
                "answer": hex(&sealed),
            }));
        }
    }
    json!({ "fleet_key": hex(&secret()), "kid": kid().as_u8(), "answers": out })
}

fn answers_said() -> Vec<(&'static str, AnswerSays)> {
    let ack = |runs: &[(u64, u32)]| {
        let mut ranges = NumberRanges::default();
        runs.iter().for_each(|(first, len)| assert!(ranges.insert(NumberRun { first: *first, len: *len })));
        AnswerSays::Ack(ranges)
    };
    let slow = Control { log_away: true, send_every_ms: 10_000, ..Control::default() };
    let over = Control { renew_now: true, closed: true, ..Control::default() };
    vec![
        ("ack of nothing", ack(&[])),
        ("ack of one run", ack(&[(32_769, 8)])),
        ("ack of three runs", ack(&[(32_769, 8), (32_779, 1), (32_868, 3)])),
        ("control: the log is away", AnswerSays::Control(slow)),
        ("control: over", AnswerSays::Control(over)),
    ]
}

fn payloads_refused() -> Value {
    let refused = [
        ("empty", 0, ""),
        ("field bit 64", 0, "4001000000"),
        ("field bit 128", 0, "8001000000"),
        ("number zero", 0, "0000000000"),
        ("cut in the first fix", 0, "00010000"),
        ("number with a padded varint", 0, "008100000000"),
        ("change bit 128", 0, "000100000080"),
        ("change of a speed that was not named", 0, "00010000000402"),
        ("change of the rest, none named", 0, "000100000020"),
        ("cut in a change", 0, "00010000000201"),
        ("speed below unknown", 0, "010100000005040b"),
        ("latitude beyond 32 bits of e7", 0, "0001009ab3e6cc0100"),
        ("numbers run out", 0, "000100000040ffffffffffffffffff01"),
        ("ack wanted, lowest held missing", 1, "0001000000"),
        ("ping with other fields", 3, "210020"),
        ("ping cut", 3, "2000"),
        ("ping with a byte left over", 3, "20002000"),
    ];
    let refused = refused.map(|(why, kind, payload)| json!({ "why": why, "type": kind, "payload": payload }));
    json!({ "start": START_S, "payloads": refused })
}
