//! Load: datagrams of very many phones, sealed ahead, all of one length, and a sender that puts them on a socket as
//! fast as the kernel takes them (GSO: one call for up to 64 of them) or at a given rate.

use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::Context;
use daemon::Clock;
use protocol::datagram::{DatagramKind, FirstByte, Kid, Suite, payload, thread_of};
use protocol::session::{FleetKey, Lifetime, SessionRecord};
use protocol::{DeviceKey, DeviceNumber, DriverId, Fix, FixNumber, MeasuredTime, Position, TenantId, Time};
use quinn_udp::{Transmit, UdpSockRef, UdpSocketState};

/// Datagrams of one length, one behind the other. `rounds` from each of `phones`; within a round the phones come in an
/// order that no cache likes.
pub struct Load {
    pub bytes: Vec<u8>,
    pub each: usize,
}

/// How a load is made.
#[derive(Clone, Copy, Debug)]
pub struct LoadPlan {
    pub phones: u32,
    pub rounds: u32,
    /// Every so many rounds a phone asks for an ack.
    pub ack_every: u32,
    pub tenant: TenantId,
    pub now: Time,
}

impl Load {
    /// On all cores: sealing is dear.
    pub fn seal(kid: Kid, secret: &[u8; 32], plan: LoadPlan) -> Load {
        let fleet_key = FleetKey::new(kid, secret);
        let first = Sealer::new(&fleet_key, kid, plan, 0);
        let each = first.datagram(&plan, 0, DatagramKind::FixesAckWanted).len();
        let count = plan.phones as usize * plan.rounds as usize;
        let mut bytes = vec![0; count * each];
        let workers = std::thread::available_parallelism().map_or(1, usize::from);
        // Whole rounds lie one behind the other; each worker fills its phones' places in all of them.
        let mut rounds: Vec<&mut [u8]> = bytes.chunks_mut(plan.phones as usize * each).collect();
        let share = (plan.phones as usize).div_ceil(workers);
        let mut shares: Vec<Vec<&mut [u8]>> = (0..workers).map(|_| Vec::new()).collect();
        for round in rounds.drain(..) {
            for (worker, part) in round.chunks_mut(share * each).enumerate() {
                shares[worker].push(part);
            }
        }
        std::thread::scope(|scope| {
            for (worker, parts) in shares.into_iter().enumerate() {
                let fleet_key = &fleet_key;
                scope.spawn(move || seal_share(fleet_key, kid, plan, worker * share, each, parts));
            }
        });
        Load { bytes, each }
    }

    pub fn len(&self) -> usize {
        self.bytes.len() / self.each
    }

    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Those of some rounds.
    pub fn rounds(&self, plan: &LoadPlan, rounds: std::ops::Range<u32>) -> &[u8] {
        let round = plan.phones as usize * self.each;
        &self.bytes[rounds.start as usize * round..rounds.end as usize * round]
    }
}

fn seal_share(
    fleet_key: &FleetKey,
    kid: Kid,
    plan: LoadPlan,
    first_place: usize,
    each: usize,
    mut rounds: Vec<&mut [u8]>,
) {
    let places = rounds.first().map_or(0, |round| round.len() / each);
    for place in 0..places {
        let phone = scattered((first_place + place) as u32, plan.phones);
        let sealer = Sealer::new(fleet_key, kid, plan, phone);
        for (round, part) in (0..).zip(rounds.iter_mut()) {
            let asks = (round + phone).is_multiple_of(plan.ack_every);
            let kind = if asks { DatagramKind::FixesAckWanted } else { DatagramKind::Fixes };
            part[place * each..(place + 1) * each].copy_from_slice(&sealer.datagram(&plan, round, kind));
        }
    }
}

/// A walk over all phones that jumps about: the step has no factor in common with the count.
fn scattered(place: u32, phones: u32) -> u32 {
    let mut step = (u64::from(phones) * 618 / 1000).max(1);
    while gcd(step, u64::from(phones)) != 1 {
        step += 1;
    }
    (u64::from(place) * step % u64::from(phones)) as u32
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// One phone's session, without what only a phone needs.
struct Sealer {
    kid: Kid,
    sid: [u8; 16],
    mask: [u8; 4],
    key: protocol::datagram::AeadKey,
    start_s: u32,
}

impl Sealer {
    fn new(fleet_key: &FleetKey, kid: Kid, plan: LoadPlan, phone: u32) -> Self {
        let device = DeviceKey { tenant: plan.tenant, driver: DriverId(phone + 1), device: DeviceNumber(1) };
        let start_s = plan.now.as_secs() as u32 - START_AGO_S;
        let record = SessionRecord { suite: Suite::Aes128Gcm, start_s, lifetime: Lifetime::MAX, device, alias: 0 };
        let sid = fleet_key.seal_sid(&record).expect("the tenant fits");
        let keys = fleet_key.session_keys(&record.to_bytes().expect("the tenant fits"));
        Sealer { kid, sid, mask: fleet_key.mask(&sid), key: keys.phone_to_edge, start_s }
    }

    /// One fix, as long as any other: a byte for the unasked field keeps both kinds alike.
    fn datagram(&self, plan: &LoadPlan, round: u32, kind: DatagramKind) -> Vec<u8> {
        let measured = MeasuredTime::from_time(plan.now);
        let position = Position { lat_e7: 411_500_000, lon_e7: -86_100_000 };
        let mut fix = Fix::at(measured, position);
        (fix.speed_dm_s, fix.heading_255, fix.accuracy_m) = (Some(90), Some(17), Some(6));
        let asks = kind.wants_answer();
        if !asks {
            fix.battery_percent = Some(80);
        }
        let number = FixNumber(u64::from(NUMBERS_FROM + round));
        let mut out = vec![FirstByte { kid: self.kid, kind }.to_byte()];
        out.extend_from_slice(&self.sid);
        let counter = START_AGO_S * 16 + round;
        out.extend(counter.to_be_bytes().iter().zip(self.mask).map(|(c, m)| c ^ m));
        payload::encode_fixes(&mut out, self.start_s, asks.then_some(None), &[(number, fix)], 200);
        let (header, text) = out.split_at_mut(21);
        let tag = self.key.seal(Suite::Aes128Gcm, self.key.datagram_nonce(counter), header, text);
        out.extend_from_slice(&tag);
        out
    }
}

/// Puts datagrams on a socket.
pub struct Sender {
    socket: UdpSocket,
    state: UdpSocketState,
    to: SocketAddr,
    threads: usize,
}

impl Sender {
    /// The kernel steers what is sent in one call as one, so datagrams go out sorted by the thread they belong to; real
    /// phones send one each.
    pub fn new(to: SocketAddr, threads: usize) -> anyhow::Result<Self> {
        let socket = UdpSocket::bind("127.0.0.1:0").context("bind the sender")?;
        let state = UdpSocketState::new(UdpSockRef::from(&socket)).context("set the sender up")?;
        Ok(Sender { socket, state, to, threads })
    }

    /// Sends all of them, each of `each` bytes, at `per_s_max` at most. How long it took.
    pub fn send(&self, bytes: &[u8], each: usize, per_s_max: Option<f64>) -> Duration {
        let at_once = self.state.max_gso_segments().min(GSO_MAX) * each;
        let began = Instant::now();
        let mut sent = 0u64;
        let mut sorted: Vec<Vec<u8>> = vec![Vec::with_capacity(at_once); self.threads];
        for datagram in bytes.chunks(each) {
            let same = &mut sorted[thread_of(datagram, self.threads)];
            same.extend_from_slice(datagram);
            if same.len() == at_once {
                self.send_at_once(same, each);
                sent += (same.len() / each) as u64;
                same.clear();
                pause(began, sent, per_s_max);
            }
        }
        for same in sorted.iter().filter(|same| !same.is_empty()) {
            self.send_at_once(same, each);
        }
        began.elapsed()
    }

    fn send_at_once(&self, bytes: &[u8], each: usize) {
        let transmit = Transmit {
            destination: self.to,
            ecn: None,
            contents: bytes,
            segment_size: (bytes.len() > each).then_some(each),
            src_ip: None,
        };
        while self.state.try_send(UdpSockRef::from(&self.socket), &transmit).is_err() {
            std::thread::yield_now();
        }
    }
}

fn pause(began: Instant, sent: u64, per_s_max: Option<f64>) {
    let Some(per_s) = per_s_max else { return };
    let due = Duration::from_secs_f64(sent as f64 / per_s);
    while let Some(left) = due.checked_sub(began.elapsed()).filter(|left| !left.is_zero()) {
        std::thread::sleep(left.min(Duration::from_millis(1)));
    }
}

/// The clock all parts of a bench share.
pub fn now() -> Time {
    Time(Clock::system().now_ms())
}

/// Sessions began so long ago that rounds ahead of the clock are still before now.
const START_AGO_S: u32 = 3600;
/// All numbers take two bytes.
const NUMBERS_FROM: u32 = 1000;
const GSO_MAX: usize = 64;

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use protocol::session::{EdgeConfig, EdgeSessions, FleetKeys, OpenedDatagram};

    use super::*;

    #[test]
    fn every_datagram_of_a_load_is_authentic_and_of_one_length() {
        let kid = Kid::new(1).unwrap();
        let plan = LoadPlan { phones: 1000, rounds: 10, ack_every: 8, tenant: TenantId(1), now: now() };
        let mut load = Load::seal(kid, &[3; 32], plan);
        let mut keys = FleetKeys::default();
        keys.set(Arc::new(FleetKey::new(kid, &[3; 32])));
        let mut sessions = EdgeSessions::new(EdgeConfig { sessions_max: 1000, ..EdgeConfig::default() }, keys);
        let mut said = OpenedDatagram::default();
        let each = load.each;

        assert_eq!(load.len(), 10_000);
        let mut asked = 0;
        for datagram in load.bytes.chunks_mut(each) {
            sessions.handle_datagram(now(), datagram, &mut said).expect("authentic");
            asked += usize::from(said.answer_to.is_some());
        }

        assert_eq!(sessions.warm().len(), 1000);
        assert!((1100..1400).contains(&asked), "{asked}");
    }

    #[test]
    fn the_walk_meets_every_phone_once() {
        for phones in [1, 2, 10, 1000, 65_536] {
            let met: std::collections::BTreeSet<u32> = (0..phones).map(|place| scattered(place, phones)).collect();
            assert_eq!(met.len(), phones as usize);
        }
    }
}
