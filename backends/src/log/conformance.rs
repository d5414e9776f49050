//! What every log must do, whatever it is made of. An implementation hands in how to make, restart and crash an
//! instance; the suite panics, naming the promise, where one is broken.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use daemon::Backoff;
use protocol::{Offset, PartitionId, Time};
use tokio::sync::Mutex;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::{
    Append, Appender, Commits, Log, LogError, Membership, OffsetRange, Pipeline, PipelineConfig, ReadLimit,
    ShareChange, StoredEntry, Topic, read_range, share,
};

/// One log with what lies under it.
#[async_trait]
pub trait Instance: Send {
    fn log(&self) -> Arc<dyn Log>;

    /// Stops in order and opens the same log again.
    async fn restart(self: Box<Self>) -> Box<dyn Instance>;

    /// Loses, in the middle of its work, everything that a crash of the machine may take, and opens what is left. From
    /// that moment on the old log answers nobody.
    async fn crash(self: Box<Self>) -> Box<dyn Instance>;

    /// Lets every append fail with an error that may pass, until told otherwise.
    fn fail_appends(&self, is_failing: bool);

    /// After this long a member that does not release what was revoked loses it. Some seconds at most.
    fn release_wait_max(&self) -> Duration;
}

/// Runs all checks; `make` gives a fresh log with so many partitions.
pub async fn suite<F>(make: impl Fn(u32) -> F)
where
    F: Future<Output = Box<dyn Instance>>,
{
    offsets_rise_from_zero_without_gaps(&*make(3).await.log()).await;
    entries_come_back_as_they_were(&*make(2).await.log()).await;
    an_append_over_partitions_answers_in_its_order(&*make(3).await.log()).await;
    a_read_keeps_its_limits_and_answers_one_entry_at_least(&*make(1).await.log()).await;
    a_read_that_waits_is_woken_and_one_in_vain_answers_none(make(1).await.log()).await;
    what_is_too_large_or_has_no_partition_is_refused_whole(&*make(2).await.log()).await;
    times_never_go_back_and_find_their_entry(&*make(1).await.log()).await;
    concurrent_appends_are_each_whole_and_in_order(make(2).await.log()).await;
    the_newest_of_every_key_is_kept(make(2).await).await;
    several_appends_under_way_keep_their_order(make(2).await.log()).await;
    nothing_overtakes_an_append_that_failed(make(2).await).await;
    every_reader_has_a_place_of_its_own(&*make(1).await.log()).await;
    a_group_shares_its_partitions(make(4).await.log()).await;
    a_member_too_many_is_told_that_there_is_nothing_for_it(make(1).await.log()).await;
    a_revoked_partition_waits_until_it_is_released(make(2).await.log()).await;
    what_is_not_released_in_time_is_lost(make(2).await).await;
    only_who_holds_a_partition_commits_for_it(make(2).await.log()).await;
    work_on_a_partition_is_never_begun_before_it_has_ended_elsewhere(make(4).await.log()).await;
    committed_offsets_are_each_groups_own_and_survive(make(2).await).await;
    everything_survives_a_restart(make(2).await).await;
    for _ in 0..CRASHES {
        what_was_acknowledged_or_read_survives_a_crash(make(2).await).await;
    }
    crashes_in_a_row_lose_nothing(make(1).await).await;
}

async fn offsets_rise_from_zero_without_gaps(log: &dyn Log) {
    assert!(log.incarnation() >= 1, "an incarnation is recorded");
    for partition in 0..log.partition_count(Topic::Records) {
        let range = log.range(Topic::Records, PartitionId(partition)).await.expect("a range");
        assert_eq!((range.first, range.next), (Offset(0), Offset(0)), "a fresh partition is empty");
    }
    for round in 0..10 {
        let offsets =
            log.append(&[records(1, "a"), records(1, "b"), records(2, "c")]).await.into_offsets().expect("appended");

        assert_eq!(offsets, [Offset(2 * round), Offset(2 * round + 1), Offset(round)], "numbered per partition");
    }
    let range = log.range(Topic::Records, PartitionId(1)).await.expect("a range");
    assert_eq!((range.first, range.next), (Offset(0), Offset(20)));
    assert_eq!(log.append(&[]).await.into_offsets().expect("nothing is appended"), []);
}

async fn entries_come_back_as_they_were(log: &dyn Log) {
    let large = Bytes::from(vec![7; 300_000]);
    let values = [Bytes::new(), Bytes::from_static(b"\0"), large, Bytes::from_static(b"last")];

    for value in &values {
        let append = Append { topic: Topic::Trail, partition: PartitionId(1), key: Bytes::new(), value: value.clone() };
        log.append(&[append]).await.into_offsets().expect("appended");
    }

    let read = read_all(log, Topic::Trail, 1).await;
    let found: Vec<Bytes> = read.into_iter().map(|entry| entry.value).collect();
    assert_eq!(found, values);
    assert_eq!(read_all(log, Topic::Trail, 0).await, [], "the other partition has none of it");
    assert_eq!(read_all(log, Topic::Records, 1).await, [], "nor has another topic");
}

async fn an_append_over_partitions_answers_in_its_order(log: &dyn Log) {
    let appends: Vec<Append> = (0..30).map(|n| records(n % 3, &n.to_string())).collect();

    let offsets = log.append(&appends).await.into_offsets().expect("appended");

    for (n, offset) in offsets.iter().enumerate() {
        let entry = read_one(log, PartitionId(n as u32 % 3), *offset).await;
        assert_eq!(entry.value, n.to_string(), "the n-th offset is that of the n-th entry");
    }
}

async fn a_read_keeps_its_limits_and_answers_one_entry_at_least(log: &dyn Log) {
    log.append(&vec![records(0, "0123456789"); 10]).await.into_offsets().expect("appended");
    let count = async |entries_max, bytes_max| {
        let limit = ReadLimit { entries_max, bytes_max };
        let mut reader = log.reader(Topic::Records, PartitionId(0), Offset(2)).await.expect("a reader");
        reader.read(limit, Duration::ZERO).await.expect("read").len()
    };

    assert_eq!(count(3, 1000).await, 3);
    assert_eq!(count(100, 1).await, 1, "one at least");
    assert_eq!(count(100, 1000).await, 8);
    assert!((1..=4).contains(&count(100, 40).await), "at most the bytes");
}

async fn a_read_that_waits_is_woken_and_one_in_vain_answers_none(log: Arc<dyn Log>) {
    let read = |wait| {
        let log = log.clone();
        async move {
            let mut reader = log.reader(Topic::Updates, PartitionId(0), Offset(0)).await?;
            reader.read(ReadLimit::default(), wait).await
        }
    };
    assert_eq!(read(Duration::ZERO).await.expect("read"), []);
    assert_eq!(read(Duration::from_millis(20)).await.expect("read"), []);

    let waiting: Vec<_> = (0..3).map(|_| tokio::spawn(read(PATIENCE))).collect();
    tokio::time::sleep(Duration::from_millis(50)).await;
    let append = Append { topic: Topic::Updates, ..records(0, "woken") };
    log.append(&[append]).await.into_offsets().expect("appended");

    for waiting in waiting {
        let read = timeout(PATIENCE / 2, waiting).await.expect("woken long before its time").expect("ended");
        assert_eq!(read.expect("read")[0].value, "woken");
    }
}

async fn what_is_too_large_or_has_no_partition_is_refused_whole(log: &dyn Log) {
    let huge = Append { value: Bytes::from(vec![0; protocol::envelope::ENTRY_BYTES_MAX + 1]), ..records(0, "") };
    let nowhere = records(log.partition_count(Topic::Records), "");
    let control = Append { topic: Topic::Control, ..records(1, "") };

    let outcomes = [
        log.append(&[records(0, "with it"), huge]).await.into_offsets(),
        log.append(&[records(0, "with it"), nowhere]).await.into_offsets(),
        log.append(&[records(0, "with it"), control]).await.into_offsets(),
    ];

    assert!(matches!(outcomes[0], Err(LogError::TooLarge { .. })), "{outcomes:?}");
    assert!(matches!(outcomes[1], Err(LogError::NoPartition { .. })), "{outcomes:?}");
    assert!(matches!(outcomes[2], Err(LogError::NoPartition { .. })), "{outcomes:?}");
    assert_eq!(read_all(log, Topic::Records, 0).await, [], "nothing of a refused append is there");
    let beyond = PartitionId(99);
    assert!(matches!(log.range(Topic::Records, beyond).await, Err(LogError::NoPartition { .. })));
    let reader = log.reader(Topic::Records, beyond, Offset(0)).await;
    assert!(matches!(reader.map(|_| ()), Err(LogError::NoPartition { .. })));
}

async fn times_never_go_back_and_find_their_entry(log: &dyn Log) {
    for _ in 0..20 {
        log.append(&[records(0, "x"), records(0, "y")]).await.into_offsets().expect("appended");
        tokio::time::sleep(Duration::from_millis(3)).await;
    }
    let entries = read_all(log, Topic::Records, 0).await;
    let at = async |time| log.offset_at(Topic::Records, PartitionId(0), time).await.expect("an offset");

    assert!(entries.is_sorted_by_key(|entry| entry.appended), "times never go back");
    assert_eq!(at(Time(0)).await, Offset(0));
    for entry in &entries {
        let first = entries.iter().find(|other| other.appended >= entry.appended).expect("itself at least");
        assert_eq!(at(entry.appended).await, first.offset, "the first at or after {}", entry.appended);
    }
    assert_eq!(at(Time(i64::MAX)).await, Offset(40), "the next where there is none");
}

async fn concurrent_appends_are_each_whole_and_in_order(log: Arc<dyn Log>) {
    let appenders: Vec<JoinHandle<()>> = (0..8)
        .map(|appender| {
            let log = log.clone();
            tokio::spawn(async move {
                for round in 0..25 {
                    let appends = [0, 1, 2, 3].map(|n| records(0, &format!("{appender} {}", round * 4 + n)));
                    let offsets = log.append(&appends).await.into_offsets().expect("appended");
                    assert!(offsets.is_sorted(), "the order of an append is kept");
                }
            })
        })
        .collect();
    for appender in appenders {
        appender.await.expect("an appender ended well");
    }

    let mut last: BTreeMap<String, i64> = BTreeMap::new();
    let entries = read_all(&*log, Topic::Records, 0).await;
    for (n, entry) in entries.iter().enumerate() {
        assert_eq!(entry.offset, Offset(n as u64), "no gap and none twice");
        let text = String::from_utf8_lossy(&entry.value).into_owned();
        let (appender, number) = text.split_once(' ').expect("appender and number");
        let number: i64 = number.parse().expect("a number");
        assert_eq!(last.insert(appender.to_string(), number).unwrap_or(-1), number - 1, "in each appender's order");
    }
    assert_eq!(entries.len(), 8 * 25 * 4);
}

async fn the_newest_of_every_key_is_kept(instance: Box<dyn Instance>) {
    let log = instance.log();
    for round in 0..5 {
        let both = ["a", "b"].map(|key| control(key, &format!("{key}{round}")));
        log.append(&both).await.into_offsets().expect("appended");
    }
    log.append(&[control("c", "c0"), control("c", "c1"), control("b", "")]).await.into_offsets().expect("appended");
    let expected = [("a".to_string(), "a4".to_string()), ("c".to_string(), "c1".to_string())];
    assert_eq!(newest(&*log).await, expected, "deleted keys are left out");
    // A reader from the beginning learns as much, and that b is gone.
    assert_eq!(folded(&*log).await, newest(&*log).await);

    drop(log);
    let instance = instance.restart().await;
    let log = instance.log();
    assert_eq!(newest(&*log).await, expected, "also after a restart");
    assert_eq!(folded(&*log).await, expected);
    let offsets = log.append(&[control("b", "b9")]).await.into_offsets().expect("appended");
    assert_eq!(offsets, [Offset(13)], "offsets go on");
    assert_eq!(newest(&*log).await.last(), Some(&("b".to_string(), "b9".to_string())));
}

async fn newest(log: &dyn Log) -> Vec<(String, String)> {
    let entries = log.newest(Topic::Control).await.expect("the newest");
    assert!(entries.is_sorted_by_key(|entry| entry.offset));
    entries.iter().map(|entry| (text(&entry.key), text(&entry.value))).collect()
}

/// What a reader from offset 0 comes to.
async fn folded(log: &dyn Log) -> Vec<(String, String)> {
    let mut by_key = BTreeMap::new();
    for entry in read_all(log, Topic::Control, 0).await {
        if entry.value.is_empty() {
            by_key.remove(&text(&entry.key));
        } else {
            by_key.insert(text(&entry.key), text(&entry.value));
        }
    }
    by_key.into_iter().collect()
}

async fn a_group_shares_its_partitions(log: Arc<dyn Log>) {
    let mut first = Following::join(&log, "sharing").await;
    let mut others = Following::join(&log, "others").await;
    first.until(|mine| mine.len() == 4, "one member has all").await;
    others.until(|mine| mine.len() == 4, "groups do not share with each other").await;

    let mut second = Following::join(&log, "sharing").await;
    let kept = first.until(|mine| mine.len() == 2, "two members have half each").await;
    let given = second.until(|mine| mine.len() == 2, "two members have half each").await;
    assert!(kept.is_disjoint(&given), "{kept:?} {given:?}");

    drop(second);
    first.until(|mine| mine.len() == 4, "a dropped member's share goes to the others").await;
    let third = Following::join(&log, "sharing").await;
    first.until(|mine| mine.len() == 2, "shared again").await;
    third.leave().await;
    first.until(|mine| mine.len() == 4, "a member that left gives its share back").await;
}

async fn several_appends_under_way_keep_their_order(log: Arc<dyn Log>) {
    let mut appender = log.appender();
    let mut under_way = Vec::new();
    for n in 0..50 {
        under_way.push(appender.begin(&[records(0, &n.to_string()), records(1, &n.to_string())]).await);
    }
    // Heard in the order in which they were begun, or the other way round.
    for (n, appending) in under_way.into_iter().enumerate().rev() {
        let offsets = appending.await.into_offsets().expect("appended");
        assert_eq!(offsets, [Offset(n as u64), Offset(n as u64)], "in the order in which they were begun");
    }
}

async fn nothing_overtakes_an_append_that_failed(instance: Box<dyn Instance>) {
    let log = instance.log();
    let backoff = Backoff { first: Duration::from_millis(1), max: Duration::from_millis(50) };
    let config = PipelineConfig { what: "append in order", under_way_max: 4, backoff };
    let mut pipeline = Pipeline::new(&*log, config, CancellationToken::new());
    let work = async {
        for n in 0..200 {
            let both = vec![records(0, &n.to_string()), records(1, &n.to_string())];
            pipeline.push_in_turn(both).await.expect("it may pass");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        pipeline.flush().await.expect("it may pass");
    };
    let trouble = async {
        for _ in 0..6 {
            tokio::time::sleep(Duration::from_millis(37)).await;
            instance.fail_appends(true);
            tokio::time::sleep(Duration::from_millis(3)).await;
            instance.fail_appends(false);
        }
    };
    timeout(PATIENCE * 2, async { tokio::join!(work, trouble) }).await.expect("it passes");

    for partition in [0, 1] {
        let mut known = 0;
        for entry in read_all(&*log, Topic::Records, partition).await {
            let number: u64 = text(&entry.value).parse().expect("a number");
            assert!(number <= known, "{number} came before {known}, which had failed, was appended again");
            known = known.max(number + 1);
        }
        assert_eq!(known, 200, "all are there");
    }
    check_that_those_behind_fail(&*instance, log.appender()).await;
}

/// What was begun behind a failure nobody has heard of yet fails, even if the log is well again.
async fn check_that_those_behind_fail(instance: &dyn Instance, mut appender: Box<dyn Appender>) {
    instance.fail_appends(true);
    let first = appender.begin(&[records(0, "first")]).await;
    let mut unheard = Vec::new();
    // Whether it is taken together with the first or after it: it fails.
    unheard.push(appender.begin(&[records(0, "second")]).await);
    let first = first.await;
    instance.fail_appends(false);
    tokio::time::sleep(Duration::from_millis(20)).await;
    unheard.push(appender.begin(&[records(0, "third")]).await);

    assert!(first.failure().is_some_and(LogError::is_transient), "{first:?}");
    for appending in unheard {
        let appended = appending.await;
        assert!(appended.failure().is_some_and(LogError::is_transient), "it overtook: {appended:?}");
    }
    let again = async {
        while appender.begin(&[records(0, "first")]).await.await.failure().is_some() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, again).await.expect("once all have been heard, appending goes on");
}

async fn every_reader_has_a_place_of_its_own(log: &dyn Log) {
    log.append(&vec![records(0, "x"); 10]).await.into_offsets().expect("appended");
    let two = ReadLimit { entries_max: 2, ..ReadLimit::default() };
    let offsets = |entries: Vec<StoredEntry>| entries.iter().map(|entry| entry.offset.0).collect::<Vec<_>>();
    let mut first = log.reader(Topic::Records, PartitionId(0), Offset(0)).await.expect("a reader");
    let mut second = log.reader(Topic::Records, PartitionId(0), Offset(7)).await.expect("a reader");

    assert_eq!(offsets(first.read(two, Duration::ZERO).await.expect("read")), [0, 1]);
    assert_eq!(offsets(second.read(two, Duration::ZERO).await.expect("read")), [7, 8]);
    assert_eq!(offsets(first.read(two, Duration::ZERO).await.expect("read")), [2, 3], "it goes on where it was");
    assert_eq!(first.next(), Offset(4));
    second.seek(Offset(1));
    assert_eq!(offsets(second.read(two, Duration::ZERO).await.expect("read")), [1, 2]);
    let mut beyond = log.reader(Topic::Records, PartitionId(0), Offset(11)).await.expect("a reader");
    assert_eq!(beyond.read(two, Duration::from_millis(20)).await.expect("read"), [], "it is not there yet");
    log.append(&[records(0, "10"), records(0, "11")]).await.into_offsets().expect("appended");
    assert_eq!(offsets(beyond.read(two, PATIENCE).await.expect("read")), [11]);
}

async fn a_member_too_many_is_told_that_there_is_nothing_for_it(log: Arc<dyn Log>) {
    let mut first = Following::join(&log, "crowd").await;
    first.until(|mine| mine.len() == 1, "one member has all").await;

    let mut second = log.join("crowd", Topic::Records).await.expect("joined");

    let change = timeout(PATIENCE, second.changed()).await.expect("it is told").expect("the log is open");
    assert_eq!(change, ShareChange::Given(BTreeSet::new()));
}

async fn a_revoked_partition_waits_until_it_is_released(log: Arc<dyn Log>) {
    let mut first = log.join("waiting", Topic::Records).await.expect("joined");
    let all = until_given(&mut *first).await;
    assert_eq!(all.len(), 2, "one member has all");
    let mut second = log.join("waiting", Topic::Records).await.expect("joined");

    let revoked = until_revoked(&mut *first).await;

    // It still works on it, for as long as it takes: nobody else is given it, and it may commit.
    let early = timeout(Duration::from_millis(300), until_given(&mut *second)).await;
    assert!(early.is_err(), "{early:?} was given before it was released");
    let (partition, commits) = (*revoked.first().expect("one at least"), first.commits());
    commits.commit(partition, Offset(3)).await.expect("it is still this member's");
    first.released(&revoked).await.expect("released");
    let given = timeout(PATIENCE, until_given(&mut *second)).await.expect("it is given on");
    assert_eq!(given, revoked);
    let late = commits.commit(partition, Offset(9)).await;
    assert!(matches!(late, Err(LogError::NotHeld { .. })), "{late:?}");
    assert_eq!(log.committed("waiting", Topic::Records, partition).await.expect("asked"), Some(Offset(3)));
}

async fn what_is_not_released_in_time_is_lost(instance: Box<dyn Instance>) {
    let log = instance.log();
    let mut first = log.join("slow", Topic::Records).await.expect("joined");
    until_given(&mut *first).await;
    let mut second = log.join("slow", Topic::Records).await.expect("joined");
    let revoked = until_revoked(&mut *first).await;

    // It never says that it has stopped.
    let wait = PATIENCE + instance.release_wait_max();
    let given = timeout(wait, until_given(&mut *second)).await.expect("it is given on all the same");

    assert_eq!(given, revoked);
    let late = first.commits().commit(*revoked.first().expect("one at least"), Offset(9)).await;
    assert!(matches!(late, Err(LogError::NotHeld { .. })), "what is lost cannot be committed: {late:?}");
    let lost = loop {
        match timeout(PATIENCE, first.changed()).await.expect("it is told").expect("the log is open") {
            ShareChange::Lost(lost) => break lost,
            ShareChange::Given(_) | ShareChange::Revoked(_) => {}
        }
    };
    assert!(lost.is_superset(&revoked), "{lost:?} {revoked:?}");
}

async fn only_who_holds_a_partition_commits_for_it(log: Arc<dyn Log>) {
    let mut first = log.join("holders", Topic::Records).await.expect("joined");
    let partition = PartitionId(0);
    let early = first.commits().commit(partition, Offset(1)).await;
    assert!(matches!(early, Err(LogError::NotHeld { .. })), "nothing was given to it: {early:?}");
    until_given(&mut *first).await;
    let commits = first.commits();
    commits.commit(partition, Offset(2)).await.expect("it holds the partition");
    assert_eq!(log.committed("holders", Topic::Records, partition).await.expect("asked"), Some(Offset(2)));

    first.leave().await.expect("left");

    let late = commits.commit(partition, Offset(3)).await;
    assert!(matches!(late, Err(LogError::NotHeld { .. })), "it has left: {late:?}");
    assert_eq!(log.committed("holders", Topic::Records, partition).await.expect("asked"), Some(Offset(2)));
}

/// By `share`, as everybody works: members come and go, and note when they begin and end to work on a partition.
async fn work_on_a_partition_is_never_begun_before_it_has_ended_elsewhere(log: Arc<dyn Log>) {
    let working: Arc<std::sync::Mutex<BTreeMap<PartitionId, u32>>> = Arc::default();
    let mut members = Vec::new();
    for member in 0..3 {
        let (working, log, stop) = (working.clone(), log.clone(), CancellationToken::new());
        let stopped = stop.clone();
        let sharing = tokio::spawn(async move {
            let work = |holding: super::Holding| {
                let working = working.clone();
                async move {
                    let before = working.lock().expect("nobody died").insert(holding.partition, member);
                    anyhow::ensure!(before.is_none(), "{} was still {before:?}'s", holding.partition);
                    holding.stop.cancelled().await;
                    // It takes a while to stop.
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    holding.commit(Offset(1)).await?;
                    working.lock().expect("nobody died").remove(&holding.partition);
                    Ok(())
                }
            };
            share(&*log, "exclusive", Topic::Records, &stopped, work).await
        });
        members.push((stop, sharing));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let is_even = || {
        let working = working.lock().expect("nobody died");
        let count = |member| working.values().filter(|holder| **holder == member).count();
        let mut counts = [count(0), count(1), count(2)];
        counts.sort_unstable();
        counts == [1, 1, 2]
    };
    let even = async {
        while !is_even() && members.iter().all(|(_, sharing)| !sharing.is_finished()) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, even).await.expect("shared evenly at last");

    for (stop, sharing) in members {
        stop.cancel();
        sharing.await.expect("it ended").expect("no partition was two members'");
    }
    assert_eq!(working.lock().expect("nobody died").len(), 0, "all work has ended");
}

async fn until_given(membership: &mut dyn Membership) -> BTreeSet<PartitionId> {
    loop {
        match membership.changed().await.expect("the log is open") {
            ShareChange::Given(given) if given.is_empty() => {}
            ShareChange::Given(given) => return given,
            change @ (ShareChange::Revoked(_) | ShareChange::Lost(_)) => panic!("{change:?} before anything was given"),
        }
    }
}

async fn until_revoked(membership: &mut dyn Membership) -> BTreeSet<PartitionId> {
    match timeout(PATIENCE, membership.changed()).await.expect("it is told").expect("the log is open") {
        ShareChange::Revoked(revoked) => revoked,
        change @ (ShareChange::Given(_) | ShareChange::Lost(_)) => {
            panic!("{change:?}, where a part is to be another's")
        }
    }
}

/// A member that is asked again and again, as a consumer would, and stops at once.
struct Following {
    mine: tokio::sync::watch::Receiver<BTreeSet<PartitionId>>,
    leave: Option<tokio::sync::oneshot::Sender<()>>,
    task: JoinHandle<()>,
}

impl Following {
    async fn join(log: &Arc<dyn Log>, group: &str) -> Self {
        let mut membership: Box<dyn Membership> = log.join(group, Topic::Records).await.expect("joined");
        let (sender, mine) = tokio::sync::watch::channel(BTreeSet::new());
        let (leave, mut left) = tokio::sync::oneshot::channel();
        let task = tokio::spawn(async move {
            loop {
                tokio::select! {
                    changed = membership.changed() => match changed {
                        Ok(ShareChange::Given(given)) => sender.send_modify(|mine| mine.extend(&given)),
                        Ok(ShareChange::Revoked(gone)) => {
                            sender.send_modify(|mine| mine.retain(|partition| !gone.contains(partition)));
                            membership.released(&gone).await.expect("released");
                        }
                        Ok(ShareChange::Lost(gone)) => {
                            sender.send_modify(|mine| mine.retain(|partition| !gone.contains(partition)));
                        }
                        Err(_) => return,
                    },
                    asked = &mut left => {
                        if asked.is_ok() {
                            membership.leave().await.expect("left");
                        }
                        return;
                    }
                }
            }
        });
        Following { mine, leave: Some(leave), task }
    }

    async fn until(&mut self, is_so: impl Fn(&BTreeSet<PartitionId>) -> bool, promise: &str) -> BTreeSet<PartitionId> {
        let waited = timeout(PATIENCE, self.mine.wait_for(|mine| is_so(mine))).await;
        waited.unwrap_or_else(|_| panic!("{promise}")).expect("the member follows").clone()
    }

    async fn leave(mut self) {
        if let Some(leave) = self.leave.take() {
            leave.send(()).expect("the member follows");
        }
        (&mut self.task).await.expect("the member ended well");
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn committed_offsets_are_each_groups_own_and_survive(instance: Box<dyn Instance>) {
    let log = instance.log();
    assert_eq!(log.committed("a", Topic::Records, PartitionId(0)).await.expect("asked"), None);
    let mut members = Vec::new();
    for (group, topic) in [("a", Topic::Records), ("ab", Topic::Records), ("a", Topic::Trail)] {
        let mut membership = log.join(group, topic).await.expect("joined");
        until_given(&mut *membership).await;
        members.push(membership);
    }
    let commits: Vec<Arc<dyn Commits>> = members.iter().map(|member| member.commits()).collect();
    for (member, partition, next) in [(0, 0, 5), (0, 1, 6), (1, 0, 7), (2, 0, 8), (0, 0, 9)] {
        commits[member].commit(PartitionId(partition), Offset(next)).await.expect("committed");
    }
    check_committed(&*log).await;
    for member in members {
        member.leave().await.expect("left");
    }
    drop((log, commits));

    let instance = instance.restart().await;
    check_committed(&*instance.log()).await;
    let instance = instance.crash().await;
    check_committed(&*instance.log()).await;
}

async fn check_committed(log: &dyn Log) {
    let committed = async |group, topic, partition| {
        log.committed(group, topic, PartitionId(partition)).await.expect("asked").map(|offset| offset.0)
    };
    assert_eq!(committed("a", Topic::Records, 0).await, Some(9));
    assert_eq!(committed("a", Topic::Records, 1).await, Some(6));
    assert_eq!(committed("ab", Topic::Records, 0).await, Some(7));
    assert_eq!(committed("a", Topic::Trail, 0).await, Some(8));
    assert_eq!(committed("b", Topic::Records, 0).await, None);
}

async fn everything_survives_a_restart(instance: Box<dyn Instance>) {
    let log = instance.log();
    for n in 0..50 {
        log.append(&[records(n % 2, &n.to_string())]).await.into_offsets().expect("appended");
    }
    let before = [read_all(&*log, Topic::Records, 0).await, read_all(&*log, Topic::Records, 1).await];
    let incarnation = log.incarnation();
    drop(log);

    let instance = instance.restart().await;
    let log = instance.log();

    let after = [read_all(&*log, Topic::Records, 0).await, read_all(&*log, Topic::Records, 1).await];
    assert_eq!(before, after);
    assert_eq!(log.incarnation(), incarnation);
    assert_eq!(log.append(&[records(0, "next")]).await.into_offsets().expect("appended"), [Offset(25)]);
    let entries = read_all(&*log, Topic::Records, 0).await;
    assert!(entries.is_sorted_by_key(|entry| entry.appended), "times go on rising");
}

async fn what_was_acknowledged_or_read_survives_a_crash(instance: Box<dyn Instance>) {
    let load = Load::start(instance.log());
    load.until_acknowledged(40).await;

    let instance = instance.crash().await;

    load.check(&*instance.log()).await;
}

async fn crashes_in_a_row_lose_nothing(mut instance: Box<dyn Instance>) {
    for crash in 0..3 {
        let offsets = instance.log().append(&[records(0, &crash.to_string())]).await.into_offsets().expect("appended");
        instance = instance.crash().await;
        let entry = read_one(&*instance.log(), PartitionId(0), offsets[0]).await;
        assert_eq!(entry.value, crash.to_string());
    }
}

/// Appenders and readers at work, who remember what they were told.
struct Load {
    acknowledged: Arc<Mutex<BTreeMap<(PartitionId, Offset), String>>>,
    seen: Arc<Mutex<BTreeMap<(PartitionId, Offset), StoredEntry>>>,
    tasks: Vec<JoinHandle<()>>,
}

impl Load {
    fn start(log: Arc<dyn Log>) -> Self {
        let mut load = Load { acknowledged: Arc::default(), seen: Arc::default(), tasks: Vec::new() };
        for appender in 0..4 {
            let (log, acknowledged) = (log.clone(), load.acknowledged.clone());
            load.tasks.push(tokio::spawn(async move {
                for round in 0.. {
                    let texts = [0, 1, 2].map(|n| format!("{appender} {round} {n} {}", "x".repeat(round % 500)));
                    let partition = PartitionId((appender + round as u32) % 2);
                    let appends = texts.each_ref().map(|text| records(partition.0, text));
                    let Ok(offsets) = log.append(&appends).await.into_offsets() else {
                        return;
                    };
                    let mut acknowledged = acknowledged.lock().await;
                    acknowledged.extend(offsets.into_iter().map(|offset| (partition, offset)).zip(texts));
                }
            }));
        }
        for partition in [0, 1].map(PartitionId) {
            let (log, seen) = (log.clone(), load.seen.clone());
            load.tasks.push(tokio::spawn(async move {
                let reader = log.reader(Topic::Records, partition, Offset(0)).await;
                let mut reader = reader.expect("a reader");
                loop {
                    let Ok(entries) = reader.read(ReadLimit::default(), PATIENCE).await else {
                        return;
                    };
                    for entry in entries {
                        seen.lock().await.insert((partition, entry.offset), entry);
                    }
                }
            }));
        }
        load
    }

    async fn until_acknowledged(&self, count: usize) {
        let enough = async {
            while self.acknowledged.lock().await.len() < count || self.seen.lock().await.is_empty() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        timeout(PATIENCE, enough).await.expect("appends are acknowledged");
    }

    /// All that anybody was told is in this log, as it was, in order and once.
    async fn check(self, log: &dyn Log) {
        for task in &self.tasks {
            task.abort();
        }
        for task in self.tasks {
            if let Err(error) = task.await {
                assert!(!error.is_panic(), "an appender or reader died: {error}");
            }
        }
        let mut found = BTreeMap::new();
        for partition in [0, 1] {
            for (n, entry) in read_all(log, Topic::Records, partition).await.into_iter().enumerate() {
                assert_eq!(entry.offset, Offset(n as u64), "no gap and none twice");
                found.insert((PartitionId(partition), entry.offset), entry);
            }
        }
        for (place, text) in self.acknowledged.lock().await.iter() {
            let entry = found.get(place).unwrap_or_else(|| panic!("{place:?} was acknowledged and is lost"));
            assert_eq!(entry.value, text.as_bytes(), "{place:?}");
        }
        for (place, entry) in self.seen.lock().await.iter() {
            assert_eq!(found.get(place), Some(entry), "{place:?} was read and is another or lost");
        }
        let texts: BTreeSet<&Bytes> = found.values().map(|entry| &entry.value).collect();
        assert_eq!(texts.len(), found.len(), "no entry is there twice");
    }
}

async fn read_all(log: &dyn Log, topic: Topic, partition: u32) -> Vec<StoredEntry> {
    let mut reader = log.reader(topic, PartitionId(partition), Offset(0)).await.expect("a reader");
    let mut entries: Vec<StoredEntry> = Vec::new();
    loop {
        let limit = ReadLimit { entries_max: 7, ..ReadLimit::default() };
        let more = reader.read(limit, Duration::ZERO).await.expect("read");
        if more.is_empty() {
            return entries;
        }
        entries.extend(more);
    }
}

async fn read_one(log: &dyn Log, partition: PartitionId, offset: Offset) -> StoredEntry {
    let one = OffsetRange { first: offset, next: Offset(offset.0 + 1) };
    let mut read = read_range(log, Topic::Records, partition, one).await.expect("read");
    assert_eq!(read.len(), 1, "the entry of that offset and no other");
    assert_eq!(read[0].offset, offset, "the entry of that offset");
    read.remove(0)
}

fn records(partition: u32, value: &str) -> Append {
    let value = Bytes::copy_from_slice(value.as_bytes());
    Append { topic: Topic::Records, partition: PartitionId(partition), key: Bytes::new(), value }
}

fn control(key: &str, value: &str) -> Append {
    Append { topic: Topic::Control, key: Bytes::copy_from_slice(key.as_bytes()), ..records(0, value) }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Long enough for a broker that is slow to settle.
const PATIENCE: Duration = Duration::from_secs(30);
const CRASHES: usize = 6;
