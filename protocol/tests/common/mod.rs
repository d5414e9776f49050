//! A phone's session and an edge that can open it.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failure here fails the test")]
#![allow(dead_code, reason = "each test binary uses a part")]

use std::sync::Arc;

use protocol::datagram::payload::{Ping, encode_fixes};
use protocol::datagram::{DatagramKind, Kid, PAYLOAD_LEN_MAX, Suite};
use protocol::session::{
    EdgeConfig, EdgeSessions, FleetKey, FleetKeys, Lifetime, Opened, OpenedDatagram, PhoneSession, RefuseReason,
    SessionTerms, issue,
};
use protocol::{DeviceKey, DeviceNumber, DriverId, Fix, FixNumber, MeasuredTime, PhoneState, Position, TenantId, Time};

pub const START_S: u32 = 1_790_000_000;
pub const END_TO_END_SUITES: [Suite; 2] = [Suite::ChaCha20Poly1305, Suite::Aes128Gcm];

pub fn now() -> Time {
    Time::from_secs(i64::from(START_S) + 10)
}

pub fn device() -> DeviceKey {
    DeviceKey { tenant: TenantId(3), driver: DriverId(44), device: DeviceNumber(5) }
}

pub fn fix_at(number: u64) -> Fix {
    let measured = MeasuredTime(i64::from(START_S) * 10 + 40 * number as i64);
    let position = Position { lat_e7: 411_414_120, lon_e7: -86_186_430 };
    Fix { speed_dm_s: Some(83), heading_255: Some(190), accuracy_m: Some(5), ..Fix::at(measured, position) }
}

pub struct Pair {
    pub suite: Suite,
    pub fleet_key: Arc<FleetKey>,
    pub edge: EdgeSessions,
    pub phone: PhoneSession,
    pub out: OpenedDatagram,
}

impl Pair {
    pub fn new(suite: Suite) -> Self {
        let fleet_key = Arc::new(FleetKey::new(Kid::new(1).unwrap(), &[9; 32]));
        let mut keys = FleetKeys::default();
        keys.set(fleet_key.clone());
        let edge = EdgeSessions::new(EdgeConfig { sessions_max: 64, ..EdgeConfig::default() }, keys);
        let phone = session(&fleet_key, suite, START_S, now());
        Pair { suite, fleet_key, edge, phone, out: OpenedDatagram::default() }
    }

    pub fn session(&self, start_s: u32, phones_now: Time) -> PhoneSession {
        session(&self.fleet_key, self.suite, start_s, phones_now)
    }

    pub fn renew(&mut self, start_s: u32, phones_now: Time) {
        self.phone = self.session(start_s, phones_now);
    }

    pub fn seal(&mut self, kind: DatagramKind, number: u64, now: Time) -> Vec<u8> {
        self.seal_many(kind, number, 1, now)
    }

    pub fn seal_many(&mut self, kind: DatagramKind, first: u64, count: u64, now: Time) -> Vec<u8> {
        let mut payload = Vec::new();
        if kind == DatagramKind::Ping {
            Ping { lowest_held: None, state: PhoneState(0) }.encode(&mut payload);
        } else {
            let lowest = kind.wants_answer().then_some(Some(FixNumber(first)));
            let fixes: Vec<_> = (first..first + count).map(|n| (FixNumber(n), fix_at(n))).collect();
            let encoded = encode_fixes(&mut payload, START_S, lowest, &fixes, PAYLOAD_LEN_MAX);
            assert_eq!(encoded.count as u64, count);
        }
        let mut datagram = Vec::new();
        self.phone.seal(kind, &payload, now, &mut datagram).expect("in time");
        datagram
    }

    pub fn open(&mut self, bytes: &[u8], now: Time) -> Result<Opened, RefuseReason> {
        let mut bytes = bytes.to_vec();
        self.edge.handle_datagram(now, &mut bytes, &mut self.out)
    }
}

fn session(fleet_key: &FleetKey, suite: Suite, start_s: u32, phones_now: Time) -> PhoneSession {
    let terms = SessionTerms {
        suite,
        device: device(),
        start_s,
        lifetime: Lifetime::MAX,
        numbers_from: FixNumber(1),
        edges: vec![],
        ack_every: 8,
        interval_ms: 4000,
    };
    PhoneSession::new(&issue(fleet_key, &terms, now()).unwrap(), phones_now).unwrap()
}
