//! Sealing answers: the one place where an edge makes nonces, and so the one that must never make the same twice.

use crate::datagram::answer::{Answer, AnswerSays};
use crate::datagram::{ANSWER_HEADER_LEN, ANSWER_LEN_MAX, AeadKey, DatagramKind, FirstByte, Kid, Suite, TAG_LEN};

/// Seals answers under nonces that no other thread, edge or start can use: four random bytes drawn for each run of
/// 2³² answers, and one count for all answers of a thread.
pub struct AnswerSealer {
    random: [u8; 4],
    count: u32,
    draw: Box<dyn FnMut() -> [u8; 4] + Send>,
    scratch: Vec<u8>,
}

impl std::fmt::Debug for AnswerSealer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AnswerSealer").field("count", &self.count).finish_non_exhaustive()
    }
}

impl AnswerSealer {
    pub fn from_system() -> Self {
        Self::new(Box::new(|| {
            let mut random = [0; 4];
            aws_lc_rs::rand::fill(&mut random).expect("the system's random source answers");
            random
        }))
    }

    pub fn new(mut draw: Box<dyn FnMut() -> [u8; 4] + Send>) -> Self {
        AnswerSealer { random: draw(), count: 0, draw, scratch: Vec::with_capacity(ANSWER_LEN_MAX) }
    }

    pub fn seal(&mut self, kid: Kid, suite: Suite, key: &AeadKey, answer: &Answer) -> SealedAnswer {
        let kind = match answer.says {
            AnswerSays::Ack(_) => DatagramKind::Ack,
            AnswerSays::Control(_) => DatagramKind::Control,
        };
        self.scratch.clear();
        answer.encode(&mut self.scratch);
        let text_len = self.scratch.len();
        let mut sealed = SealedAnswer { bytes: [0; ANSWER_LEN_MAX], len: ANSWER_HEADER_LEN + text_len + TAG_LEN };
        sealed.bytes[0] = FirstByte { kid, kind }.to_byte();
        sealed.bytes[1..5].copy_from_slice(&self.random);
        sealed.bytes[5..9].copy_from_slice(&self.count.to_be_bytes());
        let (header, rest) = sealed.bytes.split_at_mut(ANSWER_HEADER_LEN);
        let (text, tag) = rest.split_at_mut(text_len);
        text.copy_from_slice(&self.scratch);
        let nonce = key.answer_nonce(self.random, self.count);
        tag[..TAG_LEN].copy_from_slice(&key.seal(suite, nonce, header, text));
        self.step();
        sealed
    }

    fn step(&mut self) {
        self.count = self.count.wrapping_add(1);
        if self.count == 0 {
            self.random = (self.draw)();
        }
    }
}

/// The bytes of an answer, on the stack.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SealedAnswer {
    bytes: [u8; ANSWER_LEN_MAX],
    len: usize,
}

impl std::ops::Deref for SealedAnswer {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::datagram::answer::Control;

    #[test]
    fn a_wrapped_count_draws_new_random_bytes() {
        let mut next = 0u8;
        let mut sealer = AnswerSealer::new(Box::new(move || {
            next += 1;
            [next; 4]
        }));
        sealer.count = u32::MAX;
        let key = AeadKey { key: [1; 32], iv: [2; 12] };
        let kid = Kid::new(2).unwrap();
        let answer = Answer { counter_low: 5, says: AnswerSays::Control(Control::default()) };

        let last = sealer.seal(kid, Suite::ChaCha20Poly1305, &key, &answer);
        let first = sealer.seal(kid, Suite::ChaCha20Poly1305, &key, &answer);

        assert_eq!(last[1..9], [1, 1, 1, 1, 255, 255, 255, 255]);
        assert_eq!(first[1..9], [2, 2, 2, 2, 0, 0, 0, 0]);
        assert!(last.len() <= ANSWER_LEN_MAX);
    }
}
