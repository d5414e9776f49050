//! The datagrams that want an answer and have none yet: how many may be under way, which are lost, and how long the
//! way has been silent.

use std::collections::VecDeque;
use std::time::Duration;

use protocol::{FixNumber, Time};

/// What carried a datagram.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Way {
    Udp,
    /// The number of the HTTPS request.
    Https(u64),
}

/// A datagram that asked for an answer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Asked {
    pub generation: u32,
    pub counter: u32,
    pub edge: usize,
    pub way: Way,
    pub sent: Time,
    pub numbers: Vec<FixNumber>,
    lost: bool,
}

impl Asked {
    pub fn new(generation: u32, counter: u32, edge: usize, way: Way, sent: Time, numbers: Vec<FixNumber>) -> Self {
        Asked { generation, counter, edge, way, sent, numbers, lost: false }
    }

    fn expires(&self) -> Time {
        self.sent
            + match self.way {
                Way::Udp => UDP_ANSWER_WITHIN,
                Way::Https(_) => HTTPS_ANSWER_WITHIN,
            }
    }
}

/// All of them, the lost ones too: an answer may still come.
#[derive(Debug)]
pub struct Flight {
    asked: VecDeque<Asked>,
    window: usize,
    halved_at: Time,
    unanswered: u32,
    lost: u64,
}

impl Default for Flight {
    fn default() -> Self {
        Flight { asked: VecDeque::new(), window: WINDOW_AT_FIRST, halved_at: Time(i64::MIN), unanswered: 0, lost: 0 }
    }
}

impl Flight {
    pub fn has_room(&self) -> bool {
        self.under_way() < self.window
    }

    pub fn under_way(&self) -> usize {
        self.asked.iter().filter(|asked| !asked.lost).count()
    }

    /// Datagrams lost since the last answer of any kind.
    pub fn unanswered(&self) -> u32 {
        self.unanswered
    }

    pub fn lost_total(&self) -> u64 {
        self.lost
    }

    pub fn push(&mut self, asked: Asked) {
        if self.asked.len() == REMEMBERED_MAX {
            self.asked.pop_front();
        }
        self.asked.push_back(asked);
    }

    /// An answer has come, whatever it says.
    pub fn handle_answer(&mut self, generation: u32, counter: u32) -> Option<Asked> {
        self.unanswered = 0;
        self.window = (self.window + 1).min(WINDOW_MAX);
        let at = self.asked.iter().position(|asked| asked.generation == generation && asked.counter == counter)?;
        self.asked.remove(at)
    }

    /// The numbers that were in datagrams now taken for lost.
    pub fn handle_timeout(&mut self, now: Time) -> Vec<FixNumber> {
        let mut lost = Vec::new();
        for at in 0..self.asked.len() {
            if !self.asked[at].lost && self.asked[at].expires() <= now {
                self.lose(at, now, &mut lost);
            }
        }
        lost
    }

    /// A request has failed: no need to wait.
    pub fn handle_failure(&mut self, way: Way, now: Time) -> Vec<FixNumber> {
        let mut lost = Vec::new();
        if let Some(at) = self.asked.iter().position(|asked| asked.way == way && !asked.lost) {
            self.lose(at, now, &mut lost);
        }
        lost
    }

    pub fn poll_timeout(&self) -> Option<Time> {
        self.asked.iter().filter(|asked| !asked.lost).map(Asked::expires).min()
    }

    /// The way has changed: what is on the old one no longer says anything about the window, but the next datagrams
    /// all ask until one is answered.
    pub fn start_over(&mut self, unanswered: u32) {
        self.unanswered = unanswered;
        self.asked.iter_mut().for_each(|asked| asked.lost = true);
        self.window = WINDOW_AT_FIRST;
    }

    fn lose(&mut self, at: usize, now: Time, lost: &mut Vec<FixNumber>) {
        let asked = &mut self.asked[at];
        asked.lost = true;
        lost.extend(&asked.numbers);
        self.lost += 1;
        self.unanswered = self.unanswered.saturating_add(1);
        // Datagrams sent before the last halving tell of the same loss.
        if asked.sent > self.halved_at {
            self.window = (self.window / 2).max(1);
            self.halved_at = now;
        }
    }
}

const WINDOW_AT_FIRST: usize = 8;
const WINDOW_MAX: usize = 16;
const REMEMBERED_MAX: usize = 64;
pub const UDP_ANSWER_WITHIN: Duration = Duration::from_secs(3);
const HTTPS_ANSWER_WITHIN: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(flight: &mut Flight, counter: u32, at_ms: i64) {
        flight.push(Asked::new(1, counter, 0, Way::Udp, Time(at_ms), vec![FixNumber(u64::from(counter))]));
    }

    #[test]
    fn the_window_begins_at_8_and_ends_at_16() {
        let mut flight = Flight::default();
        for counter in 0..8 {
            assert!(flight.has_room());
            ask(&mut flight, counter, 0);
        }
        assert!(!flight.has_room());

        for counter in 0..8 {
            assert!(flight.handle_answer(1, counter).is_some());
        }

        assert_eq!(flight.window, 16);
        flight.handle_answer(1, 99);
        assert_eq!(flight.window, 16);
    }

    #[test]
    fn one_loss_halves_once_however_many_datagrams_tell_of_it() {
        let mut flight = Flight::default();
        (0..6).for_each(|counter| ask(&mut flight, counter, 10));

        let lost = flight.handle_timeout(Time(3010));

        assert_eq!(lost.len(), 6);
        assert_eq!((flight.window, flight.unanswered(), flight.under_way()), (4, 6, 0));
        ask(&mut flight, 7, 4000);
        flight.handle_timeout(Time(7000));
        assert_eq!(flight.window, 2);
    }

    #[test]
    fn a_late_answer_still_stops_the_clock() {
        let mut flight = Flight::default();
        ask(&mut flight, 1, 0);
        flight.handle_timeout(Time(3000));

        assert!(flight.handle_answer(1, 1).is_some());

        assert_eq!(flight.unanswered(), 0);
    }
}
