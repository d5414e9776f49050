//! A registry, two edges with one log, and the links between them and one phone, in time that is moved by hand.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failure here fails the test")]

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::sync::Arc;
use std::time::Duration;

use phone::{Client, ClientConfig, HttpFault, Transmit};
use protocol::datagram::answer::Control;
use protocol::datagram::payload::as_sent;
use protocol::datagram::{Kid, NumberRanges, Suite};
use protocol::session::{
    AnswerTo, EdgeAddress, EdgeConfig, EdgeSessions, FleetKey, FleetKeys, Lifetime, OpenedDatagram, SessionGrant,
    SessionRef, SessionTerms, issue,
};
use protocol::{DeviceKey, DeviceNumber, DriverId, Fix, FixNumber, MeasuredTime, Position, TenantId, Time};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

#[derive(Clone, Copy, Debug)]
pub struct LinkQuality {
    pub loss_percent: u32,
    pub doubled_percent: u32,
    pub delay_ms_max: i64,
    pub dead: bool,
}

impl LinkQuality {
    pub const GOOD: LinkQuality = LinkQuality { loss_percent: 2, doubled_percent: 1, delay_ms_max: 120, dead: false };
    pub const PERFECT: LinkQuality = LinkQuality { loss_percent: 0, doubled_percent: 0, delay_ms_max: 20, dead: false };
}

enum Event {
    AtEdge { edge: usize, bytes: Vec<u8>, request: Option<u64> },
    AtPhone(Vec<u8>),
    Response { request: u64, response: Result<Vec<u8>, HttpFault> },
    Durable { edge: usize, received: Received },
    Grant,
}

/// A datagram between being opened and being durable.
struct Received {
    session: SessionRef,
    answer_to: Option<AnswerTo>,
    ranges: NumberRanges,
    fixes: Vec<(FixNumber, Fix)>,
    request: Option<u64>,
}

pub struct World {
    pub now: Time,
    pub phone: Client,
    pub udp: LinkQuality,
    pub https_dead: bool,
    pub edges_down: [bool; 2],
    pub log_away: bool,
    pub registry_refuses: bool,
    /// Every answer is control, and says that the session is over.
    pub closes: bool,
    pub sessions_asked: u32,
    pub opened_by: [u64; 2],
    pub last_sid: Vec<u8>,
    pub taken: usize,
    rng: SmallRng,
    fleet_key: Arc<FleetKey>,
    keys: FleetKeys,
    edges: Vec<EdgeSessions>,
    events: BinaryHeap<Reverse<(Time, u64)>>,
    waiting: BTreeMap<u64, Event>,
    event_next: u64,
    start_s: u32,
    numbers_from: u64,
    measured_next: i64,
    /// Fixes that must end in the log, by time measured.
    wanted: BTreeSet<MeasuredTime>,
    /// The log, doubles dropped by number.
    log: BTreeMap<FixNumber, Fix>,
    acked: BTreeMap<FixNumber, Fix>,
    out: OpenedDatagram,
}

impl World {
    pub fn new(seed: u64, udp: LinkQuality) -> Self {
        println!("seed {seed}, {udp:?}");
        let fleet_key = Arc::new(FleetKey::new(Kid::new(3).unwrap(), &[7; 32]));
        let mut keys = FleetKeys::default();
        keys.set(fleet_key.clone());
        World {
            now: Time(1_790_000_000_000),
            phone: Client::new(client_config(seed)),
            udp,
            https_dead: false,
            edges_down: [false; 2],
            log_away: false,
            registry_refuses: false,
            closes: false,
            sessions_asked: 0,
            opened_by: [0; 2],
            last_sid: Vec::new(),
            taken: 0,
            rng: SmallRng::seed_from_u64(seed),
            fleet_key,
            edges: (0..2).map(|_| edge_with(&keys)).collect(),
            keys,
            events: BinaryHeap::new(),
            waiting: BTreeMap::new(),
            event_next: 0,
            start_s: 1_789_999_990,
            numbers_from: 1,
            measured_next: 17_900_000_000,
            wanted: BTreeSet::new(),
            log: BTreeMap::new(),
            acked: BTreeMap::new(),
            out: OpenedDatagram::default(),
        }
    }

    /// Takes `count` fixes, one at the end of each `interval`.
    pub fn drive(&mut self, count: usize, interval: Duration) {
        for _ in 0..count {
            let next = self.now + interval;
            self.run_until(next);
            let position = Position { lat_e7: 411_000_000 + self.taken as i32 * 500, lon_e7: -86_000_000 };
            let fix = Fix { speed_dm_s: Some(80), ..Fix::at(MeasuredTime(self.measured_next), position) };
            self.measured_next += 40;
            self.wanted.insert(fix.measured);
            self.taken += 1;
            self.phone.handle_fix(fix, self.now);
            self.collect();
        }
    }

    pub fn run_for(&mut self, duration: Duration) {
        self.run_until(self.now + duration);
    }

    /// Lets the phone settle; fails if it cannot within an hour.
    pub fn settle(&mut self) {
        let limit = self.now + Duration::from_secs(3600);
        while !self.phone.is_settled() {
            assert!(self.now < limit, "not settled: {:?}", self.phone.stats());
            self.run_for(Duration::from_secs(1));
        }
    }

    /// The app dies. Its memory is gone; its queue is too unless it was kept.
    pub fn restart(&mut self, keep_queue: bool) {
        let left = self.phone.queued_fixes();
        let mut phone = Client::new(client_config(self.rng.random()));
        if keep_queue {
            phone.restore(left);
        } else {
            left.iter().for_each(|queued| {
                self.wanted.remove(&queued.fix.measured);
            });
        }
        self.phone = phone;
        self.phone.handle_timeout(self.now);
        self.collect();
    }

    /// An edge dies and comes back, with all it knew gone. What was on its way to the log is gone too.
    pub fn restart_edge(&mut self, edge: usize) {
        self.edges[edge] = edge_with(&self.keys);
        self.waiting.retain(|_, event| !matches!(event, Event::Durable { edge: at, .. } if *at == edge));
        let left: BTreeSet<u64> = self.waiting.keys().copied().collect();
        self.events.retain(|Reverse((_, id))| left.contains(id));
    }

    /// The fleet key is lost and another is made, as after a restore: no edge opens a datagram of a session before.
    pub fn lose_fleet_key(&mut self) {
        self.fleet_key = Arc::new(FleetKey::new(Kid::new(1).unwrap(), &[8; 32]));
        self.keys = FleetKeys::default();
        self.keys.set(self.fleet_key.clone());
        (0..self.edges.len()).for_each(|edge| self.restart_edge(edge));
    }

    pub fn change_network(&mut self) {
        self.phone.handle_network_change(self.now);
        self.collect();
    }

    pub fn check_all_delivered(&self) {
        let logged: Vec<MeasuredTime> = self.log.values().map(|fix| fix.measured).collect();
        let distinct: BTreeSet<MeasuredTime> = logged.iter().copied().collect();
        assert_eq!(logged.len(), distinct.len(), "a fix went out under two numbers");
        for measured in &self.wanted {
            assert!(distinct.contains(measured), "the fix of {measured:?} is not in the log");
        }
    }

    fn run_until(&mut self, until: Time) {
        loop {
            let event_at = self.events.peek().map(|Reverse((at, _))| *at);
            let timeout = self.phone.poll_timeout().map(|at| at.max(self.now));
            let next = [event_at, timeout].into_iter().flatten().min().filter(|at| *at <= until);
            let Some(next) = next else { break };
            self.now = next;
            if event_at.is_some_and(|at| at <= self.now) {
                let Reverse((_, id)) = self.events.pop().unwrap();
                let event = self.waiting.remove(&id).unwrap();
                self.apply(event);
            } else {
                self.phone.handle_timeout(self.now);
                let again = self.phone.poll_timeout().is_some_and(|at| at <= self.now);
                assert!(!again, "the phone wants to be woken at once, again: {:?}", self.phone.stats());
            }
            self.collect();
        }
        self.now = until;
        self.phone.handle_timeout(until);
        self.collect();
    }

    fn apply(&mut self, event: Event) {
        match event {
            Event::AtEdge { edge, bytes, request } => self.open(edge, bytes, request),
            Event::AtPhone(bytes) => self.phone.handle_datagram(&bytes, self.now),
            Event::Response { request, response } => {
                let response = response.as_deref().map_err(|fault| *fault);
                self.phone.handle_http_response(request, response, self.now);
            }
            Event::Durable { edge, received } => self.answer(edge, received),
            Event::Grant => match self.registry_refuses {
                true => self.phone.handle_renewal_failed(true, self.now),
                false => {
                    let grant = self.grant();
                    self.phone.handle_grant(&grant, self.now).expect("the registry makes good ones");
                }
            },
        }
    }

    fn open(&mut self, edge: usize, mut bytes: Vec<u8>, request: Option<u64>) {
        let opened = self.edges[edge].handle_datagram(self.now, &mut bytes, &mut self.out);
        let Ok(opened) = opened else {
            if let Some(request) = request {
                self.later(1, Event::Response { request, response: Ok(Vec::new()) });
            }
            return;
        };
        self.opened_by[edge] += 1;
        let received = Received {
            session: opened.session,
            answer_to: self.out.answer_to,
            ranges: self.out.ranges(),
            fixes: self.out.fixes.clone(),
            request,
        };
        let linger_ms = if self.log_away { 1000 } else { self.rng.random_range(5..80) };
        self.later(linger_ms, Event::Durable { edge, received });
    }

    fn answer(&mut self, edge: usize, received: Received) {
        let sessions = &mut self.edges[edge];
        let sealed = if self.log_away || self.closes {
            let control = Control { log_away: self.log_away, closed: self.closes, ..Control::default() };
            received.answer_to.and_then(|to| sessions.seal_control(&to, control))
        } else {
            for (number, fix) in &received.fixes {
                let before = self.log.insert(*number, *fix);
                assert!(before.is_none_or(|before| before == *fix), "{number:?} was used for two fixes");
            }
            match received.answer_to {
                Some(to) => sessions.seal_ack(&to, &received.ranges),
                None => {
                    sessions.handle_durable(&received.session, &received.ranges);
                    None
                }
            }
        };
        match (sealed, received.request) {
            (Some(sealed), None) => self.over_udp(Event::AtPhone, &sealed),
            (Some(sealed), Some(request)) => {
                self.later(5, Event::Response { request, response: Ok(sealed.to_vec()) });
            }
            (None, Some(request)) => self.later(5, Event::Response { request, response: Ok(Vec::new()) }),
            (None, None) => {}
        }
    }

    /// Takes what the phone has to say, and checks what it believes.
    fn collect(&mut self) {
        while let Some(transmit) = self.phone.poll_transmit() {
            match transmit {
                Transmit::Udp { to, bytes } => {
                    assert!((40..=1200).contains(&bytes.len()));
                    self.last_sid = bytes[1..17].to_vec();
                    let edge = usize::from(to.port() - 1);
                    if !self.edges_down[edge] {
                        self.over_udp(|bytes| Event::AtEdge { edge, bytes, request: None }, &bytes);
                    }
                }
                Transmit::Https { request, url, pin, bytes } => {
                    let edge = if url.ends_with('0') { 0 } else { 1 };
                    assert_eq!(pin, Some([edge as u8; 32]));
                    if self.https_dead || self.edges_down[edge] {
                        self.later(200, Event::Response { request, response: Err(HttpFault::Failed) });
                    } else {
                        self.later(30, Event::AtEdge { edge, bytes, request: Some(request) });
                    }
                }
                Transmit::RenewSession => {
                    self.sessions_asked += 1;
                    self.later(50, Event::Grant);
                }
            }
        }
        while let Some((number, fix)) = self.phone.poll_acked() {
            assert_eq!(self.log.get(&number), Some(&as_sent(&fix)), "acknowledged before it was durable");
            assert!(self.acked.insert(number, fix).is_none(), "acknowledged twice");
        }
    }

    fn over_udp(&mut self, event: impl Fn(Vec<u8>) -> Event, bytes: &[u8]) {
        if self.udp.dead {
            return;
        }
        let copies = 1 + u32::from(self.rng.random_range(0..100) < self.udp.doubled_percent);
        for _ in 0..copies {
            if self.rng.random_range(0..100) >= self.udp.loss_percent {
                let delay_ms = self.rng.random_range(1..=self.udp.delay_ms_max);
                self.later(delay_ms, event(bytes.to_vec()));
            }
        }
    }

    fn later(&mut self, delay_ms: i64, event: Event) {
        let id = self.event_next;
        self.event_next += 1;
        self.events.push(Reverse((Time(self.now.0 + delay_ms), id)));
        self.waiting.insert(id, event);
    }

    fn grant(&mut self) -> SessionGrant {
        let device = DeviceKey { tenant: TenantId(1), driver: DriverId(2), device: DeviceNumber(3) };
        self.start_s = (self.start_s + 1).max(self.now.as_secs() as u32);
        let terms = SessionTerms {
            suite: Suite::Aes128Gcm,
            device,
            start_s: self.start_s,
            lifetime: Lifetime::MAX,
            numbers_from: FixNumber(self.numbers_from),
            edges: (0..2).map(address).collect(),
            ack_every: 8,
            interval_ms: 4000,
        };
        self.numbers_from += 32_768;
        issue(&self.fleet_key, &terms, self.now).unwrap()
    }
}

fn edge_with(keys: &FleetKeys) -> EdgeSessions {
    EdgeSessions::new(EdgeConfig { sessions_max: 100, ..EdgeConfig::default() }, keys.clone())
}

fn address(edge: u8) -> EdgeAddress {
    EdgeAddress {
        udp: format!("127.0.0.1:{}", edge + 1),
        https: format!("https://edge.example/{edge}"),
        pin: Some([edge; 32]),
    }
}

fn client_config(seed: u64) -> ClientConfig {
    ClientConfig { seed, report_acked: true, ..ClientConfig::default() }
}
