//! The blob store in a folder: a file per body, named by its hash. A body is written under another name, synced, renamed
//! and its folder synced, so that a name in the folder always stands for the whole body.

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use aws_lc_rs::digest;
use aws_lc_rs::rand;
use bytes::Bytes;
use daemon::Clock;
use protocol::record::BlobHash;

use super::{BLOB_BYTES_MAX, BlobStore, BlobStoreError, ListedBlob, SweptBlobStore};

#[derive(Clone, Debug)]
pub struct FolderBlobStore {
    folder: PathBuf,
    bytes_max: u64,
}

impl FolderBlobStore {
    /// Opens the folder, or makes it, and clears what puts that were interrupted long ago have left.
    pub fn open(folder: impl Into<PathBuf>) -> Result<Self, BlobStoreError> {
        let store = FolderBlobStore { folder: folder.into(), bytes_max: BLOB_BYTES_MAX };
        std::fs::create_dir_all(store.unfinished()).map_err(|error| unavailable(&error))?;
        store.clear_unfinished().map_err(|error| unavailable(&error))?;
        Ok(store)
    }

    /// Not those of a put that another process may have under way.
    fn clear_unfinished(&self) -> std::io::Result<()> {
        for file in std::fs::read_dir(self.unfinished())? {
            let file = file?;
            // A sweep that was interrupted: the name goes back, and the next sweep looks again.
            let removed = file.file_name().to_str().and_then(|name| hash_from(name.strip_suffix("-removed")?));
            if let Some(hash) = removed {
                std::fs::rename(file.path(), self.path(hash))?;
                continue;
            }
            let age = age_of(&file.metadata()?)?;
            if age > UNFINISHED_AGE_MAX {
                std::fs::remove_file(file.path())?;
            }
        }
        Ok(())
    }

    fn unfinished(&self) -> PathBuf {
        self.folder.join("unfinished")
    }

    /// Two digits name a folder, so that none grows too large to list.
    fn path(&self, hash: BlobHash) -> PathBuf {
        let name = hash.to_string();
        self.folder.join(&name[..2]).join(name)
    }

    fn write(&self, body: &[u8]) -> Result<BlobHash, BlobStoreError> {
        let bytes = body.len() as u64;
        if bytes > self.bytes_max {
            return Err(BlobStoreError::TooLarge { bytes });
        }
        let hash = hash_of(body);
        match self.read(hash) {
            // Whoever put it first may not have synced it yet, and whoever sweeps is not to take it for old.
            Ok(_) if self.renew(hash) && self.sync(hash).is_ok() => {}
            Ok(_) => self.place(hash, body).map_err(|error| unavailable(&error))?,
            Err(BlobStoreError::NotFound { .. } | BlobStoreError::Damaged { .. }) => {
                self.place(hash, body).map_err(|error| unavailable(&error))?;
            }
            Err(error) => return Err(error),
        }
        Ok(hash)
    }

    fn place(&self, hash: BlobHash, body: &[u8]) -> std::io::Result<()> {
        let mut random = [0; 8];
        rand::fill(&mut random).map_err(|_| std::io::Error::other("the system has no randomness to give"))?;
        let unfinished = self.unfinished().join(format!("{hash}-{:016x}", u64::from_be_bytes(random)));
        let placed = write_synced(&unfinished, body).and_then(|()| self.finish(&unfinished, hash));
        if placed.is_err() {
            // It would be cleared in a day; a full disk wants it gone sooner.
            let _may_be_gone = std::fs::remove_file(&unfinished);
        }
        placed
    }

    fn finish(&self, unfinished: &Path, hash: BlobHash) -> std::io::Result<()> {
        let path = self.path(hash);
        let folder = path.parent().unwrap_or(&self.folder);
        if !folder.try_exists()? {
            std::fs::create_dir_all(folder)?;
            sync_folder(&self.folder)?;
        }
        std::fs::rename(unfinished, &path)?;
        sync_folder(folder)
    }

    fn sync(&self, hash: BlobHash) -> std::io::Result<()> {
        let path = self.path(hash);
        File::open(&path)?.sync_all()?;
        sync_folder(path.parent().unwrap_or(&self.folder))?;
        sync_folder(&self.folder)
    }

    fn read(&self, hash: BlobHash) -> Result<Bytes, BlobStoreError> {
        let file = match File::open(self.path(hash)) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Err(BlobStoreError::NotFound { hash }),
            Err(error) => return Err(unavailable(&error)),
        };
        let length = file.metadata().map_err(|error| unavailable(&error))?.len();
        if length > self.bytes_max {
            return Err(BlobStoreError::Damaged { hash });
        }
        let mut body = Vec::with_capacity(length as usize);
        (&file).take(self.bytes_max + 1).read_to_end(&mut body).map_err(|error| unavailable(&error))?;
        if hash_of(&body) != hash {
            return Err(BlobStoreError::Damaged { hash });
        }
        Ok(Bytes::from(body))
    }

    /// Makes a body young again; false if it was being removed.
    fn renew(&self, hash: BlobHash) -> bool {
        let path = self.path(hash);
        let renewed = File::options().write(true).open(&path).and_then(|file| file.set_modified(SystemTime::now()));
        // Whoever removes takes the name away before looking at the age: still here means not removed.
        renewed.is_ok() && path.exists()
    }

    fn list_sorted(&self, after: Option<BlobHash>, limit: usize) -> std::io::Result<Vec<ListedBlob>> {
        let after = after.map(|hash| hash.to_string()).unwrap_or_default();
        let mut folders = names_in(&self.folder)?;
        folders.retain(|name| name.len() == 2 && **name >= after[..after.len().min(2)]);
        let mut listed = Vec::new();
        for folder in folders {
            let mut names = names_in(&self.folder.join(&folder))?;
            names.retain(|name| *name > after);
            for name in names {
                if listed.len() >= limit {
                    return Ok(listed);
                }
                let Some(hash) = hash_from(&name) else { continue };
                // Removed meanwhile, it is on no list.
                let Ok(metadata) = std::fs::metadata(self.path(hash)) else { continue };
                let age = age_of(&metadata)?;
                listed.push(ListedBlob { hash, bytes: metadata.len(), age });
            }
        }
        Ok(listed)
    }

    fn read_begin(&self, hash: BlobHash, bytes: usize) -> Result<Bytes, BlobStoreError> {
        let read = |file: File| {
            let mut begin = Vec::with_capacity(bytes);
            file.take(bytes as u64).read_to_end(&mut begin).map(|_| Bytes::from(begin))
        };
        match File::open(self.path(hash)).and_then(read) {
            Ok(begin) => Ok(begin),
            Err(error) if error.kind() == ErrorKind::NotFound => Err(BlobStoreError::NotFound { hash }),
            Err(error) => Err(unavailable(&error)),
        }
    }

    /// Takes the name away first: a `put` that comes now places the body anew, and one that came before has made it young.
    fn unlink_old(&self, hash: BlobHash, longer_ago: Duration) -> std::io::Result<bool> {
        let (path, aside) = (self.path(hash), self.unfinished().join(format!("{hash}-removed")));
        match std::fs::rename(&path, &aside) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
            renamed => renamed?,
        }
        let age = age_of(&std::fs::metadata(&aside)?)?;
        let is_old = age >= longer_ago;
        if is_old || path.exists() {
            std::fs::remove_file(&aside)?;
        } else {
            std::fs::rename(&aside, &path)?;
        }
        sync_folder(path.parent().unwrap_or(&self.folder))?;
        Ok(is_old)
    }

    fn unlink(&self, hash: BlobHash) -> std::io::Result<()> {
        let path = self.path(hash);
        match std::fs::remove_file(&path) {
            Ok(()) => sync_folder(path.parent().unwrap_or(&self.folder)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Files are read and written off the runtime's threads.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Self) -> Result<T, BlobStoreError> + Send + 'static,
    ) -> Result<T, BlobStoreError> {
        let store = self.clone();
        let working = tokio::task::spawn_blocking(move || work(&store));
        working.await.unwrap_or_else(|error| Err(BlobStoreError::Unavailable { reason: error.to_string() }))
    }
}

#[async_trait]
impl BlobStore for FolderBlobStore {
    async fn put(&self, body: Bytes) -> Result<BlobHash, BlobStoreError> {
        self.blocking(move |store| store.write(&body)).await
    }

    async fn get(&self, hash: BlobHash) -> Result<Bytes, BlobStoreError> {
        self.blocking(move |store| store.read(hash)).await
    }

    async fn contains(&self, hash: BlobHash) -> Result<bool, BlobStoreError> {
        self.blocking(move |store| store.path(hash).try_exists().map_err(|error| unavailable(&error))).await
    }

    async fn remove(&self, hash: BlobHash) -> Result<(), BlobStoreError> {
        self.blocking(move |store| store.unlink(hash).map_err(|error| unavailable(&error))).await
    }
}

#[async_trait]
impl SweptBlobStore for FolderBlobStore {
    async fn list(&self, after: Option<BlobHash>, limit: usize) -> Result<Vec<ListedBlob>, BlobStoreError> {
        self.blocking(move |store| store.list_sorted(after, limit).map_err(|error| unavailable(&error))).await
    }

    async fn begin_of(&self, hash: BlobHash, bytes: usize) -> Result<Bytes, BlobStoreError> {
        self.blocking(move |store| store.read_begin(hash, bytes)).await
    }

    async fn remove_old(&self, hash: BlobHash, longer_ago: Duration) -> Result<bool, BlobStoreError> {
        self.blocking(move |store| store.unlink_old(hash, longer_ago).map_err(|error| unavailable(&error))).await
    }
}

fn names_in(folder: &Path) -> std::io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        names.extend(entry?.file_name().into_string());
    }
    names.sort_unstable();
    Ok(names)
}

/// None: it is no body's name.
/// Since it was put last. A clock that was set forward makes nothing older for a day.
fn age_of(file: &std::fs::Metadata) -> std::io::Result<Duration> {
    let kept = UNIX_EPOCH + Duration::from_millis(Clock::system().kept_ms().max(0) as u64);
    Ok(kept.duration_since(file.modified()?).unwrap_or_default())
}

fn hash_from(name: &str) -> Option<BlobHash> {
    let mut hash = [0; 32];
    if name.len() != 64 || !name.is_ascii() {
        return None;
    }
    for (place, byte) in hash.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&name[2 * place..2 * place + 2], 16).ok()?;
    }
    Some(BlobHash(hash))
}

/// The name of a body.
pub fn hash_of(body: &[u8]) -> BlobHash {
    let mut hash = [0; 32];
    hash.copy_from_slice(digest::digest(&digest::SHA256, body).as_ref());
    BlobHash(hash)
}

fn write_synced(path: &Path, body: &[u8]) -> std::io::Result<()> {
    let mut file = File::create_new(path)?;
    file.write_all(body)?;
    file.sync_all()
}

/// A rename or removal is durable when its folder is.
#[cfg(unix)]
fn sync_folder(folder: &Path) -> std::io::Result<()> {
    File::open(folder)?.sync_all()
}

/// Elsewhere folders cannot be opened, and the system orders renames itself.
#[cfg(not(unix))]
fn sync_folder(_: &Path) -> std::io::Result<()> {
    Ok(())
}

fn unavailable(error: &std::io::Error) -> BlobStoreError {
    BlobStoreError::Unavailable { reason: error.to_string() }
}

const UNFINISHED_AGE_MAX: Duration = Duration::from_secs(24 * 3600);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::blob_store::conformance::{self, Instance};
    use tempfile::TempDir;

    struct InFolder {
        store: FolderBlobStore,
        folder: TempDir,
    }

    #[async_trait]
    impl Instance for InFolder {
        fn store(&self) -> &dyn SweptBlobStore {
            &self.store
        }

        async fn reopen(self: Box<Self>) -> Box<dyn Instance> {
            let store = FolderBlobStore::open(self.folder.path().join("blobs")).unwrap();
            Box::new(InFolder { store, folder: self.folder })
        }
    }

    #[tokio::test]
    async fn a_folder_keeps_the_contract() {
        conformance::suite(|| async { Box::new(fresh()) as Box<dyn Instance> }).await;
    }

    #[tokio::test]
    async fn a_damaged_body_is_never_answered_and_put_again_it_is_whole() {
        let InFolder { store, folder: _folder } = fresh();
        let body = Bytes::from(vec![3; 1000]);
        let hash = store.put(body.clone()).await.unwrap();

        let damages: [fn(&mut Vec<u8>); 4] =
            [|bytes| bytes[500] ^= 1, |bytes| bytes.truncate(999), |bytes| bytes.push(0), |bytes| bytes.clear()];
        for damage in damages {
            let mut bytes = body.to_vec();
            damage(&mut bytes);
            std::fs::write(store.path(hash), bytes).unwrap();

            assert!(matches!(store.get(hash).await, Err(BlobStoreError::Damaged { .. })));

            assert_eq!(store.put(body.clone()).await.unwrap(), hash);
            assert_eq!(store.get(hash).await.unwrap(), body);
        }
    }

    #[tokio::test]
    async fn a_body_put_again_while_it_is_swept_is_there_afterwards() {
        let InFolder { store, folder: _folder } = fresh();
        let body = Bytes::from(vec![3; 1000]);
        let hash = store.put(body.clone()).await.unwrap();
        for round in 0..200 {
            let long_ago = SystemTime::now() - Duration::from_secs(1_000);
            File::options().write(true).open(store.path(hash)).unwrap().set_modified(long_ago).unwrap();

            let (put, swept) = tokio::join!(store.put(body.clone()), store.remove_old(hash, Duration::from_secs(500)));

            assert_eq!(put.unwrap(), hash);
            swept.unwrap();
            assert_eq!(store.get(hash).await.unwrap(), body, "round {round}");
        }
        assert_eq!(std::fs::read_dir(store.unfinished()).unwrap().count(), 0);
    }

    #[tokio::test]
    async fn what_is_old_and_only_that_is_removed_as_such() {
        let InFolder { store, folder: _folder } = fresh();
        let hash = store.put(Bytes::from_static(b"body")).await.unwrap();
        let hour = Duration::from_secs(3_600);
        assert!(!store.remove_old(hash, hour).await.unwrap());
        let set_age = |age| {
            let at = SystemTime::now() - age;
            File::options().write(true).open(store.path(hash)).unwrap().set_modified(at).unwrap();
        };
        set_age(hour * 2);
        assert!(store.list(None, 10).await.unwrap()[0].age >= hour);
        store.put(Bytes::from_static(b"body")).await.unwrap();
        assert!(store.list(None, 10).await.unwrap()[0].age < hour, "put again it is young");
        assert!(!store.remove_old(hash, hour).await.unwrap());
        set_age(hour * 2);

        assert!(store.remove_old(hash, hour).await.unwrap());

        assert!(!store.contains(hash).await.unwrap());
        assert!(!store.remove_old(hash, hour).await.unwrap());
    }

    #[tokio::test]
    async fn what_is_too_large_is_refused_both_ways() {
        let InFolder { mut store, folder: _folder } = fresh();
        let hash = store.put(Bytes::from(vec![3; 1000])).await.unwrap();
        store.bytes_max = 999;

        let refused = store.put(Bytes::from(vec![3; 1000])).await;

        assert!(matches!(refused, Err(BlobStoreError::TooLarge { bytes: 1000 })), "{refused:?}");
        assert!(matches!(store.get(hash).await, Err(BlobStoreError::Damaged { .. })));
        assert!(store.put(Bytes::from(vec![4; 999])).await.is_ok());
    }

    #[tokio::test]
    async fn a_put_that_was_interrupted_leaves_nothing_that_counts() {
        let InFolder { store, folder } = fresh();
        let hash = hash_of(b"whole");
        let [old, young] = ["old", "young"].map(|name| store.unfinished().join(name));
        for path in [&old, &young] {
            std::fs::write(path, b"who").unwrap();
        }
        let long_ago = SystemTime::now() - 2 * UNFINISHED_AGE_MAX;
        File::options().write(true).open(&old).unwrap().set_modified(long_ago).unwrap();

        let again = FolderBlobStore::open(folder.path().join("blobs")).unwrap();

        assert!(!again.contains(hash).await.unwrap());
        assert!(!old.exists() && young.exists(), "another process may be at the young one");
        again.put(Bytes::from_static(b"whole")).await.unwrap();
        assert_eq!(std::fs::read_dir(again.unfinished()).unwrap().count(), 1);
    }

    #[tokio::test]
    async fn a_folder_that_cannot_be_written_is_unavailable_and_not_a_loss() {
        let InFolder { store, folder: _folder } = fresh();
        let hash = store.put(Bytes::from_static(b"kept")).await.unwrap();
        std::fs::remove_dir_all(store.unfinished()).unwrap();
        std::fs::write(store.unfinished(), b"in the way").unwrap();

        let refused = store.put(Bytes::from_static(b"new")).await;

        assert!(refused.is_err_and(|error| error.is_transient()));
        assert_eq!(store.get(hash).await.unwrap(), &b"kept"[..]);
    }

    fn fresh() -> InFolder {
        let folder = tempfile::tempdir().unwrap();
        InFolder { store: FolderBlobStore::open(folder.path().join("blobs")).unwrap(), folder }
    }
}
