//! The sweep of the blob store: removes what nothing names any more.
//!
//! Named is what stands in an entry of the snapshots topic (the newest snapshots, one an hour, the learner's state), and
//! whatever stands in the body of something named: a base, maps, tables. It is looked for as the 32 bytes of a hash,
//! wherever they stand, so that no change of a format can hide a name; a hash that stands somewhere by chance does not
//! exist. Bodies that were put lately are left alone, and so is what they name: they lie in the store before a record or
//! a notice names them, and a record that offers a body is kept for 72 h, so that nothing younger than 80 h goes.
//!
//! A log that was restored from an older copy names older bodies; they are there as long as the copy is no older than
//! 80 h, which is longer than the log itself is kept.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use backends::blob_store::{BlobStoreError, ListedBlob, SweptBlobStore};
use backends::log::{Log, Topic};
use daemon::{Clock, Meter, ProcessContext};
use metrics::{Counter, Gauge};
use protocol::record::BlobHash;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

/// What the sweep works on.
pub struct SweepParts {
    pub log: Arc<dyn Log>,
    pub blobs: Arc<dyn SweptBlobStore>,
}

struct Metrics {
    removed: Counter,
    bytes_removed: Counter,
    failed: Counter,
    bodies: Gauge,
    bytes: Gauge,
}

/// What one sweep did.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Swept {
    pub bodies: u64,
    pub bytes: u64,
    pub removed: u64,
    pub bytes_removed: u64,
}

/// Sweeps the store every few hours until the drain stops.
pub fn start(parts: SweepParts, context: &ProcessContext) {
    let metrics = Metrics::new(&context.meter);
    let stop = context.drain.token().clone();
    context.drain.spawn("sweep of the blob store", run(parts, metrics, context.clock, stop));
}

async fn run(parts: SweepParts, metrics: Metrics, clock: Clock, stop: CancellationToken) -> anyhow::Result<()> {
    let mut wait = FIRST_AFTER;
    while stop.run_until_cancelled(clock.sleep(wait)).await.is_some() {
        wait = SWEEP_EVERY;
        match sweep(&*parts.log, &*parts.blobs, AGES, &stop).await {
            Ok(swept) => {
                metrics.count(swept);
                let Swept { bodies, removed, bytes_removed, .. } = swept;
                info!(bodies, removed, bytes_removed, "blob store swept");
            }
            Err(error) => {
                metrics.failed.increment(1);
                warn!(error = format!("{error:#}"), "the blob store could not be swept");
            }
        }
    }
    Ok(())
}

/// How old a body must be.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ages {
    /// To be removed.
    pub safe: Duration,
    /// Not to be taken for named by somebody who will say so in a moment.
    pub young: Duration,
}

/// Removes what nothing names and is old. An error removes nothing more: what is not known to be unnamed stays.
pub(crate) async fn sweep(
    log: &dyn Log,
    blobs: &dyn SweptBlobStore,
    ages: Ages,
    stop: &CancellationToken,
) -> anyhow::Result<Swept> {
    // The list first: what is named between list and reading of the names is young, or was named before.
    let mut marking = Marking::new(list(blobs).await.context("list the blob store")?);
    let notices = log.newest(Topic::Snapshots).await.context("read the snapshots topic")?;
    notices.iter().for_each(|notice| marking.handle_bytes(&notice.value));
    marking.mark_young(ages.young);
    while let Some(hash) = marking.poll_body() {
        if stop.is_cancelled() {
            return Ok(Swept::default());
        }
        let begin = match blobs.begin_of(hash, maps::file::MAGIC.len()).await {
            Ok(begin) => begin,
            Err(BlobStoreError::NotFound { .. }) => continue, // whoever named it last has removed it
            Err(error) => return Err(error).context("read a body"),
        };
        if begin[..] == maps::file::MAGIC {
            continue; // a map names nothing, and is large
        }
        match blobs.get(hash).await {
            Ok(body) => marking.handle_bytes(&body),
            Err(BlobStoreError::NotFound { .. } | BlobStoreError::Damaged { .. }) => {}
            Err(error) => return Err(error).context("read a body"),
        }
    }
    let mut swept = marking.total();
    for blob in marking.unnamed(ages.safe) {
        if blobs.remove_old(blob.hash, ages.safe).await.context("remove a body")? {
            swept.removed += 1;
            swept.bytes_removed += blob.bytes;
        }
    }
    Ok(swept)
}

async fn list(blobs: &dyn SweptBlobStore) -> Result<Vec<ListedBlob>, BlobStoreError> {
    let mut listed: Vec<ListedBlob> = Vec::new();
    loop {
        let page = blobs.list(listed.last().map(|blob| blob.hash), PAGE).await?;
        let is_last = page.len() < PAGE;
        listed.extend(page);
        if is_last {
            return Ok(listed);
        }
    }
}

/// Which of the listed bodies are named: pure.
struct Marking {
    listed: BTreeMap<BlobHash, ListedBlob>,
    /// The first bytes of every listed hash: most places of a body are told by these to hold none.
    begins: HashSet<[u8; 4]>,
    named: BTreeSet<BlobHash>,
    waiting: Vec<BlobHash>,
}

impl Marking {
    fn new(listed: Vec<ListedBlob>) -> Marking {
        let begin = |blob: &ListedBlob| blob.hash.0.first_chunk::<4>().copied();
        Marking {
            begins: listed.iter().filter_map(begin).collect(),
            listed: listed.into_iter().map(|blob| (blob.hash, blob)).collect(),
            named: BTreeSet::new(),
            waiting: Vec::new(),
        }
    }

    /// All listed hashes that stand in the bytes are named.
    fn handle_bytes(&mut self, bytes: &[u8]) {
        for window in bytes.windows(32) {
            let is_begin = window.first_chunk::<4>().is_some_and(|begin| self.begins.contains(begin));
            if let (true, Ok(hash)) = (is_begin, <[u8; 32]>::try_from(window)) {
                self.mark(BlobHash(hash));
            }
        }
    }

    /// Whoever put these is about to name them.
    fn mark_young(&mut self, age: Duration) {
        let young: Vec<BlobHash> = self.listed.values().filter(|b| b.age < age).map(|blob| blob.hash).collect();
        young.into_iter().for_each(|hash| self.mark(hash));
    }

    fn mark(&mut self, hash: BlobHash) {
        if self.listed.contains_key(&hash) && self.named.insert(hash) {
            self.waiting.push(hash);
        }
    }

    /// A named body that was not looked into yet.
    fn poll_body(&mut self) -> Option<BlobHash> {
        self.waiting.pop()
    }

    fn unnamed(&self, older: Duration) -> Vec<ListedBlob> {
        let is_unnamed = |blob: &&ListedBlob| blob.age >= older && !self.named.contains(&blob.hash);
        self.listed.values().filter(is_unnamed).copied().collect()
    }

    fn total(&self) -> Swept {
        let bytes = self.listed.values().map(|blob| blob.bytes).sum();
        Swept { bodies: self.listed.len() as u64, bytes, ..Swept::default() }
    }
}

impl Metrics {
    fn new(meter: &Meter) -> Metrics {
        let counter = |name, help| meter.counter(name, help, &[]);
        Metrics {
            removed: counter("wayfix_blobs_swept_total", "Bodies removed because nothing names them any more."),
            bytes_removed: counter("wayfix_blob_bytes_swept_total", "What these bodies took."),
            failed: counter("wayfix_blob_sweeps_failed_total", "Sweeps that were given up; the next tries again."),
            bodies: meter.gauge("wayfix_blobs", "Bodies in the blob store at the last sweep.", &[]),
            bytes: meter.gauge("wayfix_blob_bytes", "What they took.", &[]),
        }
    }

    fn count(&self, swept: Swept) {
        self.removed.increment(swept.removed);
        self.bytes_removed.increment(swept.bytes_removed);
        self.bodies.set((swept.bodies - swept.removed) as f64);
        self.bytes.set((swept.bytes - swept.bytes_removed) as f64);
    }
}

/// Records name bodies for 72 h; a snapshot is announced within minutes.
const AGES: Ages = Ages { safe: Duration::from_secs(80 * 3_600), young: Duration::from_secs(2 * 3_600) };
/// A start has enough to do.
const FIRST_AFTER: Duration = Duration::from_secs(3_600);
const SWEEP_EVERY: Duration = Duration::from_secs(6 * 3_600);
const PAGE: usize = 1_000;

#[cfg(test)]
mod tests {
    use super::*;

    fn blob(n: u8, age_h: u64) -> ListedBlob {
        ListedBlob { hash: hash(n), bytes: 10, age: Duration::from_secs(3_600 * age_h) }
    }

    fn hash(n: u8) -> BlobHash {
        let mut hash = [n; 32];
        hash[4] = 1;
        BlobHash(hash)
    }

    #[test]
    fn what_is_named_by_something_named_stays_and_the_rest_goes_when_it_is_old() {
        let mut marking =
            Marking::new(vec![blob(1, 100), blob(2, 100), blob(3, 100), blob(4, 100), blob(5, 10), blob(6, 1)]);
        let bodies: BTreeMap<BlobHash, Vec<u8>> = [
            (hash(1), [&b"snapshot of base "[..], &hash(2).0, b" and more"].concat()),
            (hash(2), [&hash(3).0[..], &hash(1).0].concat()),
            (hash(6), hash(5).0.to_vec()),
        ]
        .into();

        marking.handle_bytes(&[&b"notice: "[..], &hash(1).0].concat());
        marking.mark_young(Duration::from_secs(2 * 3_600));
        while let Some(hash) = marking.poll_body() {
            marking.handle_bytes(bodies.get(&hash).map_or(&[], Vec::as_slice));
        }

        assert_eq!(marking.named, BTreeSet::from([hash(1), hash(2), hash(3), hash(5), hash(6)]));
        assert_eq!(marking.unnamed(Duration::from_secs(80 * 3_600)), [blob(4, 100)]);
    }

    #[test]
    fn a_hash_is_found_wherever_it_stands_and_half_of_one_is_none() {
        for before in 0..9 {
            let mut marking = Marking::new(vec![blob(1, 100), blob(2, 100)]);
            let text = [&vec![1; before][..], &hash(1).0, &hash(2).0[..31]].concat();
            marking.handle_bytes(&text);
            assert_eq!(marking.named, BTreeSet::from([hash(1)]), "{before}");
        }
    }
}
