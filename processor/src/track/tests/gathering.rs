//! Snapshots that are gathered while the fold goes on: each is the state at the offset at which it was begun, whether it
//! is a base or what has changed since one.

use protocol::record::BlobHash;

use super::idle::life;
use super::*;
use crate::track::{SnapshotEncoder, TrackerCopy};

#[test]
fn a_snapshot_gathered_across_many_batches_is_the_state_at_its_offset_as_a_base_and_as_what_changed_since() {
    let mut seen = Seen::default();
    for seed in 0..60 {
        let log = life(seed, 200);
        let (updates, state) = fold_beside_snapshots(&log, seed, &mut seen);

        let mut alone = Partition::new(PartitionId(0), Offset(0), Generation::default());
        let mut effects = Effects::default();
        for (i, batch) in log.iter().enumerate() {
            alone.handle_entry(Offset(i as u64), batch, &TestBodies::default(), &mut effects);
        }
        assert!(updates == effects.updates, "seed {seed}");
        assert!(state == alone.snapshot().unwrap(), "seed {seed}: who takes snapshots folds otherwise");
    }
    let Seen { bases, changes, across_entries, copied_before_a_change, smaller } = seen;
    assert!(bases > 100 && changes > 500, "{bases} {changes}");
    assert!(across_entries > 300 && copied_before_a_change > 100, "{across_entries} {copied_before_a_change}");
    assert!(smaller > 100, "what changed is less than all: {smaller}");
}

#[test]
fn what_changed_is_refused_on_another_base_alone_and_cut_anywhere() {
    let log = life(3, 120);
    let mut partition = Partition::new(PartitionId(0), Offset(0), Generation::default());
    feed(&mut partition, &log[..60], 0);
    let base = taken_at_once(&mut partition, None);
    feed(&mut partition, &log[60..], 60);
    let changes = taken_at_once(&mut partition, Some(BlobHash([1; 32])));
    let restore = |hash, changes: &[u8]| {
        let base = (BlobHash([hash; 32]), &base[..]);
        Partition::restore_changed(base, changes, Generation::default(), &TestBodies::default())
    };

    assert_eq!(restore(1, &changes).unwrap().snapshot(), partition.snapshot());
    assert_eq!(restore(2, &changes).err(), Some(SnapshotError::Base));
    assert!(restore(1, &base).is_err(), "a base is not what changed");
    for length in 0..changes.len() {
        assert!(restore(1, &changes[..length]).is_err(), "{length}");
    }
    let alone = Partition::restore(&changes, Generation::default(), &TestBodies::default());
    assert!(matches!(alone.err(), Some(SnapshotError::Format { .. })));
}

/// How much of what is to be tested came up.
#[derive(Default)]
struct Seen {
    bases: u32,
    changes: u32,
    across_entries: u32,
    copied_before_a_change: u32,
    smaller: u32,
}

/// A snapshot under way.
struct UnderWay {
    encoder: SnapshotEncoder,
    is_base: bool,
    entries: u32,
    /// The state where it was begun.
    whole: Vec<u8>,
}

/// Folds a log and takes snapshot after snapshot beside it, one tracker at most between two entries.
fn fold_beside_snapshots(log: &[RecordBatch], seed: u64, seen: &mut Seen) -> (Vec<Update>, Vec<u8>) {
    let mut partition = Partition::new(PartitionId(0), Offset(0), Generation::default());
    let mut effects = Effects::default();
    let mut base: Option<(BlobHash, Vec<u8>)> = None;
    let mut under_way: Option<UnderWay> = None;
    let mut taken = 0_u8;
    for (i, batch) in log.iter().enumerate() {
        partition.handle_entry(Offset(i as u64), batch, &TestBodies::default(), &mut effects);
        let Some(snapshot) = &mut under_way else {
            if (i as u64 + seed).is_multiple_of(3) {
                taken += 1;
                let hash = base.as_ref().map(|(hash, _)| *hash).filter(|_| !taken.is_multiple_of(8));
                let whole = partition.snapshot().unwrap();
                let encoder = SnapshotEncoder::begin(partition.begin_snapshot(hash)).unwrap();
                under_way = Some(UnderWay { encoder, is_base: hash.is_none(), entries: 0, whole });
            }
            continue;
        };
        snapshot.entries += 1;
        let (copies, is_last) = partition.gather(1);
        seen.copied_before_a_change += u32::from(copies.len() > 1);
        add(&mut snapshot.encoder, &copies);
        if !is_last {
            continue;
        }
        let UnderWay { encoder, is_base, entries, whole } = under_way.take().unwrap();
        let bytes = encoder.end().unwrap();
        seen.across_entries += u32::from(entries > 1);
        let restored = if is_base {
            seen.bases += 1;
            base = Some((BlobHash([taken; 32]), bytes));
            let (_, bytes) = base.as_ref().unwrap();
            Partition::restore(bytes, Generation::default(), &TestBodies::default())
        } else {
            seen.changes += 1;
            seen.smaller += u32::from(bytes.len() < whole.len() * 2 / 3);
            let (hash, base) = base.as_ref().unwrap();
            Partition::restore_changed((*hash, base), &bytes, Generation::default(), &TestBodies::default())
        };
        assert!(restored.unwrap().snapshot().unwrap() == whole, "seed {seed}, snapshot {taken} ended at {i}");
    }
    (effects.updates, partition.snapshot().unwrap())
}

fn taken_at_once(partition: &mut Partition, base: Option<BlobHash>) -> Vec<u8> {
    let mut encoder = SnapshotEncoder::begin(partition.begin_snapshot(base)).unwrap();
    let (copies, is_last) = partition.gather(usize::MAX);
    assert!(is_last);
    add(&mut encoder, &copies);
    encoder.end().unwrap()
}

fn add(encoder: &mut SnapshotEncoder, copies: &[TrackerCopy]) {
    copies.iter().try_for_each(|copy| encoder.add(copy)).unwrap();
}

fn feed(partition: &mut Partition, log: &[RecordBatch], first: u64) {
    for (offset, batch) in (first..).zip(log) {
        partition.handle_entry(Offset(offset), batch, &TestBodies::default(), &mut Effects::default());
    }
}
