//! What an edge says back: which numbers are safe in the log, or how to go on. At most 12 bytes before sealing, so
//! that an answer is smaller than whatever it answers.

use super::ANSWER_PAYLOAD_LEN_MAX;
use super::ranges::{NumberRanges, NumberRun};
use super::varint::{self, Reader};

/// An answer to one datagram, named by the low 16 bits of its counter.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Answer {
    pub counter_low: u16,
    pub says: AnswerSays,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AnswerSays {
    /// These numbers, and none but these, are durable in the log.
    Ack(NumberRanges),
    Control(Control),
}

/// How the phone should go on.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Control {
    /// Take a new session at once.
    pub renew_now: bool,
    /// This session is over: take a new one, or enrol again if that is refused.
    pub closed: bool,
    /// The log is away: hold what is unacknowledged and stay on this transport.
    pub log_away: bool,
    /// How far apart datagrams should be; 0 says nothing about it.
    pub send_every_ms: u32,
}

impl Answer {
    /// Appends the answer's payload. Runs of an ack that do not fit are left out, the lowest stay.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let begin = out.len();
        out.extend_from_slice(&self.counter_low.to_be_bytes());
        match &self.says {
            AnswerSays::Ack(ranges) => {
                let mut next = 0;
                for run in ranges.runs() {
                    let end = out.len();
                    varint::put(out, run.first - next);
                    varint::put(out, u64::from(run.len));
                    if out.len() - begin > ANSWER_PAYLOAD_LEN_MAX {
                        out.truncate(end);
                        break;
                    }
                    next = run.last() + 1;
                }
            }
            AnswerSays::Control(control) => {
                let bit = |set: bool, bit: u8| if set { bit } else { 0 };
                out.push(
                    bit(control.renew_now, RENEW_NOW) | bit(control.closed, CLOSED) | bit(control.log_away, LOG_AWAY),
                );
                varint::put(out, u64::from(control.send_every_ms));
            }
        }
    }

    /// `None` for anything that `encode` would not have written.
    pub fn decode_ack(payload: &[u8]) -> Option<Self> {
        let mut reader = Reader::new(payload);
        let counter_low = read_counter_low(&mut reader)?;
        let mut ranges = NumberRanges::default();
        let mut next = 0u64;
        while !reader.is_empty() {
            let gap = reader.varint()?;
            let len = u32::try_from(reader.varint()?).ok()?;
            let first = next.checked_add(gap)?;
            if (gap == 0 && !ranges.is_empty()) || first == 0 || !ranges.insert(NumberRun { first, len }) {
                return None;
            }
            next = first.checked_add(u64::from(len))?;
        }
        Some(Answer { counter_low, says: AnswerSays::Ack(ranges) })
    }

    /// `None` for anything that `encode` would not have written.
    pub fn decode_control(payload: &[u8]) -> Option<Self> {
        let mut reader = Reader::new(payload);
        let counter_low = read_counter_low(&mut reader)?;
        let flags = reader.byte()?;
        let send_every_ms = u32::try_from(reader.varint()?).ok()?;
        if flags & !(RENEW_NOW | CLOSED | LOG_AWAY) != 0 || !reader.is_empty() {
            return None;
        }
        let control = Control {
            renew_now: flags & RENEW_NOW != 0,
            closed: flags & CLOSED != 0,
            log_away: flags & LOG_AWAY != 0,
            send_every_ms,
        };
        Some(Answer { counter_low, says: AnswerSays::Control(control) })
    }
}

fn read_counter_low(reader: &mut Reader<'_>) -> Option<u16> {
    Some(u16::from_be_bytes([reader.byte()?, reader.byte()?]))
}

const RENEW_NOW: u8 = 1;
const CLOSED: u8 = 2;
const LOG_AWAY: u8 = 4;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ack_of(counter_low: u16, runs: &[(u64, u32)]) -> Answer {
        let mut ranges = NumberRanges::default();
        for (first, len) in runs {
            assert!(ranges.insert(NumberRun { first: *first, len: *len }));
        }
        Answer { counter_low, says: AnswerSays::Ack(ranges) }
    }

    fn encoded(answer: &Answer) -> Vec<u8> {
        let mut bytes = Vec::new();
        answer.encode(&mut bytes);
        bytes
    }

    #[test]
    fn an_ack_names_runs_and_the_gaps_between_them() {
        let answer = ack_of(0x1234, &[(40_000, 8), (40_010, 1), (40_100, 3)]);

        let bytes = encoded(&answer);

        assert_eq!(bytes, [0x12, 0x34, 0xc0, 0xb8, 0x02, 8, 2, 1, 89, 3]);
        assert_eq!(Answer::decode_ack(&bytes), Some(answer));
    }

    #[test]
    fn an_ack_without_room_names_fewer_and_never_more() {
        let answer = ack_of(1, &[(1 << 40, 100_000), (1 << 41, 1), (1 << 42, 1)]);

        let bytes = encoded(&answer);

        assert!(bytes.len() <= ANSWER_PAYLOAD_LEN_MAX);
        assert_eq!(Answer::decode_ack(&bytes), Some(ack_of(1, &[(1 << 40, 100_000)])));
    }

    #[test]
    fn the_longest_control_fits() {
        let control = Control { renew_now: true, closed: true, log_away: true, send_every_ms: u32::MAX };
        let answer = Answer { counter_low: 9, says: AnswerSays::Control(control) };

        let bytes = encoded(&answer);

        assert!(bytes.len() <= ANSWER_PAYLOAD_LEN_MAX);
        assert_eq!(Answer::decode_control(&bytes), Some(answer));
    }

    proptest! {
        #[test]
        fn what_is_read_would_be_written_the_same(bytes in prop::collection::vec(any::<u8>(), 0..=12)) {
            if let Some(answer) = Answer::decode_ack(&bytes) {
                prop_assert_eq!(&encoded(&answer), &bytes);
            }
            if let Some(answer) = Answer::decode_control(&bytes) {
                prop_assert_eq!(&encoded(&answer), &bytes);
            }
        }
    }
}
