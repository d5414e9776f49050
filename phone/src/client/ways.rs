//! Which edge, and by what: UDP while it works, HTTPS at once when three datagrams in a row went unanswered, the next
//! edge when that fails too, and UDP again as soon as it answers a probe.

use std::net::SocketAddr;
use std::time::Duration;

use protocol::Time;
use protocol::session::EdgeAddress;

/// One edge as the phone uses it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Edge {
    pub udp: Option<SocketAddr>,
    pub https: Option<HttpsEdge>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HttpsEdge {
    pub url: String,
    pub pin: Option<[u8; 32]>,
}

impl Edge {
    fn of(address: &EdgeAddress) -> Option<Self> {
        let udp = address.udp.parse().ok();
        let https = (!address.https.is_empty())
            .then(|| HttpsEdge { url: address.https.trim_end_matches('/').to_string(), pin: address.pin });
        (udp.is_some() || https.is_some()).then_some(Edge { udp, https })
    }
}

/// Where the next datagram goes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Destination {
    Udp { edge: usize, address: SocketAddr },
    Https { edge: usize, https: HttpsEdge },
}

impl Destination {
    pub fn edge(&self) -> usize {
        match self {
            Destination::Udp { edge, .. } | Destination::Https { edge, .. } => *edge,
        }
    }
}

/// The choice.
#[derive(Debug, Default)]
pub struct Ways {
    edges: Vec<Edge>,
    edge: usize,
    fallback: Option<Fallback>,
    /// Requests that failed since anything was last answered, and when the next may be made.
    failures: u32,
    https_from: Option<Time>,
    /// How many edges have been given up, by UDP and by HTTPS, since anything was last answered.
    edges_given_up: usize,
}

#[derive(Debug)]
struct Fallback {
    /// On this edge.
    failures: u32,
    probe_at: Time,
    probe_every: Duration,
}

impl Ways {
    /// False if none of the addresses can be used. The way in use stays if its edge is still listed.
    pub fn set_edges(&mut self, addresses: &[EdgeAddress], now: Time) -> bool {
        let edges: Vec<Edge> = addresses.iter().filter_map(Edge::of).take(EDGES_MAX).collect();
        if edges.is_empty() {
            return false;
        }
        let current = self.edges.get(self.edge);
        match current.and_then(|current| edges.iter().position(|edge| edge == current)) {
            Some(at) => self.edge = at,
            None => {
                self.edge = 0;
                self.fallback = None;
            }
        }
        self.edges = edges;
        self.edges_given_up = 0;
        self.without_udp(now);
        true
    }

    pub fn destination(&self) -> Option<Destination> {
        let edge = self.edges.get(self.edge)?;
        match (&self.fallback, edge.udp, &edge.https) {
            (Some(_), _, Some(https)) => Some(Destination::Https { edge: self.edge, https: https.clone() }),
            (_, Some(address), _) => Some(Destination::Udp { edge: self.edge, address }),
            (None, None, Some(https)) => Some(Destination::Https { edge: self.edge, https: https.clone() }),
            (_, None, None) => None,
        }
    }

    /// When a datagram may go to the destination; a failing server is not hammered.
    pub fn open_from(&self) -> Option<Time> {
        match self.destination()? {
            Destination::Udp { .. } => None,
            Destination::Https { .. } => self.https_from,
        }
    }

    pub fn in_fallback(&self) -> bool {
        self.fallback.is_some()
    }

    /// Every edge has been tried by all its ways under this session, and none has answered.
    pub fn all_silent(&self) -> bool {
        self.edges_given_up >= self.edges.len().max(1)
    }

    /// UDP has been silent for three datagrams.
    pub fn handle_silence(&mut self, now: Time) {
        let has_https = self.edges.get(self.edge).is_some_and(|edge| edge.https.is_some());
        if has_https {
            self.fallback =
                Some(Fallback { failures: 0, probe_at: now + PROBE_EVERY_MIN, probe_every: PROBE_EVERY_MIN });
        } else {
            self.next_edge(now);
        }
    }

    /// A request has failed. True if that was enough to go to the next edge.
    pub fn handle_https_failure(&mut self, now: Time) -> bool {
        self.failures = self.failures.saturating_add(1);
        self.https_from = Some(now + RETRY_AFTER_MIN * (1 << self.failures.min(6) >> 1));
        let Some(fallback) = &mut self.fallback else { return false };
        fallback.failures += 1;
        if fallback.failures < HTTPS_FAILURES_MAX {
            return false;
        }
        self.next_edge(now);
        true
    }

    pub fn handle_https_answer(&mut self) {
        self.forget_failures();
        if let Some(fallback) = &mut self.fallback {
            fallback.failures = 0;
        }
    }

    /// UDP answers: back to it.
    pub fn handle_udp_answer(&mut self) {
        self.forget_failures();
        self.fallback = None;
    }

    /// Another network: what was learned about the old one says nothing.
    pub fn handle_network_change(&mut self, now: Time) {
        self.forget_failures();
        self.fallback = None;
        self.without_udp(now);
    }

    pub fn probe_due(&self) -> Option<Time> {
        let edge = self.edges.get(self.edge)?;
        edge.udp?;
        self.fallback.as_ref().map(|fallback| fallback.probe_at)
    }

    /// Where to probe; the next probe waits twice as long.
    pub fn take_probe(&mut self, now: Time) -> Option<Destination> {
        let address = self.edges.get(self.edge)?.udp?;
        let fallback = self.fallback.as_mut()?;
        fallback.probe_every = (fallback.probe_every * 2).min(PROBE_EVERY_MAX);
        fallback.probe_at = now + fallback.probe_every;
        Some(Destination::Udp { edge: self.edge, address })
    }

    fn forget_failures(&mut self) {
        (self.failures, self.https_from, self.edges_given_up) = (0, None, 0);
    }

    fn next_edge(&mut self, now: Time) {
        self.edges_given_up = self.edges_given_up.saturating_add(1);
        self.edge = (self.edge + 1) % self.edges.len().max(1);
        self.fallback = None;
        self.without_udp(now);
    }

    fn without_udp(&mut self, now: Time) {
        if self.edges.get(self.edge).is_some_and(|edge| edge.udp.is_none()) && self.fallback.is_none() {
            self.handle_silence(now);
        }
    }
}

const EDGES_MAX: usize = 16;
const HTTPS_FAILURES_MAX: u32 = 2;
/// 1 s, 2 s, … 32 s.
const RETRY_AFTER_MIN: Duration = Duration::from_secs(1);
const PROBE_EVERY_MIN: Duration = Duration::from_secs(15);
const PROBE_EVERY_MAX: Duration = Duration::from_secs(240);

#[cfg(test)]
mod tests {
    use super::*;

    fn address(n: u8) -> EdgeAddress {
        EdgeAddress { udp: format!("127.0.0.{n}:443"), https: format!("https://127.0.0.{n}"), pin: None }
    }

    #[test]
    fn silence_leads_to_https_then_to_the_next_edge_and_round() {
        let mut ways = Ways::default();
        assert!(ways.set_edges(&[address(1), address(2)], Time(0)));
        let mut seen = Vec::new();

        for _ in 0..2 {
            seen.push(ways.destination().unwrap());
            ways.handle_silence(Time(0));
            seen.push(ways.destination().unwrap());
            assert!(!ways.handle_https_failure(Time(0)));
            assert!(ways.handle_https_failure(Time(0)));
        }

        let kinds: Vec<_> = seen.iter().map(|d| (matches!(d, Destination::Udp { .. }), d.edge())).collect();
        assert_eq!(kinds, [(true, 0), (false, 0), (true, 1), (false, 1)]);
        assert_eq!(ways.destination().unwrap().edge(), 0);
    }

    #[test]
    fn udp_is_probed_and_taken_back_when_it_answers() {
        let mut ways = Ways::default();
        ways.set_edges(&[address(1)], Time(0));
        assert_eq!(ways.probe_due(), None);
        ways.handle_silence(Time(0));

        assert_eq!(ways.probe_due(), Some(Time(15_000)));
        assert!(matches!(ways.take_probe(Time(15_000)), Some(Destination::Udp { .. })));
        assert_eq!(ways.probe_due(), Some(Time(45_000)));
        ways.handle_udp_answer();
        assert!(matches!(ways.destination(), Some(Destination::Udp { .. })));
    }

    #[test]
    fn an_edge_without_udp_is_used_by_https_and_one_with_neither_not_at_all() {
        let mut ways = Ways::default();
        let neither = EdgeAddress { udp: "not an address".into(), https: String::new(), pin: None };
        assert!(!ways.set_edges(std::slice::from_ref(&neither), Time(0)));

        let only_https = EdgeAddress { udp: String::new(), ..address(3) };
        assert!(ways.set_edges(&[neither, only_https], Time(0)));

        assert!(matches!(ways.destination(), Some(Destination::Https { edge: 0, .. })));
        assert_eq!(ways.probe_due(), None);
    }
}
