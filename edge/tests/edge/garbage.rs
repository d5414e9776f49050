//! What strangers, bad networks and broken phones send: a counted silence, and the others go on.

use std::time::Duration;

use protocol::datagram::DatagramKind;
use protocol::session::{FleetKey, Lifetime, PhoneSession, SessionTerms, issue};
use protocol::{FixNumber, RejectReason, Verdict};

use crate::support::{TestEdge, device, eventually, good_fix, now};

#[tokio::test(flavor = "multi_thread")]
async fn every_kind_of_garbage_is_counted_by_its_reason_and_never_answered() {
    let edge = TestEdge::start().await;
    let mut phone = edge.phone(7);
    let good = |phone: &mut crate::support::Phone| phone.seal(DatagramKind::FixesAckWanted, &[good_fix()]);
    let accepted = good(&mut phone);
    phone.send_bytes(&accepted);
    phone.ack();

    let mut forged = good(&mut phone);
    let last = forged.len() - 1;
    forged[last] ^= 1;
    let mut other_first = good(&mut phone);
    other_first[0] = 0x45;
    let mut unknown_kid = good(&mut phone);
    unknown_kid[0] ^= 0b11 << 3;
    let mut no_session = good(&mut phone);
    no_session[1..17].copy_from_slice(&[0x5a; 16]);
    let malformed = phone.seal_payload(DatagramKind::FixesAckWanted, &[0xff, 1, 2, 3, 4]);
    let stale = {
        let mut bytes = good(&mut phone);
        bytes[17] ^= 0x40;
        bytes
    };
    let cases = [
        ("too_short", good(&mut phone)[..39].to_vec()),
        ("too_short", Vec::from([0x20])),
        ("too_long", vec![0x20; 1201]),
        ("too_long", vec![0x20; 9000]),
        ("first_byte", other_first),
        ("unknown_kid", unknown_kid),
        ("no_session", no_session),
        ("forged", forged),
        ("replayed", accepted),
        ("malformed", malformed),
        ("stale", stale),
    ];

    for (reason, bytes) in cases {
        let before = edge.refused(reason);
        phone.send_bytes(&bytes);
        eventually(reason, || edge.refused(reason) == before + 1);
    }

    assert!(phone.hears_nothing());
    assert_eq!(edge.fixes_of(7).await.len(), 1);
    phone.send(DatagramKind::FixesAckWanted, &[good_fix()]);
    phone.ack();
    let received = edge.metric("wayfix_edge_datagrams_received_total");
    let refused = edge.metric("wayfix_edge_datagrams_refused_total");
    assert_eq!(received, edge.metric("wayfix_edge_datagrams_accepted_total") + refused);
    edge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_of_another_regions_key_opens_nothing() {
    let edge = TestEdge::start().await;
    let fleet_key = FleetKey::new(protocol::datagram::Kid::new(0).unwrap(), &[99; 32]);
    let terms = SessionTerms {
        suite: protocol::datagram::Suite::Aes128Gcm,
        device: device(7),
        start_s: now().as_secs() as u32,
        lifetime: Lifetime::MAX,
        numbers_from: FixNumber(1),
        edges: Vec::new(),
        ack_every: 8,
        interval_ms: 4000,
    };
    let mut phone = edge.phone(7);
    phone.session = PhoneSession::new(&issue(&fleet_key, &terms, now()).unwrap(), now()).unwrap();

    phone.send(DatagramKind::FixesAckWanted, &[good_fix()]);

    assert!(phone.hears_nothing());
    assert_eq!(edge.fixes_of(7).await, []);
    edge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_device_is_heard_no_more_at_any_door() {
    let edge = TestEdge::start().await;
    let mut phone = edge.phone(7);
    phone.send(DatagramKind::FixesAckWanted, &[good_fix()]);
    phone.ack();

    edge.writer.revoke(device(7)).await.unwrap();

    eventually("the revocation is known", || {
        phone.send(DatagramKind::Fixes, &[good_fix()]);
        edge.refused("revoked") > 0
    });
    let (status, _) = edge.post_fixes(7, "[]").await;
    assert_eq!(status, 401);
    let mut other = edge.phone(8);
    other.send(DatagramKind::FixesAckWanted, &[good_fix()]);
    other.ack();
    edge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_fixes_are_recorded_with_their_reason_and_acknowledged() {
    let edge = TestEdge::start().await;
    let mut phone = edge.phone(7);
    let mut inaccurate = good_fix();
    inaccurate.accuracy_m = Some(101);
    let mut fast = good_fix();
    (fast.speed_dm_s, fast.accuracy_m) = (Some(600), Some(5));

    phone.send(DatagramKind::FixesAckWanted, &[inaccurate, fast]);

    assert_eq!(phone.ack().count(), 2);
    let verdicts: Vec<_> = edge.fixes_of(7).await.iter().map(|fix| fix.verdict).collect();
    assert_eq!(verdicts, [Verdict::Rejected(RejectReason::Inaccurate), Verdict::Rejected(RejectReason::TooFast)]);
    assert_eq!(edge.metric("wayfix_edge_fixes_rejected_total"), 2);
    edge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_sends_more_than_its_share_is_told_to_slow_down() {
    let settings = edge::EdgeSettings { device_fixes_burst: 10, device_fixes_per_s: 1, ..crate::support::settings() };
    let edge = TestEdge::start_with(settings).await;
    let mut phone = edge.phone(7);
    phone.send(DatagramKind::FixesAckWanted, &[good_fix(); 10]);
    assert_eq!(phone.ack().count(), 10);

    phone.send(DatagramKind::FixesAckWanted, &[good_fix(); 10]);

    let control = phone.control();
    assert!(!control.log_away && control.send_every_ms > 0, "{control:?}");
    assert_eq!(edge.fixes_of(7).await.len(), 10);
    tokio::time::sleep(Duration::from_millis(10)).await;
    edge.stop().await;
}
