//! The bytes of version 1 are pinned: what this build writes equals the files, and what the files say is read back.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failure here fails the test")]

#[allow(dead_code, reason = "the example uses more of it")]
mod golden;

use std::sync::Arc;

use protocol::datagram::Suite;
use protocol::datagram::payload::{self, Ping};
use protocol::datagram::varint::Reader;
use protocol::session::{EdgeConfig, EdgeSessions, FleetKey, FleetKeys, OpenedDatagram, PhoneSession, SessionGrant};
use serde_json::Value;

#[test]
fn what_this_build_writes_equals_the_vectors_to_the_byte() {
    let mut names: Vec<String> = std::fs::read_dir(golden::folder())
        .expect("protocol/vectors is part of the repository")
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    let mut wanted: Vec<&str> = golden::files().iter().map(|(name, _)| *name).collect();
    wanted.sort_unstable();
    assert_eq!(names, wanted);

    for (name, value) in golden::files() {
        let pinned = std::fs::read_to_string(golden::folder().join(name)).unwrap();
        assert_eq!(golden::text(&value), pinned, "vectors/{name} differs: that is a new version of the protocol");
    }
}

#[test]
fn every_pinned_datagram_opens_to_what_it_says() {
    let file = read("datagrams.json");
    let mut keys = FleetKeys::default();
    keys.set(Arc::new(FleetKey::new(golden::kid(), &golden::secret())));
    let mut edge = EdgeSessions::new(EdgeConfig { sessions_max: 16, ..EdgeConfig::default() }, keys.clone());
    let mut out = OpenedDatagram::default();

    let mut opened_count = 0;
    let mut suite_before = String::new();
    for case in file["datagrams"].as_array().unwrap() {
        // One session cannot have two suites; a fresh edge stands for another session.
        if case["suite"] != suite_before.as_str() {
            edge = EdgeSessions::new(EdgeConfig { sessions_max: 16, ..EdgeConfig::default() }, keys.clone());
            suite_before = case["suite"].as_str().unwrap().to_string();
        }
        let mut bytes = unhex(&case["datagram"]);
        let opened = edge.handle_datagram(golden::now(), &mut bytes, &mut out).expect("authentic and fresh");

        assert_eq!(opened.device, golden::device());
        assert_eq!(opened.kind as u64, case["type"]);
        let fixes: Vec<Value> = out.fixes.iter().map(|(number, fix)| golden::fix_json(*number, fix)).collect();
        assert_eq!(Value::from(fixes), case["fixes"], "{}", case["name"]);
        assert_eq!(serde_json::to_value(out.lowest_held).unwrap(), case["lowest_held"]);
        assert_eq!(out.answer_to.is_some(), opened.kind.wants_answer());
        opened_count += 1;
    }
    assert_eq!(opened_count, 16);
}

#[test]
fn every_pinned_answer_is_understood_by_a_phone_that_asked() {
    let file = read("answers.json");
    let fleet_key = FleetKey::new(golden::kid(), &golden::secret());

    let mut understood = 0;
    for case in file["answers"].as_array().unwrap() {
        let suite: Suite = serde_json::from_value(case["suite"].clone()).unwrap();
        let grant = protocol::session::issue(&fleet_key, &golden::terms(suite), golden::now()).unwrap();
        let mut phone = PhoneSession::new(&grant, golden::now()).unwrap();
        let mut out = Vec::new();
        let counter = loop {
            let kind = protocol::datagram::DatagramKind::Ping;
            let sealed = phone.seal(kind, &[32, 0, 0], golden::now(), &mut out).unwrap();
            if u64::from(sealed.counter) == case["counter_low"] {
                break sealed.counter;
            }
        };

        let (answered, answer) = phone.open_answer(&unhex(&case["answer"])).expect("an edge of ours sealed it");

        assert_eq!(answered, counter);
        let mut payload = Vec::new();
        answer.encode(&mut payload);
        assert_eq!(payload, unhex(&case["payload"]));
        understood += 1;
    }
    assert_eq!(understood, 10);
}

#[test]
fn every_pinned_bad_payload_is_refused() {
    let file = read("payloads_refused.json");
    let mut fixes = Vec::new();
    for case in file["payloads"].as_array().unwrap() {
        let payload = unhex(&case["payload"]);
        let refused = match case["type"].as_u64().unwrap() {
            3 => Ping::decode(&payload).is_err(),
            kind => payload::decode_fixes(&payload, golden::START_S, kind == 1, &mut fixes).is_err(),
        };
        assert!(refused, "{}", case["why"]);
    }
    for bytes in read("varints.json")["refused"].as_array().unwrap() {
        assert_eq!(Reader::new(&unhex(bytes)).varint(), None, "{bytes}");
    }
}

#[test]
fn the_pinned_grant_is_read_as_it_was_written() {
    let grant: SessionGrant = serde_json::from_value(read("grant.json")).unwrap();

    let fleet_key = FleetKey::new(golden::kid(), &golden::secret());
    assert_eq!(grant, protocol::session::issue(&fleet_key, &golden::terms(Suite::Aes128Gcm), golden::now()).unwrap());
}

#[test]
fn the_document_quotes_the_vectors() {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/protocol.md");
    let document: String = std::fs::read_to_string(path).unwrap().split_whitespace().collect();
    let session = &read("sessions.json")["sessions"][3];
    let datagram = &read("datagrams.json")["datagrams"][10];
    let answer = &read("answers.json")["answers"][6];
    let keys = read("fleet_key.json");

    for value in [&keys["k_sid"], &keys["k_msk"], &keys["k_ses"]] {
        assert!(document.contains(value.as_str().unwrap()), "{value}");
    }
    for name in ["record", "sid", "mask", "phone_to_edge_key", "phone_to_edge_iv", "edge_to_phone_key"] {
        assert!(document.contains(session[name].as_str().unwrap()), "{name}");
    }
    assert!(document.contains(datagram["datagram"].as_str().unwrap()));
    assert!(document.contains(answer["answer"].as_str().unwrap()));
    assert!(document.contains(answer["payload"].as_str().unwrap()));
}

fn read(name: &str) -> Value {
    serde_json::from_str(&std::fs::read_to_string(golden::folder().join(name)).unwrap()).unwrap()
}

fn unhex(value: &Value) -> Vec<u8> {
    let text = value.as_str().unwrap();
    (0..text.len()).step_by(2).map(|i| u8::from_str_radix(&text[i..i + 2], 16).unwrap()).collect()
}
