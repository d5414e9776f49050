//! Random bytes at both doors: refused, never a panic, never an answer, and no memory taken.

mod common;

use common::{END_TO_END_SUITES, Pair, now};
use proptest::prelude::*;
use protocol::datagram::DatagramKind;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn an_edge_refuses_what_no_phone_sealed(first in 0x20u8..0x40, bytes in prop::collection::vec(any::<u8>(), 0..1300)) {
        let mut pair = Pair::new(END_TO_END_SUITES[0]);
        let mut datagram = bytes;
        datagram.insert(0, first);

        prop_assert!(pair.open(&datagram, now()).is_err());

        prop_assert!(pair.out.answer_to.is_none());
        prop_assert!(pair.edge.warm().is_empty());
    }

    #[test]
    fn a_real_session_id_with_garbage_behind_it_is_refused(bytes in prop::collection::vec(any::<u8>(), 19..1100)) {
        for suite in END_TO_END_SUITES {
            let mut pair = Pair::new(suite);
            let real = pair.seal(DatagramKind::FixesAckWanted, 1, now());
            let datagram = [&real[..21], &bytes[..]].concat();

            prop_assert!(pair.open(&datagram, now()).is_err());
            prop_assert!(pair.edge.warm().is_empty());
            prop_assert!(pair.phone.open_answer(&bytes).is_err());
        }
    }
}
