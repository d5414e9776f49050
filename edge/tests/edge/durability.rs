//! What is acknowledged is in the log, and what is taken is not lost.

use std::sync::atomic::Ordering;
use std::time::Duration;

use protocol::datagram::DatagramKind;
use protocol::{FixNumber, Record, Time, Verdict};

use crate::support::{SwitchedLog, TestEdge, eventually, good_fix, now, settings};

#[tokio::test(flavor = "multi_thread")]
async fn an_ack_names_exactly_what_is_in_the_log() {
    let edge = TestEdge::start().await;
    let mut phone = edge.phone(7);

    phone.send(DatagramKind::FixesAckWanted, &[good_fix(), good_fix(), good_fix()]);
    let acked = phone.ack();

    let recorded = edge.fixes_of(7).await;
    assert_eq!(
        recorded.iter().filter_map(|fix| fix.number).collect::<Vec<_>>(),
        (1..=3).map(FixNumber).collect::<Vec<_>>()
    );
    assert_eq!(acked.count(), 3);
    assert!(recorded.iter().all(|fix| acked.contains(fix.number.unwrap()) && fix.verdict == Verdict::Accepted));
    edge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_later_ack_names_what_came_without_asking() {
    let edge = TestEdge::start().await;
    let mut phone = edge.phone(7);
    phone.send(DatagramKind::Fixes, &[good_fix()]);
    eventually("both datagrams are accepted", || edge.metric("wayfix_edge_fixes_accepted_total") >= 1);

    phone.send(DatagramKind::FixesAckWanted, &[good_fix()]);

    let acked = phone.ack();
    assert!(acked.contains(FixNumber(1)) && acked.contains(FixNumber(2)), "{acked:?}");
    edge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_log_is_away_phones_hold_and_afterwards_nothing_is_missing() {
    let edge = TestEdge::start().await;
    let mut phone = edge.phone(7);
    edge.log.set_away(true);

    phone.send(DatagramKind::FixesAckWanted, &[good_fix()]);
    let control = phone.control();
    assert!(control.log_away && control.send_every_ms >= 1000, "{control:?}");
    phone.send(DatagramKind::Fixes, &[good_fix()]);
    eventually("the second fix is spooled", || {
        edge.handle.log_state.is_away() && edge.metric("wayfix_edge_shipments_spooled_total") >= 2
    });
    assert_eq!(edge.fixes_of(7).await, []);
    edge.log.set_away(false);
    eventually("the log is back", || !edge.handle.log_state.is_away());

    phone.send(DatagramKind::FixesAckWanted, &[good_fix()]);
    let acked = phone.ack();
    assert_eq!(acked.count(), 3, "those of before are named too: {acked:?}");
    assert_eq!(edge.fixes_of(7).await.len(), 3);
    edge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_log_delays_the_ack_and_loses_nothing() {
    let edge = TestEdge::start().await;
    let mut phone = edge.phone(7);
    edge.log.delay_ms.store(1500, Ordering::SeqCst);

    phone.send(DatagramKind::FixesAckWanted, &[good_fix()]);

    assert!(phone.control().log_away);
    edge.log.delay_ms.store(0, Ordering::SeqCst);
    eventually("the log is quick again", || !edge.handle.log_state.is_away());
    phone.send(DatagramKind::FixesAckWanted, &[good_fix()]);
    assert_eq!(phone.ack().count(), 2);
    edge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_spool_keeps_survives_the_death_of_the_process() {
    let edge = TestEdge::start().await;
    let mut phone = edge.phone(7);
    edge.log.set_away(true);
    for _ in 0..20 {
        phone.send(DatagramKind::Fixes, &[good_fix()]);
        std::thread::sleep(Duration::from_millis(20));
    }
    // Records are spooled after they are counted: wait until nothing more comes.
    eventually("all are accepted", || edge.metric("wayfix_edge_fixes_accepted_total") >= 20);
    std::thread::sleep(Duration::from_millis(1500));
    // What a killed process leaves behind: the files as they are at this moment.
    let left = tempfile::tempdir().unwrap();
    for name in ["spool", "edge-id"] {
        std::fs::copy(edge.state_folder.join(name), left.path().join(name)).unwrap();
    }
    let log = std::sync::Arc::new(SwitchedLog::new(edge.log.inner.clone()));

    let successor = TestEdge::start_on(log, settings(), left.path()).await;

    assert_eq!(successor.handle.edge_id, edge.handle.edge_id);
    let mut numbers = Vec::new();
    for _ in 0..200 {
        numbers = successor.fixes_of(7).await.iter().filter_map(|fix| fix.number).map(|n| n.0).collect();
        if numbers.len() >= 20 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(numbers, (1..=20).collect::<Vec<_>>());
    successor.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_ships_all_that_was_sent_before_it() {
    let edge = TestEdge::start().await;
    let mut phones: Vec<_> = (1..=20).map(|driver| edge.phone(driver)).collect();
    for _ in 0..10 {
        phones.iter_mut().for_each(|phone| phone.send(DatagramKind::Fixes, &[good_fix()]));
    }

    edge.stop().await;

    for driver in 1..=20 {
        assert_eq!(edge.fixes_of(driver).await.len(), 10, "driver {driver}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_without_a_log_leaves_the_fixes_in_the_spool() {
    let edge = TestEdge::start().await;
    let mut phone = edge.phone(7);
    edge.log.set_away(true);
    phone.send(DatagramKind::Fixes, &[good_fix()]);
    eventually("it is accepted", || edge.metric("wayfix_edge_fixes_accepted_total") >= 1);

    edge.stop().await;
    edge.log.set_away(false);
    let successor = TestEdge::start_on(edge.log.clone(), settings(), &edge.state_folder).await;

    let mut phone = successor.phone(8);
    phone.send(DatagramKind::FixesAckWanted, &[good_fix()]);
    phone.ack();
    assert_eq!(successor.fixes_of(7).await.len(), 1, "it stands before what is newer");
    successor.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mark_stands_below_all_that_was_received_before_it() {
    let edge = TestEdge::start().await;
    let mut phones: Vec<_> = (1..=10).map(|driver| edge.phone(driver)).collect();
    let began = now();
    while now().since(began) < Duration::from_millis(3500) {
        phones.iter_mut().for_each(|phone| phone.send(DatagramKind::Fixes, &[good_fix()]));
        std::thread::sleep(Duration::from_millis(10));
    }

    edge.stop().await;

    for (partition, records) in edge.records().await {
        let mut marked = Time(i64::MIN);
        let mut marks = 0;
        for record in records {
            if let Record::Mark { edge: id, received_before } = record {
                assert_eq!(id, edge.handle.edge_id);
                assert!(received_before >= marked);
                marked = received_before;
                marks += 1;
            } else if let Record::Fix(fix) = record {
                assert!(fix.received >= marked, "partition {partition}");
            } else {
                let Record::Heard(heard) = record else { panic!("{record:?} is none of the edge's") };
                assert!(heard.received >= marked, "partition {partition}");
            }
        }
        assert!(marks >= 3, "{marks} in partition {partition}");
    }
}
