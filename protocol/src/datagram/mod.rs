//! The datagram, version 1: the bytes between a phone and an edge.
//!
//! `varint` and `payload` are what a datagram says, `answer` what an edge says back, `seal` the two ciphers that hide
//! both. Who holds which key is the business of `session`. Nothing here allocates except into buffers handed in.

pub mod answer;
pub mod payload;
pub mod ranges;
pub mod seal;
pub mod varint;

pub use answer::{Answer, Control};
pub use payload::{EncodedFixes, PayloadFault};
pub use ranges::NumberRanges;
pub use seal::{AeadKey, Suite};

/// What a datagram is, from its first byte: `001 kk ttt`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct FirstByte {
    /// Which of the four fleet keys sealed the session id.
    pub kid: Kid,
    pub kind: DatagramKind,
}

impl FirstByte {
    pub fn to_byte(self) -> u8 {
        FIXED_BITS | self.kid.0 << 3 | self.kind as u8
    }

    /// `None` where the fixed bits or the type are not ours.
    pub fn from_byte(byte: u8) -> Option<Self> {
        if byte & FIXED_BITS_MASK != FIXED_BITS {
            return None;
        }
        let kind = match byte & 7 {
            0 => DatagramKind::Fixes,
            1 => DatagramKind::FixesAckWanted,
            2 => DatagramKind::Ack,
            3 => DatagramKind::Ping,
            4 => DatagramKind::Control,
            _ => return None,
        };
        Some(FirstByte { kid: Kid(byte >> 3 & 3), kind })
    }
}

/// The types of datagram. A phone sends the odd ones when it wants an answer.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u8)]
pub enum DatagramKind {
    Fixes = 0,
    FixesAckWanted = 1,
    Ack = 2,
    Ping = 3,
    Control = 4,
}

impl DatagramKind {
    pub fn wants_answer(self) -> bool {
        match self {
            DatagramKind::FixesAckWanted | DatagramKind::Ping => true,
            DatagramKind::Fixes | DatagramKind::Ack | DatagramKind::Control => false,
        }
    }
}

/// Which fleet key: 0 to 3.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Kid(u8);

impl Kid {
    pub fn new(kid: u8) -> Option<Self> {
        (kid < KID_COUNT as u8).then_some(Kid(kid))
    }

    pub fn index(self) -> usize {
        usize::from(self.0)
    }

    pub fn as_u8(self) -> u8 {
        self.0
    }
}

/// The byte of a datagram that picks its thread: the first of the sealed session id, as good as random. A replay has
/// the same session id, so it meets the thread that has seen the original.
pub fn steer_byte(datagram: &[u8]) -> Option<u8> {
    datagram.get(STEER_BYTE_AT).copied()
}

/// Which of `thread_count` threads a datagram belongs to; the same whatever carried it.
pub fn thread_of(datagram: &[u8], thread_count: usize) -> usize {
    usize::from(steer_byte(datagram).unwrap_or(0)) % thread_count.max(1)
}

pub const KID_COUNT: usize = 4;
pub const STEER_BYTE_AT: usize = 1;
pub const SID_LEN: usize = 16;
pub const TAG_LEN: usize = 16;
/// First byte, sid, masked counter.
pub const HEADER_LEN: usize = 21;
/// A ping of three bytes of payload, the shortest there is.
pub const DATAGRAM_LEN_MIN: usize = 40;
/// Fits the smallest path that IPv6 promises, tunnels included.
pub const DATAGRAM_LEN_MAX: usize = 1200;
pub const PAYLOAD_LEN_MAX: usize = DATAGRAM_LEN_MAX - HEADER_LEN - TAG_LEN;
/// First byte, 4 random bytes, 4-byte count.
pub const ANSWER_HEADER_LEN: usize = 9;
/// Less than the shortest datagram, so that nobody gains by making us answer.
pub const ANSWER_LEN_MAX: usize = 37;
pub const ANSWER_PAYLOAD_LEN_MAX: usize = ANSWER_LEN_MAX - ANSWER_HEADER_LEN - TAG_LEN;
/// The counter's ticks per second.
pub const TICKS_PER_S: i64 = 16;

const FIXED_BITS: u8 = 0b0010_0000;
const FIXED_BITS_MASK: u8 = 0b1110_0000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_bytes_stay_between_0x20_and_0x3f_and_round_trip() {
        for byte in 0..=255u8 {
            if let Some(first) = FirstByte::from_byte(byte) {
                assert!((0x20..=0x3f).contains(&byte));
                assert_eq!(first.to_byte(), byte);
            }
        }
        assert_eq!((0..=255).filter(|b| FirstByte::from_byte(*b).is_some()).count(), KID_COUNT * 5);
    }

    #[test]
    fn an_empty_datagram_has_a_thread_too() {
        assert_eq!(thread_of(&[], 0), 0);
        assert_eq!(thread_of(&[0x20, 7], 4), 3);
    }
}
