//! Maps and tables kept, opened and checked on a local folder, with a blob store that is there, away or wrong.

use std::sync::atomic::{AtomicU32, Ordering};

use async_trait::async_trait;
use backends::blob_store::embedded::FolderBlobStore;
use maps::Graph;
use maps::import::{ImportOptions, import_bytes};
use maps::town::{self, TownOptions};
use protocol::Time;

use super::files::{FILES_RECENT, STATES_NAMED, TABLE};
use super::*;
use crate::shard::fold_bodies::FoldBodies;

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_cannot_be_kept_on_disk_is_used_all_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let (local, blobs) = local_bodies(folder.path());
    std::fs::write(folder.path().join("bodies"), b"no folder can be made here").unwrap();
    let hash = blobs.put(Bytes::from_static(b"a table")).await.unwrap();

    assert_eq!(local.table(hash, local.stop()).await.unwrap(), b"a table".as_slice());
}

#[tokio::test(flavor = "multi_thread")]
async fn files_that_no_kept_state_names_go_but_for_the_last_few() {
    let folder = tempfile::tempdir().unwrap();
    let (local, blobs) = local_bodies(folder.path());
    let mut hashes = Vec::new();
    for i in 0..60_u32 {
        let hash = blobs.put(Bytes::from(i.to_le_bytes().to_vec())).await.unwrap();
        local.table(hash, local.stop()).await.unwrap();
        hashes.push(hash);
    }
    let there = |hash: &BlobHash| folder.path().join("bodies").join(format!("{hash}.{TABLE}")).exists();
    assert!(hashes.iter().all(there));

    local.handle_snapshot_kept(PartitionId(0), vec![hashes[3]]).await;

    assert!(there(&hashes[3]) && hashes[60 - FILES_RECENT..].iter().all(there));
    assert_eq!(hashes.iter().filter(|hash| there(hash)).count(), FILES_RECENT + 1);
    for _ in 0..STATES_NAMED {
        local.handle_snapshot_kept(PartitionId(0), vec![hashes[59]]).await;
    }
    assert!(!there(&hashes[3]), "the states that named it are not kept any more");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_damaged_on_disk_is_fetched_again() {
    let folder = tempfile::tempdir().unwrap();
    let (local, blobs) = local_bodies(folder.path());
    let hash = blobs.put(Bytes::from_static(b"a table")).await.unwrap();
    local.table(hash, local.stop()).await.unwrap();
    std::fs::write(folder.path().join("bodies").join(format!("{hash}.{TABLE}")), b"a tab").unwrap();

    assert_eq!(local.table(hash, local.stop()).await.unwrap(), b"a table".as_slice());
}

#[tokio::test(flavor = "multi_thread")]
async fn offered_tables_are_refused_where_they_are_broken_or_of_another_map() {
    let folder = tempfile::tempdir().unwrap();
    let (local, blobs) = local_bodies(folder.path());
    let bytes = |seed| {
        let options = TownOptions { seed, junctions: 60, ..TownOptions::default() };
        import_bytes(&town::extract(&options), &ImportOptions::default()).unwrap()
    };
    let (here, other) = (bytes(1), Graph::from_bytes(&bytes(2)).unwrap());
    let map = blobs.put(here.clone().into()).await.unwrap();
    let here = Graph::from_bytes(&here).unwrap();
    let mut partition = crate::track::Partition::new(PartitionId(0), protocol::Offset(0), Default::default());
    let in_use = protocol::Record::InUse { kind: BodyKind::Map, hash: map };
    let batch = protocol::RecordBatch { records: vec![in_use] };
    let bodies = FoldBodies::new(local.clone(), CancellationToken::new());
    let fold = move || {
        partition.handle_entry(protocol::Offset(0), &batch, &bodies, &mut crate::track::Effects::default());
        partition
    };
    let partition = tokio::task::spawn_blocking(fold).await.unwrap();
    let factors = |graph: &Graph| Bytes::from(LiveFactors::usual(graph, Time(0)).to_bytes());
    let check = async |body: Bytes| {
        let hash = blobs.put(body).await.unwrap();
        local.check((BodyKind::LiveSpeeds, hash), partition.regions(), local.stop()).await
    };

    assert!(check(factors(&here)).await.is_ok());
    assert!(matches!(check(factors(&other)).await, Err(BodyError::Table(TableError::OtherMap))));
    assert!(matches!(check(Bytes::from_static(b"?")).await, Err(BodyError::Table(TableError::Malformed))));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_map_is_published_though_the_blob_store_is_away_for_a_moment_and_refused_if_it_is_broken() {
    let folder = tempfile::tempdir().unwrap();
    let blobs = FolderBlobStore::open(folder.path().join("blobs")).unwrap();
    let away = Arc::new(Away { blobs, calls: AtomicU32::new(0) });
    let local = LocalBodies::new(away.clone(), folder.path().join("bodies"), CancellationToken::new());
    let bytes = import_bytes(&town::extract(&TownOptions::default()), &ImportOptions::default()).unwrap();
    let (whole, cut) = (folder.path().join("whole.wfm"), folder.path().join("cut.wfm"));
    std::fs::write(&whole, &bytes).unwrap();
    std::fs::write(&cut, &bytes[..bytes.len() / 2]).unwrap();

    let (hash, size) = local.publish(&whole).await.expect("it waits for the store");
    let refused = local.publish(&cut).await.unwrap_err();
    let missing = local.publish(&folder.path().join("none.wfm")).await.unwrap_err();

    assert_eq!((hash, size), (hash_of(&bytes), bytes.len() as u64));
    assert!(away.blobs.contains(hash).await.unwrap());
    assert!(refused.is_of_body() && !missing.is_of_body(), "{refused} and {missing}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_map_in_use_is_opened_from_memory_where_the_disk_is_full_and_an_offered_one_waits() {
    let folder = tempfile::tempdir().unwrap();
    let (local, blobs) = local_bodies(folder.path());
    let bytes = import_bytes(&town::extract(&TownOptions::default()), &ImportOptions::default()).unwrap();
    let hash = blobs.put(bytes.into()).await.unwrap();
    let blocker = folder.path().join("bodies");
    std::fs::write(&blocker, b"no folder can be made here").unwrap();

    let offered = local.check((BodyKind::Map, hash), &[], local.stop()).await.unwrap_err();
    let in_use = local.load_until(hash, local.stop()).await;

    assert!(offered.is_of_disk() && !offered.is_of_body() && !offered.is_given_up(), "{offered}");
    assert!(in_use.unwrap().graph.edge_count() > 0);

    std::fs::remove_file(&blocker).unwrap();
    let (later, _) = local_bodies(folder.path());
    assert!(later.check((BodyKind::Map, hash), &[], later.stop()).await.is_ok());
    assert!(later.path_of(hash).exists());
}

#[tokio::test]
async fn a_write_that_fails_leaves_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    let files = files::BodyFiles::new(folder.path().join("bodies"));
    let path = files.table(BlobHash([1; 32]));
    std::fs::create_dir_all(path.join("a folder stands where the file should be")).unwrap();

    assert!(files.keep(path, Bytes::from_static(b"a table")).await.is_err());

    assert_eq!(std::fs::read_dir(folder.path().join("bodies")).unwrap().count(), 1);
}

/// There for one call, away for the next, for a while.
struct Away {
    blobs: FolderBlobStore,
    calls: AtomicU32,
}

impl Away {
    fn reach(&self) -> Result<(), BlobStoreError> {
        let call = self.calls.fetch_add(1, Ordering::SeqCst);
        if call < 6 && call.is_multiple_of(2) {
            return Err(BlobStoreError::Unavailable { reason: "a moment".to_string() });
        }
        Ok(())
    }
}

#[async_trait]
impl BlobStore for Away {
    async fn put(&self, body: Bytes) -> Result<BlobHash, BlobStoreError> {
        self.reach()?;
        self.blobs.put(body).await
    }

    async fn get(&self, hash: BlobHash) -> Result<Bytes, BlobStoreError> {
        self.reach()?;
        self.blobs.get(hash).await
    }

    async fn contains(&self, hash: BlobHash) -> Result<bool, BlobStoreError> {
        self.reach()?;
        self.blobs.contains(hash).await
    }

    async fn remove(&self, hash: BlobHash) -> Result<(), BlobStoreError> {
        self.reach()?;
        self.blobs.remove(hash).await
    }
}

fn local_bodies(folder: &Path) -> (Arc<LocalBodies>, Arc<FolderBlobStore>) {
    let blobs = Arc::new(FolderBlobStore::open(folder.join("blobs")).unwrap());
    let local = LocalBodies::new(blobs.clone(), folder.join("bodies"), CancellationToken::new());
    (Arc::new(local), blobs)
}
