//! What every log must do, whatever it is made of. An implementation hands in how to make, restart and crash an
//! instance; the suite panics, naming the promise, where one is broken.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use protocol::{Offset, PartitionId, Time};
use tokio::sync::Mutex;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::{Append, Log, LogError, Membership, ReadLimit, StoredEntry, Topic};

/// One log with what lies under it.
#[async_trait]
pub trait Instance: Send {
    fn log(&self) -> Arc<dyn Log>;

    /// Stops in order and opens the same log again.
    async fn restart(self: Box<Self>) -> Box<dyn Instance>;

    /// Loses, in the middle of its work, everything that a crash of the machine may take, and opens what is left. From
    /// that moment on the old log answers nobody.
    async fn crash(self: Box<Self>) -> Box<dyn Instance>;
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
    a_group_shares_its_partitions(make(4).await.log()).await;
    a_partition_is_never_two_members(make(4).await.log()).await;
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
        let offsets = log.append(vec![records(1, "a"), records(1, "b"), records(2, "c")]).await.expect("appended");

        assert_eq!(offsets, [Offset(2 * round), Offset(2 * round + 1), Offset(round)], "numbered per partition");
    }
    let range = log.range(Topic::Records, PartitionId(1)).await.expect("a range");
    assert_eq!((range.first, range.next), (Offset(0), Offset(20)));
    assert_eq!(log.append(Vec::new()).await.expect("nothing is appended"), []);
}

async fn entries_come_back_as_they_were(log: &dyn Log) {
    let large = Bytes::from(vec![7; 300_000]);
    let values = [Bytes::new(), Bytes::from_static(b"\0"), large, Bytes::from_static(b"last")];

    for value in &values {
        let append = Append { topic: Topic::Trail, partition: PartitionId(1), key: Bytes::new(), value: value.clone() };
        log.append(vec![append]).await.expect("appended");
    }

    let read = read_all(log, Topic::Trail, 1).await;
    let found: Vec<Bytes> = read.into_iter().map(|entry| entry.value).collect();
    assert_eq!(found, values);
    assert_eq!(read_all(log, Topic::Trail, 0).await, [], "the other partition has none of it");
    assert_eq!(read_all(log, Topic::Records, 1).await, [], "nor has another topic");
}

async fn an_append_over_partitions_answers_in_its_order(log: &dyn Log) {
    let appends: Vec<Append> = (0..30).map(|n| records(n % 3, &n.to_string())).collect();

    let offsets = log.append(appends).await.expect("appended");

    for (n, offset) in offsets.iter().enumerate() {
        let entry = read_one(log, PartitionId(n as u32 % 3), *offset).await;
        assert_eq!(entry.value, n.to_string(), "the n-th offset is that of the n-th entry");
    }
}

async fn a_read_keeps_its_limits_and_answers_one_entry_at_least(log: &dyn Log) {
    log.append((0..10).map(|_| records(0, "0123456789")).collect()).await.expect("appended");
    let count = async |entries_max, bytes_max| {
        let limit = ReadLimit { entries_max, bytes_max };
        let read = log.read(Topic::Records, PartitionId(0), Offset(2), limit, Duration::ZERO).await;
        read.expect("read").len()
    };

    assert_eq!(count(3, 1000).await, 3);
    assert_eq!(count(100, 1).await, 1, "one at least");
    assert_eq!(count(100, 1000).await, 8);
    assert!((1..=4).contains(&count(100, 40).await), "at most the bytes");
}

async fn a_read_that_waits_is_woken_and_one_in_vain_answers_none(log: Arc<dyn Log>) {
    let read = |wait| {
        let log = log.clone();
        async move { log.read(Topic::Updates, PartitionId(0), Offset(0), ReadLimit::default(), wait).await }
    };
    assert_eq!(read(Duration::ZERO).await.expect("read"), []);
    assert_eq!(read(Duration::from_millis(20)).await.expect("read"), []);

    let waiting: Vec<_> = (0..3).map(|_| tokio::spawn(read(PATIENCE))).collect();
    tokio::time::sleep(Duration::from_millis(50)).await;
    let append = Append { topic: Topic::Updates, ..records(0, "woken") };
    log.append(vec![append]).await.expect("appended");

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
        log.append(vec![records(0, "with it"), huge]).await,
        log.append(vec![records(0, "with it"), nowhere]).await,
        log.append(vec![records(0, "with it"), control]).await,
    ];

    assert!(matches!(outcomes[0], Err(LogError::TooLarge { .. })), "{outcomes:?}");
    assert!(matches!(outcomes[1], Err(LogError::NoPartition { .. })), "{outcomes:?}");
    assert!(matches!(outcomes[2], Err(LogError::NoPartition { .. })), "{outcomes:?}");
    assert_eq!(read_all(log, Topic::Records, 0).await, [], "nothing of a refused append is there");
    let beyond = PartitionId(99);
    assert!(matches!(log.range(Topic::Records, beyond).await, Err(LogError::NoPartition { .. })));
    let read = log.read(Topic::Records, beyond, Offset(0), ReadLimit::default(), Duration::ZERO).await;
    assert!(matches!(read, Err(LogError::NoPartition { .. })));
}

async fn times_never_go_back_and_find_their_entry(log: &dyn Log) {
    for _ in 0..20 {
        log.append(vec![records(0, "x"), records(0, "y")]).await.expect("appended");
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
                    let appends = (0..4).map(|n| records(0, &format!("{appender} {}", round * 4 + n))).collect();
                    let offsets = log.append(appends).await.expect("appended");
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
        log.append(both.to_vec()).await.expect("appended");
    }
    log.append(vec![control("c", "c0"), control("c", "c1"), control("b", "")]).await.expect("appended");
    let expected = [("a".to_string(), "a4".to_string()), ("c".to_string(), "c1".to_string())];
    assert_eq!(newest(&*log).await, expected, "deleted keys are left out");
    // A reader from the beginning learns as much, and that b is gone.
    assert_eq!(folded(&*log).await, newest(&*log).await);

    drop(log);
    let instance = instance.restart().await;
    let log = instance.log();
    assert_eq!(newest(&*log).await, expected, "also after a restart");
    assert_eq!(folded(&*log).await, expected);
    let offsets = log.append(vec![control("b", "b9")]).await.expect("appended");
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

/// Members note when they begin and end to work on a partition; nobody begins before the other has ended.
async fn a_partition_is_never_two_members(log: Arc<dyn Log>) {
    let working: Arc<std::sync::Mutex<BTreeMap<PartitionId, u32>>> = Arc::default();
    let mut members = Vec::new();
    for member in 0..3 {
        let (working, log) = (working.clone(), log.clone());
        members.push(tokio::spawn(async move {
            let mut membership = log.join("exclusive", Topic::Records).await.expect("joined");
            let mut mine = BTreeSet::new();
            while let Ok(changed) = timeout(Duration::from_millis(500), membership.changed()).await {
                let changed = changed.expect("the log is open");
                let mut working = working.lock().expect("nobody died");
                working.retain(|partition, holder| *holder != member || changed.contains(partition));
                for partition in changed.difference(&mine) {
                    let before = working.insert(*partition, member);
                    assert!(before.is_none(), "{partition} was still {before:?}'s");
                }
                mine = changed;
            }
            (membership, mine)
        }));
        tokio::time::sleep(Duration::from_millis(30)).await;
    }

    let mut shares = Vec::new();
    for member in members {
        let (membership, mine) = member.await.expect("no partition was two members'");
        shares.push((membership, mine.len()));
    }
    let mut sizes: Vec<usize> = shares.iter().map(|(_, size)| *size).collect();
    sizes.sort_unstable();
    assert_eq!(sizes, [1, 1, 2], "shared evenly at last");
}

/// A member that is asked again and again, as a consumer would.
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
                        Ok(partitions) => drop(sender.send_replace(partitions)),
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
    log.commit("a", Topic::Records, PartitionId(0), Offset(5)).await.expect("committed");
    log.commit("a", Topic::Records, PartitionId(1), Offset(6)).await.expect("committed");
    log.commit("ab", Topic::Records, PartitionId(0), Offset(7)).await.expect("committed");
    log.commit("a", Topic::Trail, PartitionId(0), Offset(8)).await.expect("committed");
    log.commit("a", Topic::Records, PartitionId(0), Offset(9)).await.expect("committed");
    check_committed(&*log).await;
    drop(log);

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
        log.append(vec![records(n % 2, &n.to_string())]).await.expect("appended");
    }
    let before = [read_all(&*log, Topic::Records, 0).await, read_all(&*log, Topic::Records, 1).await];
    let incarnation = log.incarnation();
    drop(log);

    let instance = instance.restart().await;
    let log = instance.log();

    let after = [read_all(&*log, Topic::Records, 0).await, read_all(&*log, Topic::Records, 1).await];
    assert_eq!(before, after);
    assert_eq!(log.incarnation(), incarnation);
    assert_eq!(log.append(vec![records(0, "next")]).await.expect("appended"), [Offset(25)]);
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
        let offsets = instance.log().append(vec![records(0, &crash.to_string())]).await.expect("appended");
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
                    let appends = texts.iter().map(|text| records(partition.0, text)).collect();
                    let Ok(offsets) = log.append(appends).await else {
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
                let mut next = Offset(0);
                loop {
                    let read = log.read(Topic::Records, partition, next, ReadLimit::default(), PATIENCE).await;
                    let Ok(entries) = read else {
                        return;
                    };
                    for entry in entries {
                        next = Offset(entry.offset.0 + 1);
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
    let mut entries: Vec<StoredEntry> = Vec::new();
    loop {
        let from = entries.last().map_or(Offset(0), |entry| Offset(entry.offset.0 + 1));
        let limit = ReadLimit { entries_max: 7, ..ReadLimit::default() };
        let more = log.read(topic, PartitionId(partition), from, limit, Duration::ZERO).await.expect("read");
        if more.is_empty() {
            return entries;
        }
        entries.extend(more);
    }
}

async fn read_one(log: &dyn Log, partition: PartitionId, offset: Offset) -> StoredEntry {
    let limit = ReadLimit { entries_max: 1, ..ReadLimit::default() };
    let read = log.read(Topic::Records, partition, offset, limit, Duration::ZERO).await.expect("read");
    assert_eq!(read[0].offset, offset, "the entry of that offset");
    read[0].clone()
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
