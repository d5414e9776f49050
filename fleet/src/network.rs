//! A bad network between phones and edges: an address per phone and edge that passes datagrams on, loses some, sends
//! some twice, and lets them overtake each other. Each phone has its own, so that the edge sees it at one address.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use phone::Clock;
use phone::driver::Through;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use serde::Serialize;
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::warn;

/// What happens to datagrams, each way.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Conditions {
    /// The share that is lost.
    pub loss: f64,
    /// The share that comes twice.
    pub duplicate: f64,
    pub delay_ms_min: u32,
    /// Above the least: datagrams overtake each other.
    pub delay_ms_max: u32,
}

impl Conditions {
    pub const PERFECT: Conditions = Conditions { loss: 0.0, duplicate: 0.0, delay_ms_min: 0, delay_ms_max: 0 };

    pub fn is_perfect(&self) -> bool {
        *self == Conditions::PERFECT
    }
}

/// What the network did, both ways together.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
pub struct NetworkReport {
    pub datagrams_taken: u64,
    pub datagrams_lost: u64,
    pub datagrams_doubled: u64,
}

#[derive(Default)]
struct Counters {
    taken: AtomicU64,
    lost: AtomicU64,
    doubled: AtomicU64,
}

/// The network of one fleet.
pub struct Network {
    conditions: Conditions,
    clock: Arc<dyn Clock>,
    counters: Arc<Counters>,
}

impl Network {
    pub fn new(conditions: Conditions, clock: Arc<dyn Clock>) -> Self {
        Network { conditions, clock, counters: Arc::default() }
    }

    pub fn report(&self) -> NetworkReport {
        NetworkReport {
            datagrams_taken: self.counters.taken.load(Ordering::Relaxed),
            datagrams_lost: self.counters.lost.load(Ordering::Relaxed),
            datagrams_doubled: self.counters.doubled.load(Ordering::Relaxed),
        }
    }

    /// One phone's way to edges; it ends when the phone does. Must be used inside a tokio runtime.
    pub fn for_phone(&self, seed: u64) -> Option<Through> {
        if self.conditions.is_perfect() {
            return None;
        }
        let (conditions, clock, counters) = (self.conditions, self.clock.clone(), self.counters.clone());
        let doors: Mutex<HashMap<SocketAddr, SocketAddr>> = Mutex::default();
        let (alive, _) = watch::channel(());
        Some(Arc::new(move |edge| {
            let mut doors = doors.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            if let Some(door) = doors.get(&edge) {
                return *door;
            }
            let rng = SmallRng::seed_from_u64(seed.wrapping_add(doors.len() as u64));
            let (clock, counters) = (clock.clone(), counters.clone());
            let relay = Relay { conditions, clock, counters, rng, phone: None, under_way: BinaryHeap::new(), order: 0 };
            match relay.start(edge, alive.subscribe()) {
                Ok(door) => {
                    doors.insert(edge, door);
                    door
                }
                Err(error) => {
                    warn!(%error, "no socket for the bad network, this phone has a good one");
                    edge
                }
            }
        }))
    }
}

/// Between one phone and one edge.
struct Relay {
    conditions: Conditions,
    clock: Arc<dyn Clock>,
    counters: Arc<Counters>,
    rng: SmallRng,
    /// Where the phone last sent from.
    phone: Option<SocketAddr>,
    under_way: BinaryHeap<Reverse<UnderWay>>,
    order: u64,
}

#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
struct UnderWay {
    due: Instant,
    order: u64,
    is_to_edge: bool,
    bytes: Vec<u8>,
}

/// Everything that can wake a relay.
enum Wake {
    FromPhone(std::io::Result<(usize, SocketAddr)>),
    FromEdge(std::io::Result<usize>),
    Due,
    PhoneGone,
}

impl Relay {
    fn start(self, edge: SocketAddr, alive: watch::Receiver<()>) -> std::io::Result<SocketAddr> {
        let bound = || {
            let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
            socket.set_nonblocking(true)?;
            tokio::net::UdpSocket::from_std(socket)
        };
        let front = bound()?;
        let back = if edge.ip().is_loopback() {
            bound()?
        } else {
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
            socket.set_nonblocking(true)?;
            tokio::net::UdpSocket::from_std(socket)?
        };
        let door = front.local_addr()?;
        tokio::spawn(self.run(front, back, edge, alive));
        Ok(door)
    }

    async fn run(
        mut self,
        front: tokio::net::UdpSocket,
        back: tokio::net::UdpSocket,
        edge: SocketAddr,
        mut alive: watch::Receiver<()>,
    ) {
        let (mut from_phone, mut from_edge) = ([0; DATAGRAM_LEN_MAX], [0; DATAGRAM_LEN_MAX]);
        loop {
            let due = self.under_way.peek().map(|next| next.0.due);
            let wake = tokio::select! {
                received = front.recv_from(&mut from_phone) => Wake::FromPhone(received),
                received = back.recv(&mut from_edge) => Wake::FromEdge(received),
                () = tokio::time::sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => Wake::Due,
                _ = alive.changed() => Wake::PhoneGone,
            };
            match wake {
                Wake::FromPhone(Ok((len, phone))) => {
                    self.phone = Some(phone);
                    self.take(true, &from_phone[..len]);
                }
                Wake::FromEdge(Ok(len)) => self.take(false, &from_edge[..len]),
                // A closed port shows here on some systems; the phone finds out by silence.
                Wake::FromPhone(Err(_)) | Wake::FromEdge(Err(_)) => tokio::time::sleep(Duration::from_millis(1)).await,
                Wake::Due => {
                    while let Some(next) = self.pop_due(Instant::now()) {
                        // What cannot be sent is lost, as on any network.
                        let _ = match (next.is_to_edge, self.phone) {
                            (true, _) => back.send_to(&next.bytes, edge).await,
                            (false, Some(phone)) => front.send_to(&next.bytes, phone).await,
                            (false, None) => continue,
                        };
                    }
                }
                Wake::PhoneGone => return,
            }
        }
    }

    fn take(&mut self, is_to_edge: bool, bytes: &[u8]) {
        self.counters.taken.fetch_add(1, Ordering::Relaxed);
        let share = |share: f64| share.clamp(0.0, 1.0);
        if self.rng.random_bool(share(self.conditions.loss)) || self.under_way.len() >= UNDER_WAY_MAX {
            self.counters.lost.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let is_doubled = self.rng.random_bool(share(self.conditions.duplicate));
        self.counters.doubled.fetch_add(u64::from(is_doubled), Ordering::Relaxed);
        for _ in 0..1 + usize::from(is_doubled) {
            let Conditions { delay_ms_min, delay_ms_max, .. } = self.conditions;
            let delay_ms = self.rng.random_range(delay_ms_min..=delay_ms_max.max(delay_ms_min));
            let due = Instant::now() + self.clock.real(Duration::from_millis(delay_ms.into()));
            self.order += 1;
            self.under_way.push(Reverse(UnderWay { due, order: self.order, is_to_edge, bytes: bytes.to_vec() }));
        }
    }

    fn pop_due(&mut self, now: Instant) -> Option<UnderWay> {
        self.under_way.peek().filter(|next| next.0.due <= now)?;
        self.under_way.pop().map(|next| next.0)
    }
}

const DATAGRAM_LEN_MAX: usize = 2048;
const UNDER_WAY_MAX: usize = 4096;

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_bad_network_loses_doubles_and_mixes_both_ways_and_nothing_else() {
        let conditions = Conditions { loss: 0.2, duplicate: 0.1, delay_ms_min: 1, delay_ms_max: 20 };
        let network = Network::new(conditions, Arc::new(phone::SystemClock::default()));
        let edge = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let phone = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let through = network.for_phone(3).unwrap();
        let door = through(edge.local_addr().unwrap());

        let echo = tokio::spawn(async move {
            let mut buffer = [0; 64];
            loop {
                let (len, from) = edge.recv_from(&mut buffer).await.unwrap();
                edge.send_to(&buffer[..len], from).await.unwrap();
            }
        });
        let mut came = Vec::new();
        for n in 0..1000u32 {
            phone.send_to(&n.to_be_bytes(), door).await.unwrap();
            if n % 10 == 9 {
                came.extend(received(&phone, Duration::from_millis(5)).await);
            }
        }
        came.extend(received(&phone, Duration::from_millis(500)).await);
        echo.abort();

        let mut once = came.clone();
        once.sort_unstable();
        once.dedup();
        let report = network.report();
        assert_eq!(through(door), through(door));
        assert!((540..740).contains(&once.len()), "0.8 × 0.8 of 1,000 were to come, {} did", once.len());
        assert!(came.len() > once.len(), "none came twice");
        assert!(came.windows(2).any(|two| two[1] < two[0]), "none overtook another");
        assert!(report.datagrams_taken >= 1000 && report.datagrams_lost > 100 && report.datagrams_doubled > 50);
    }

    #[tokio::test]
    async fn a_good_network_needs_nobody_between() {
        let network = Network::new(Conditions::PERFECT, Arc::new(phone::SystemClock::default()));

        assert!(network.for_phone(1).is_none());
    }

    async fn received(phone: &tokio::net::UdpSocket, patience: Duration) -> Vec<u32> {
        let mut came = Vec::new();
        let mut buffer = [0; 64];
        while let Ok(Ok(len)) = tokio::time::timeout(patience, phone.recv(&mut buffer)).await {
            came.push(u32::from_be_bytes(buffer[..len].try_into().unwrap()));
        }
        came
    }
}
