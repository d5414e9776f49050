//! The claim that a datagram in steady state costs no heap allocation, from the opened bytes to the record.

#![expect(clippy::unwrap_used, reason = "a test may end where its ground gives way")]

use std::sync::Arc;

use edge::intake::judge::JudgeLimits;
use edge::intake::linger::LingerRule;
use edge::intake::{Intake, IntakeConfig, ParcelOutcome};
use protocol::datagram::{DatagramKind, Kid, Suite, payload};
use protocol::record::Door;
use protocol::session::{
    EdgeConfig, EdgeSessions, FleetKey, FleetKeys, Lifetime, OpenedDatagram, PhoneSession, SessionTerms, issue,
};
use protocol::{DeviceKey, DeviceNumber, DriverId, EdgeId, Fix, FixNumber, MeasuredTime, Position, TenantId, Time};

const T0: Time = Time(1_700_000_000_000);
const PHONES: usize = 500;

#[test]
fn an_accepted_datagram_costs_no_allocation() {
    let mut edge = Edge::new();
    let mut phones: Vec<PhoneSession> = (0..PHONES as u32).map(|driver| edge.phone(driver)).collect();
    // Sessions become warm, buffers find their size.
    let mut datagrams: Vec<Vec<u8>> = (0..4).flat_map(|round| seal_all(&mut phones, round)).collect();
    (0..4).for_each(|round| edge.take(&mut datagrams[round * PHONES..(round + 1) * PHONES]));
    let mut datagrams = seal_all(&mut phones, 4);

    let counted = allocation_counter::measure(|| edge.take(&mut datagrams));

    assert_eq!(edge.accepted, 5 * PHONES as u64);
    assert_eq!(counted.count_total, 0, "{counted:?}");
}

struct Edge {
    key: FleetKey,
    sessions: EdgeSessions,
    intake: Intake<()>,
    said: OpenedDatagram,
    accepted: u64,
}

impl Edge {
    fn new() -> Self {
        let kid = Kid::new(1).unwrap();
        let mut keys = FleetKeys::default();
        keys.set(Arc::new(FleetKey::new(kid, &[7; 32])));
        let config = IntakeConfig {
            edge: EdgeId(1),
            thread: 0,
            partition_count: 8,
            judge: JudgeLimits::default(),
            linger: LingerRule::None,
            parcel_bytes_max: 1 << 20,
            parcels_max: 4,
            runs_max: 100_000,
        };
        Edge {
            key: FleetKey::new(kid, &[7; 32]),
            sessions: EdgeSessions::new(EdgeConfig { sessions_max: 1000, ..EdgeConfig::default() }, keys),
            intake: Intake::new(config, T0),
            said: OpenedDatagram::default(),
            accepted: 0,
        }
    }

    fn phone(&self, driver: u32) -> PhoneSession {
        let terms = SessionTerms {
            suite: Suite::Aes128Gcm,
            device: DeviceKey { tenant: TenantId(1), driver: DriverId(driver), device: DeviceNumber(1) },
            start_s: T0.as_secs() as u32,
            lifetime: Lifetime::MAX,
            numbers_from: FixNumber(1),
            edges: Vec::new(),
            ack_every: 8,
            interval_ms: 4000,
        };
        PhoneSession::new(&issue(&self.key, &terms, T0).unwrap(), T0).unwrap()
    }

    /// Opens, judges, records, ships and settles.
    fn take(&mut self, datagrams: &mut [Vec<u8>]) {
        for bytes in datagrams {
            let opened = self.sessions.handle_datagram(T0, bytes, &mut self.said).expect("authentic");
            self.intake.handle_datagram(T0, &opened, &self.said, Door::Udp, ());
        }
        self.intake.handle_stop(T0);
        while let Some(parcel) = self.intake.poll_parcel() {
            self.intake.handle_settled(parcel.sequence, ParcelOutcome::Durable);
            self.intake.handle_returned(parcel);
        }
        while let Some((receipts, _)) = self.intake.poll_settled() {
            self.intake.handle_told(receipts);
        }
        self.accepted += self.intake.take_counts().fixes_accepted;
    }
}

/// One fix from each phone, every eighth asking for an ack.
fn seal_all(phones: &mut [PhoneSession], round: u64) -> Vec<Vec<u8>> {
    let seal = |(index, phone): (usize, &mut PhoneSession)| {
        let kind = if index % 8 == 0 { DatagramKind::FixesAckWanted } else { DatagramKind::Fixes };
        let position = Position { lat_e7: 411_500_000 + index as i32, lon_e7: -86_100_000 };
        let fix = Fix::at(MeasuredTime::from_time(T0), position);
        let mut text = Vec::new();
        let lowest = kind.wants_answer().then_some(None);
        payload::encode_fixes(&mut text, phone.start_s(), lowest, &[(FixNumber(1 + round), fix)], 1163);
        let mut bytes = Vec::new();
        phone.seal(kind, &text, T0, &mut bytes).unwrap();
        bytes
    };
    phones.iter_mut().enumerate().map(seal).collect()
}
