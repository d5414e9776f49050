//! Inputs from which a fuzzer, and the test, start: valid ones, so that mutations reach past the first check.

use maps::town;
use protocol::datagram::answer::AnswerSays;
use protocol::datagram::payload::{Ping, encode_fixes};
use protocol::datagram::{Answer, Control, NumberRanges, PAYLOAD_LEN_MAX};
use protocol::record::OwnerId;
use protocol::{EdgeId, Fix, FixNumber, MeasuredTime, PhoneState, Position, Record, RecordBatch, Time, envelope};

/// Valid inputs of a target; of an unknown one none.
pub fn seeds(target: &str) -> Vec<Vec<u8>> {
    match target {
        "payload" => payloads(),
        "answer" => answers(),
        "datagram" => vec![datagram()],
        "envelope" => vec![envelope::encode(&batch())],
        "records" => vec![wincode::serialize(&batch()).unwrap_or_default()],
        "updates" | "breadcrumbs" => vec![vec![0; 8], vec![1, 0, 0, 0, 0, 0, 0, 0, 0]],
        "ids" => vec![b"9007199254740993".to_vec(), b"0".to_vec()],
        "gpx" => vec![GPX.as_bytes().to_vec()],
        "trips" => vec![TAXI.as_bytes().to_vec(), LINES.as_bytes().to_vec()],
        "extract" => vec![extract()],
        _ => Vec::new(),
    }
}

fn payloads() -> Vec<Vec<u8>> {
    let fix = |number: i64| Fix {
        speed_dm_s: Some(83),
        heading_255: Some(190),
        ..Fix::at(
            MeasuredTime(17_900_000_000 + 40 * number),
            Position { lat_e7: 411_414_120 + 900 * number as i32, lon_e7: -86_186_430 },
        )
    };
    let fixes: Vec<(FixNumber, Fix)> = (1..20).map(|number| (FixNumber(number), fix(number as i64))).collect();
    let mut some = vec![Vec::new(), Vec::new(), Vec::new()];
    encode_fixes(&mut some[0], 1_790_000_000, None, &fixes, PAYLOAD_LEN_MAX);
    encode_fixes(&mut some[1], 1_790_000_000, Some(Some(FixNumber(1))), &fixes[..1], PAYLOAD_LEN_MAX);
    Ping { lowest_held: Some(FixNumber(3)), state: PhoneState(0) }.encode(&mut some[2]);
    some
}

fn answers() -> Vec<Vec<u8>> {
    let mut ranges = NumberRanges::default();
    for number in [3, 4, 9] {
        ranges.insert_number(FixNumber(number));
    }
    let control = Control { log_away: true, send_every_ms: 10_000, ..Control::default() };
    let says = [AnswerSays::Ack(ranges), AnswerSays::Control(control)];
    let encoded = says.map(|says| {
        let mut bytes = Vec::new();
        Answer { counter_low: 7, says }.encode(&mut bytes);
        bytes
    });
    encoded.into()
}

/// The right first byte and length; what lies behind it no key has sealed.
fn datagram() -> Vec<u8> {
    let mut bytes = vec![0x29];
    bytes.extend((0..60_u8).map(|n| n.wrapping_mul(37)));
    bytes
}

fn batch() -> RecordBatch {
    RecordBatch {
        records: vec![
            Record::Mark { edge: EdgeId(1), received_before: Time(1_790_000_000_000) },
            Record::Tick { owner: OwnerId(7), at: Time(1_790_000_000_000) },
            Record::Claim { owner: OwnerId(7), at: Time(1_790_000_000_000), incarnation: 1 },
        ],
    }
}

fn extract() -> Vec<u8> {
    town::extract(&town::TownOptions { junctions: 30, ..town::TownOptions::default() })
}

const GPX: &str = r#"<?xml version="1.0"?><gpx version="1.1" creator="x" xmlns="http://www.topografix.com/GPX/1/1"><trk><name>a</name>
<trkseg><trkpt lat="41.14" lon="-8.61"><time>2026-11-30T08:00:00Z</time></trkpt><trkpt lat="41.15" lon="-8.62"/></trkseg></trk></gpx>"#;
const TAXI: &str = "\"TAXI_ID\",\"TIMESTAMP\",\"POLYLINE\"\n\"1\",\"1372636858\",\"[[-8.61,41.14],[-8.62,41.15]]\"\n";
const LINES: &str =
    "{\"id\":\"a\",\"truth\":[[[-8.61,41.14],[-8.62,41.15]]],\"fixes\":[[0,-8.61,41.14],[1,-8.62,41.15]]}\n";
