//! Who is connected: places in all, places for each address, and how much of what was answered an address has yet to
//! take. Shared by all doors of a process.
//!
//! An IPv6 address counts as its /64: that is what one subscriber gets, and what one attacker has without asking.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

/// All places. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Places(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    total: Arc<Semaphore>,
    per_address_max: usize,
    peers: Mutex<HashMap<IpAddr, Peer>>,
}

#[derive(Debug)]
struct Peer {
    count: usize,
    unread: Unread,
}

/// Why there is no place.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum NoPlace {
    InAll,
    ForThisAddress,
}

impl Places {
    /// `per_address_max` is bounded by half of all, so that no host can take every place.
    pub fn new(connections_max: usize, per_address_max: usize) -> Places {
        let total = connections_max.clamp(1, Semaphore::MAX_PERMITS);
        let per_address_max = per_address_max.clamp(1, total.div_ceil(2).max(1));
        let total = Arc::new(Semaphore::new(total));
        Places(Arc::new(Inner { total, per_address_max, peers: Mutex::default() }))
    }

    /// A place for a connection of this address. A trusted proxy brings many people: it is bounded by all places only.
    pub(super) fn take(&self, address: IpAddr, is_proxy: bool) -> Result<Place, NoPlace> {
        let permit = self.0.total.clone().try_acquire_owned().map_err(|_| NoPlace::InAll)?;
        let mut place = self.count(address, is_proxy)?;
        place.permit = Some(permit);
        Ok(place)
    }

    /// A place for what comes over somebody else's connection, which has one of its own.
    pub(super) fn take_within(&self, address: IpAddr) -> Result<Place, NoPlace> {
        self.count(address, false)
    }

    fn count(&self, address: IpAddr, is_proxy: bool) -> Result<Place, NoPlace> {
        let address = counted(address);
        let mut peers = self.0.peers.lock().unwrap_or_else(PoisonError::into_inner);
        let unread_max = if is_proxy { UNREAD_BYTES_MAX * PROXY_SHARES } else { UNREAD_BYTES_MAX };
        let peer = peers.entry(address).or_insert_with(|| Peer { count: 0, unread: Unread::new(unread_max) });
        if peer.count >= self.0.per_address_max && !is_proxy {
            return Err(NoPlace::ForThisAddress);
        }
        peer.count += 1;
        Ok(Place { places: self.clone(), address, unread: peer.unread.clone(), permit: None })
    }
}

fn counted(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => IpAddr::V4(address),
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from(u128::from(address) & !u128::from(u64::MAX))),
    }
}

/// One place, until it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    places: Places,
    address: IpAddr,
    unread: Unread,
    permit: Option<OwnedSemaphorePermit>,
}

impl Place {
    pub fn unread(&self) -> &Unread {
        &self.unread
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut peers = self.places.0.peers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(peer) = peers.get_mut(&self.address) {
            peer.count -= 1;
            if peer.count == 0 {
                peers.remove(&self.address);
            }
        }
        self.permit = None;
    }
}

/// What was made for one address and it has not taken. Answers that may be large have a share of their own, so that
/// they never keep small ones waiting: many people may share an address. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Unread {
    pub small: Share,
    pub large: Share,
}

impl Unread {
    fn new(max: usize) -> Self {
        Unread { small: Share::new(max), large: Share::new(max) }
    }
}

/// Bytes of answers, and room for so many. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Share(Arc<ShareInner>);

#[derive(Debug)]
struct ShareInner {
    bytes: AtomicUsize,
    max: usize,
    freed: Notify,
}

impl Share {
    fn new(max: usize) -> Self {
        Share(Arc::new(ShareInner { bytes: AtomicUsize::new(0), max, freed: Notify::new() }))
    }

    /// Waits until there is room for an answer of about `bytes`; one always finds room where nothing else is.
    /// Cancellation safe.
    pub async fn reserve(&self, bytes: usize) -> Reserved {
        let ShareInner { bytes: held, max, freed } = &*self.0;
        loop {
            let mut freed = std::pin::pin!(freed.notified());
            freed.as_mut().enable();
            let try_add = |held: usize| (held == 0 || held + bytes <= *max).then_some(held + bytes);
            if held.fetch_update(Ordering::AcqRel, Ordering::Acquire, try_add).is_ok() {
                return Reserved { share: self.clone(), bytes: AtomicUsize::new(bytes) };
            }
            freed.await;
        }
    }
}

/// What an answer holds of its address's share, until it is dropped.
#[derive(Debug)]
pub(super) struct Reserved {
    share: Share,
    bytes: AtomicUsize,
}

impl Reserved {
    /// It turned out to be so large.
    pub fn settle(&self, bytes: usize) {
        self.share.0.bytes.fetch_add(bytes, Ordering::AcqRel);
        let before = self.bytes.swap(bytes, Ordering::AcqRel);
        self.share.0.bytes.fetch_sub(before, Ordering::AcqRel);
        self.share.0.freed.notify_waiters();
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        self.share.0.bytes.fetch_sub(*self.bytes.get_mut(), Ordering::AcqRel);
        self.share.0.freed.notify_waiters();
    }
}

/// Of one address: a few of the largest answers, and as many bytes of small ones.
const UNREAD_BYTES_MAX: usize = 4 << 20;
/// A proxy's connections carry the answers of many.
const PROXY_SHARES: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn one_address_cannot_take_every_place_and_gives_back_what_it_took() {
        let places = Places::new(4, 100);
        let first: Vec<Place> = (0..2).map(|_| places.take(address("192.0.2.1"), false).unwrap()).collect();

        assert_eq!(places.take(address("192.0.2.1"), false).unwrap_err(), NoPlace::ForThisAddress);
        assert_eq!(places.take(address("::ffff:192.0.2.1"), false).unwrap_err(), NoPlace::ForThisAddress);
        let second = places.take(address("192.0.2.2"), false).unwrap();
        let third = places.take(address("192.0.2.3"), false).unwrap();
        assert_eq!(places.take(address("192.0.2.4"), false).unwrap_err(), NoPlace::InAll);

        drop((first, second, third));
        assert!(places.take(address("192.0.2.1"), false).is_ok());
        assert!(places.0.peers.lock().unwrap().is_empty(), "who has left is forgotten");
    }

    #[test]
    fn a_subscriber_s_network_counts_as_one_and_a_trusted_proxy_as_many() {
        let places = Places::new(10, 1);
        let _one = places.take(address("2001:db8::1"), false).unwrap();

        assert_eq!(places.take(address("2001:db8::ffff:2"), false).unwrap_err(), NoPlace::ForThisAddress);
        assert!(places.take(address("2001:db8:0:1::1"), false).is_ok());
        let proxied: Vec<Place> = (0..5).map(|_| places.take(address("10.0.0.1"), true).unwrap()).collect();
        assert_eq!(proxied.len(), 5);
    }

    #[tokio::test]
    async fn an_answer_waits_while_its_address_has_much_to_take() {
        let places = Places::new(10, 5);
        let place = places.take(address("192.0.2.1"), false).unwrap();
        let first = place.unread().large.reserve(10).await;
        first.settle(UNREAD_BYTES_MAX + 1);
        let _small = place.unread().small.reserve(10).await;

        let second = place.unread().large.reserve(10);
        tokio::pin!(second);
        assert!(futures_poll_once(&mut second).await.is_none());
        drop(first);

        assert_eq!(second.await.bytes.load(Ordering::Acquire), 10);
    }

    async fn futures_poll_once<F: Future + Unpin>(future: &mut F) -> Option<F::Output> {
        tokio::select! {
            biased;
            done = future => Some(done),
            () = std::future::ready(()) => None,
        }
    }
}
