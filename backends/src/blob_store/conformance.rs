//! What every blob store must do. The suite panics, naming the promise, where one is broken.

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use protocol::record::BlobHash;

use super::{BlobStoreError, SweptBlobStore};

/// One store with what lies under it.
#[async_trait]
pub trait Instance: Send {
    fn store(&self) -> &dyn SweptBlobStore;

    /// The same store, as a new process finds it.
    async fn reopen(self: Box<Self>) -> Box<dyn Instance>;
}

/// Runs all checks; `make` gives a fresh store.
pub async fn suite<F>(make: impl Fn() -> F)
where
    F: Future<Output = Box<dyn Instance>>,
{
    bodies_come_back_under_the_hash_of_their_content(make().await).await;
    what_is_not_there_is_said_so(make().await).await;
    putting_again_changes_nothing(make().await).await;
    removing_is_final_and_may_be_repeated(make().await).await;
    the_same_body_put_at_once_is_one(make().await).await;
    a_list_has_every_body_once_page_by_page(make().await).await;
    a_young_body_is_not_removed_as_old(make().await).await;
}

async fn a_list_has_every_body_once_page_by_page(instance: Box<dyn Instance>) {
    assert_eq!(instance.store().list(None, 10).await.expect("a list"), []);
    let mut put = Vec::new();
    for n in 0..100u32 {
        let body = Bytes::from(vec![7; n as usize]);
        put.push((instance.store().put(body).await.expect("put"), u64::from(n)));
    }
    put.sort_unstable();

    let mut listed = Vec::new();
    loop {
        let page = instance.store().list(listed.last().map(|(hash, _)| *hash), 7).await.expect("a list");
        let is_last = page.len() < 7;
        for blob in page {
            assert!(blob.age < Duration::from_secs(3_600), "{:?}", blob.age);
            listed.push((blob.hash, blob.bytes));
        }
        if is_last {
            break;
        }
    }

    assert_eq!(listed, put);
    let (gone, _) = put.remove(50);
    instance.store().remove(gone).await.expect("removed");
    let left = instance.store().list(None, 1_000).await.expect("a list");
    assert_eq!(
        left.iter().map(|blob| blob.hash).collect::<Vec<_>>(),
        put.iter().map(|(hash, _)| *hash).collect::<Vec<_>>()
    );
}

async fn a_young_body_is_not_removed_as_old(instance: Box<dyn Instance>) {
    let body = Bytes::from_static(b"young");
    let hash = instance.store().put(body.clone()).await.expect("put");

    let is_removed = instance.store().remove_old(hash, Duration::from_secs(3_600)).await.expect("asked");

    assert!(!is_removed);
    assert_eq!(instance.store().get(hash).await.expect("a body"), body);
    assert_eq!(instance.store().begin_of(hash, 3).await.expect("its begin"), &b"you"[..]);
    assert_eq!(instance.store().begin_of(hash, 99).await.expect("its begin"), body);
    assert!(instance.store().remove_old(hash, Duration::ZERO).await.expect("asked"));
    assert!(!instance.store().contains(hash).await.expect("asked"));
}

async fn bodies_come_back_under_the_hash_of_their_content(instance: Box<dyn Instance>) {
    let bodies = [Bytes::new(), Bytes::from_static(b"abc"), Bytes::from(vec![0; 3 << 20])];
    let mut hashes = Vec::new();
    for body in &bodies {
        hashes.push(instance.store().put(body.clone()).await.expect("put"));
    }

    let instance = instance.reopen().await;

    assert_eq!(hashes[1].to_string(), SHA256_OF_ABC, "the name is SHA-256");
    for (hash, body) in hashes.iter().zip(&bodies) {
        assert_eq!(&instance.store().get(*hash).await.expect("a body"), body);
        assert!(instance.store().contains(*hash).await.expect("asked"));
    }
}

async fn what_is_not_there_is_said_so(instance: Box<dyn Instance>) {
    let hash = BlobHash([7; 32]);

    assert!(!instance.store().contains(hash).await.expect("asked"));
    let answer = instance.store().get(hash).await;
    assert!(matches!(answer, Err(BlobStoreError::NotFound { hash: missing }) if missing == hash), "{answer:?}");
}

async fn putting_again_changes_nothing(instance: Box<dyn Instance>) {
    let body = Bytes::from_static(b"twice");
    let first = instance.store().put(body.clone()).await.expect("put");

    let second = instance.store().put(body.clone()).await.expect("put");

    assert_eq!(first, second);
    assert_eq!(instance.store().get(first).await.expect("a body"), body);
}

async fn removing_is_final_and_may_be_repeated(instance: Box<dyn Instance>) {
    let kept = instance.store().put(Bytes::from_static(b"kept")).await.expect("put");
    let hash = instance.store().put(Bytes::from_static(b"gone")).await.expect("put");

    instance.store().remove(hash).await.expect("removed");
    instance.store().remove(hash).await.expect("removing again is fine");

    let instance = instance.reopen().await;
    assert!(!instance.store().contains(hash).await.expect("asked"));
    assert!(instance.store().contains(kept).await.expect("asked"));
    instance.store().put(Bytes::from_static(b"gone")).await.expect("put again");
    assert!(instance.store().contains(hash).await.expect("asked"));
}

async fn the_same_body_put_at_once_is_one(instance: Box<dyn Instance>) {
    let body = Bytes::from(vec![9; 100_000]);
    let store = instance.store();

    let (a, b, c) = tokio::join!(store.put(body.clone()), store.put(body.clone()), store.put(body.clone()));

    let (a, b, c) = (a.expect("put"), b.expect("put"), c.expect("put"));
    assert!(a == b && b == c);
    assert_eq!(store.get(a).await.expect("a body"), body);
}

/// FIPS 180-2, appendix B.1.
const SHA256_OF_ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
