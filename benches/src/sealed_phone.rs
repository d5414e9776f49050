//! A phone that drives along a line and sends sealed datagrams of one fix each.

use std::net::{SocketAddr, UdpSocket};

use anyhow::{Context, Result};
use protocol::datagram::{DatagramKind, payload};
use protocol::session::{PhoneSession, SessionGrant};
use protocol::{Fix, FixNumber, MeasuredTime, Position};
use serde_json::json;

use crate::http::Http;
use crate::load::now;
use crate::server::{Enrolled, made};

pub struct SealedPhone {
    session: PhoneSession,
    number_next: u64,
    sent: u64,
    /// Where it is, in 10⁻⁷ degrees.
    pub lat_e7: i32,
    lon_e7: i32,
    payload: Vec<u8>,
    datagram: Vec<u8>,
    pub edge: SocketAddr,
}

impl SealedPhone {
    /// Takes a session at the API.
    pub async fn begin(http: &mut Http, enrolled: &Enrolled, at: Position) -> Result<SealedPhone> {
        let asked = json!({ "logged_in": true });
        let answer = http.call("POST", "/api/v1/sessions", Some(&enrolled.credential), Some(&asked)).await?;
        let grant: SessionGrant = serde_json::from_value(made(answer)?).context("read a session")?;
        let edge = grant.edges.first().context("a session lists an edge")?.udp.parse().context("an edge's address")?;
        let session = PhoneSession::new(&grant, now()).context("begin a session")?;
        Ok(SealedPhone {
            session,
            number_next: grant.numbers_from,
            sent: 0,
            lat_e7: at.lat_e7,
            lon_e7: at.lon_e7,
            payload: Vec::new(),
            datagram: Vec::new(),
            edge,
        })
    }

    /// Moves north by so much, and seals a fix from there.
    pub fn seal_next(&mut self, metres: f64, speed_m_s: f64) -> Result<()> {
        // The wire has steps of 10⁻⁶ degrees.
        self.lat_e7 += ((metres * E7_PER_METRE / 10.0).round() * 10.0) as i32;
        let position = Position { lat_e7: self.lat_e7, lon_e7: self.lon_e7 };
        let at = now();
        let mut fix = Fix::at(MeasuredTime::from_time(at), position);
        (fix.speed_dm_s, fix.heading_255, fix.accuracy_m) = (Some((speed_m_s * 10.0) as u16), Some(0), Some(5));
        let asks = self.sent.is_multiple_of(ACK_EVERY);
        let kind = if asks { DatagramKind::FixesAckWanted } else { DatagramKind::Fixes };
        self.payload.clear();
        let fixes = [(FixNumber(self.number_next), fix)];
        payload::encode_fixes(&mut self.payload, self.session.start_s(), asks.then_some(None), &fixes, 200);
        self.session.seal(kind, &self.payload, at, &mut self.datagram).context("seal a fix")?;
        self.number_next += 1;
        self.sent += 1;
        Ok(())
    }

    /// Sends the datagram that was sealed last.
    pub fn send(&self, socket: &UdpSocket) -> Result<()> {
        socket.send_to(&self.datagram, self.edge).context("send a datagram")?;
        Ok(())
    }
}

const ACK_EVERY: u64 = 8;
const E7_PER_METRE: f64 = 89.832; // 10⁷ × 360 / (2 π × 6,378,137 m)
