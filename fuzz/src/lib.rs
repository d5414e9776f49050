//! Every decoder that reads bytes of strangers, each as a function of bytes alone. A fuzzer calls them (`fuzz/engine`),
//! and a test replays the corpus and thousands of mutations of it on every run. A target fails by a panic: that of the
//! decoder, or of the check that what was taken makes sense.

mod seeds;

use std::io::BufReader;
use std::sync::Arc;

use maps::import::{ImportOptions, import_bytes};
use maps::traces::{self, TraceKind};
use protocol::datagram::payload::{Ping, decode_fixes};
use protocol::datagram::{ANSWER_PAYLOAD_LEN_MAX, Answer, Kid};
use protocol::envelope;
use protocol::session::{EdgeConfig, EdgeSessions, FleetKey, FleetKeys, OpenedDatagram};
use protocol::update::{BreadcrumbBatch, UpdateBatch};
use protocol::{DeliveryId, Fix, FixNumber, RecordBatch, Time};

pub use seeds::seeds;

/// A decoder and its name, which is its folder in the corpus too.
#[derive(Clone, Copy)]
pub struct Target {
    pub name: &'static str,
    pub run: fn(&[u8]),
}

pub const TARGETS: &[Target] = &[
    Target { name: "payload", run: payload },
    Target { name: "answer", run: answer },
    Target { name: "datagram", run: datagram },
    Target { name: "envelope", run: log_entry },
    Target { name: "records", run: records },
    Target { name: "updates", run: updates },
    Target { name: "breadcrumbs", run: breadcrumbs },
    Target { name: "ids", run: ids },
    Target { name: "gpx", run: gpx },
    Target { name: "trips", run: trips },
    Target { name: "extract", run: extract },
];

/// The plain text of a datagram, once opened.
pub fn payload(bytes: &[u8]) {
    let mut fixes: Vec<(FixNumber, Fix)> = Vec::new();
    for ack_wanted in [false, true] {
        if decode_fixes(bytes, SESSION_START_S, ack_wanted, &mut fixes).is_ok() {
            assert!(!fixes.is_empty() && fixes.is_sorted_by(|a, b| a.0 < b.0), "numbers rise");
        } else {
            assert!(fixes.is_empty(), "a payload that is refused leaves nothing behind");
        }
    }
    let _ = Ping::decode(bytes); // a refusal is fine
}

/// The plain text of an answer.
pub fn answer(bytes: &[u8]) {
    for answer in [Answer::decode_ack(bytes), Answer::decode_control(bytes)].into_iter().flatten() {
        let mut again = Vec::new();
        answer.encode(&mut again);
        assert!(again.len() <= bytes.len().max(ANSWER_PAYLOAD_LEN_MAX), "an answer is no longer than it came");
    }
}

/// A datagram as it comes from the network.
pub fn datagram(bytes: &[u8]) {
    let Some(kid) = Kid::new(1) else { return };
    let mut keys = FleetKeys::default();
    keys.set(Arc::new(FleetKey::new(kid, &[9; 32])));
    let mut edge = EdgeSessions::new(EdgeConfig { sessions_max: 4, ..EdgeConfig::default() }, keys);
    let mut out = OpenedDatagram::default();
    let mut bytes = bytes.to_vec();
    let now = Time::from_secs(i64::from(SESSION_START_S));
    if edge.handle_datagram(now, &mut bytes, &mut out).is_err() {
        assert!(out.answer_to.is_none() || !edge.warm().is_empty(), "who is not authentic gets no answer");
    }
}

/// An entry of the log, whole.
pub fn log_entry(bytes: &[u8]) {
    let _ = envelope::decode::<RecordBatch>(bytes);
    let _ = envelope::decode::<UpdateBatch>(bytes);
    let _ = envelope::decode::<BreadcrumbBatch>(bytes);
}

/// The body of an entry, behind the checksum that a fuzzer would have to guess.
pub fn records(bytes: &[u8]) {
    if let Ok(batch) = wincode::deserialize_exact::<RecordBatch>(bytes) {
        let sealed = envelope::encode(&batch);
        assert_eq!(envelope::decode::<RecordBatch>(&sealed).ok(), Some(batch), "a batch is read as it was written");
    }
}

pub fn updates(bytes: &[u8]) {
    if let Ok(batch) = wincode::deserialize_exact::<UpdateBatch>(bytes) {
        let sealed = envelope::encode(&batch);
        assert!(envelope::decode::<UpdateBatch>(&sealed).is_ok(), "a batch that was written is read");
    }
}

pub fn breadcrumbs(bytes: &[u8]) {
    if let Ok(batch) = wincode::deserialize_exact::<BreadcrumbBatch>(bytes) {
        let sealed = envelope::encode(&batch);
        assert!(envelope::decode::<BreadcrumbBatch>(&sealed).is_ok(), "a batch that was written is read");
    }
}

pub fn ids(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Some(id) = protocol::id::parse_id(text) {
        assert_eq!(DeliveryId(id).to_string(), text, "an id has one text");
    }
}

pub fn gpx(bytes: &[u8]) {
    let _ = traces::read(TraceKind::Gpx, BufReader::new(bytes));
}

/// Recorded trips in their two other forms.
pub fn trips(bytes: &[u8]) {
    let _ = traces::read(TraceKind::TaxiCsv, BufReader::new(bytes));
    let _ = traces::read(TraceKind::TruthLines, BufReader::new(bytes));
}

/// An OpenStreetMap extract.
pub fn extract(bytes: &[u8]) {
    let _ = import_bytes(bytes, &ImportOptions::default());
}

const SESSION_START_S: u32 = 1_790_000_000;
