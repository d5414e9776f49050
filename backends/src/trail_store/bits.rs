//! Integers packed in groups of 32: each group has a width in which most of its values fit, and the few larger ones
//! follow with what is left of them. A column that hardly ever changes costs next to nothing, and one outlier does not
//! make its neighbours wide.
//!
//! A group is one byte, its width with the top bit set where larger values follow; the values, `width` bits each, from
//! the lowest bit on; then the count of larger values and, for each, its place and the bits above the width as a varint.

/// Appends the column.
pub(super) fn pack(values: &[u64], out: &mut Vec<u8>) {
    values.chunks(GROUP).for_each(|group| pack_group(group, out));
}

fn pack_group(group: &[u64], out: &mut Vec<u8>) {
    let width = best_width(group);
    let is_larger = |value: &u64| bits_of(*value) > width;
    let larger = group.iter().filter(|value| is_larger(value)).count();
    out.push(width as u8 | if larger > 0 { HAS_LARGER } else { 0 });
    let mask = if width == 64 { u64::MAX } else { (1 << width) - 1 };
    let (mut waiting, mut filled) = (0u128, 0);
    for value in group {
        waiting |= u128::from(value & mask) << filled;
        filled += width;
        while filled >= 8 {
            out.push(waiting as u8);
            waiting >>= 8;
            filled -= 8;
        }
    }
    if filled > 0 {
        out.push(waiting as u8);
    }
    if larger > 0 {
        out.push(larger as u8);
        for (place, value) in group.iter().enumerate().filter(|(_, value)| is_larger(value)) {
            out.push(place as u8);
            put_varint(value >> width, out);
        }
    }
}

/// The width that makes the group about shortest: each larger value is taken to be as large as the largest.
fn best_width(group: &[u64]) -> u32 {
    let widest = bits_of(group.iter().fold(0, |all, value| all | value));
    let mut of_length = [0u32; 65];
    group.iter().for_each(|value| of_length[bits_of(*value) as usize] += 1);
    let (mut best, mut best_bytes, mut larger) = (widest, u32::MAX, 0);
    for width in (0..=widest).rev() {
        let of_larger = if larger == 0 { 0 } else { 1 + larger * (1 + (widest - width).div_ceil(7)) };
        let bytes = (width * group.len() as u32).div_ceil(8) + of_larger;
        if bytes <= best_bytes {
            (best, best_bytes) = (width, bytes);
        }
        larger += of_length[width as usize];
    }
    best
}

/// Takes a column of so many values from the front; None where the bytes are none that `pack` wrote.
pub(super) fn unpack(bytes: &mut &[u8], count: usize) -> Option<Vec<u64>> {
    let mut values = Vec::with_capacity(count);
    while values.len() < count {
        let group = (count - values.len()).min(GROUP);
        unpack_group(bytes, group, &mut values)?;
    }
    Some(values)
}

fn unpack_group(bytes: &mut &[u8], count: usize, values: &mut Vec<u64>) -> Option<()> {
    let head = take_byte(bytes)?;
    let width = u32::from(head & !HAS_LARGER);
    if width > 64 {
        return None;
    }
    let (packed, rest) = bytes.split_at_checked((width as usize * count).div_ceil(8))?;
    let first = values.len();
    let mask = if width == 64 { u64::MAX } else { (1 << width) - 1 };
    let (mut waiting, mut filled) = (0u128, 0);
    let mut packed = packed.iter();
    for _ in 0..count {
        while filled < width {
            waiting |= u128::from(*packed.next()?) << filled;
            filled += 8;
        }
        values.push(waiting as u64 & mask);
        waiting >>= width;
        filled -= width;
    }
    *bytes = rest;
    if head & HAS_LARGER != 0 {
        for _ in 0..take_byte(bytes)? {
            let place = usize::from(take_byte(bytes)?);
            let above = take_varint(bytes)?.checked_shl(width).unwrap_or(0);
            *values[first..].get_mut(place)? |= above;
        }
    }
    Some(())
}

fn bits_of(value: u64) -> u32 {
    64 - value.leading_zeros()
}

fn put_varint(mut value: u64, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn take_varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let byte = take_byte(bytes)?;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

fn take_byte(bytes: &mut &[u8]) -> Option<u8> {
    let (byte, rest) = bytes.split_first()?;
    *bytes = rest;
    Some(*byte)
}

const GROUP: usize = 32;
const HAS_LARGER: u8 = 0x80;

#[cfg(test)]
mod tests {
    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};

    use super::*;

    fn packed(values: &[u64]) -> Vec<u8> {
        let mut out = Vec::new();
        pack(values, &mut out);
        out
    }

    #[test]
    fn whatever_is_packed_comes_back() {
        let mut rng = StdRng::seed_from_u64(7);
        for round in 0..2_000 {
            let count = rng.random_range(0..200);
            let widest = rng.random_range(1..=64u32);
            let values: Vec<u64> = (0..count)
                .map(|_| {
                    let value = rng.random::<u64>() >> (64 - widest.min(rng.random_range(1..=64)));
                    if rng.random_bool(0.9) { value >> rng.random_range(0..64) } else { value }
                })
                .collect();
            let bytes = packed(&values);

            let mut rest = &bytes[..];
            assert_eq!(unpack(&mut rest, count).as_deref(), Some(&values[..]), "round {round}");
            assert!(rest.is_empty());
        }
        for values in [vec![u64::MAX; 40], vec![0; 40], vec![u64::MAX, 0, 1]] {
            assert_eq!(unpack(&mut &packed(&values)[..], values.len()), Some(values));
        }
    }

    #[test]
    fn a_column_without_change_costs_a_byte_for_32_and_one_outlier_a_few_more() {
        let mut values = vec![0; 320];
        assert_eq!(packed(&values).len(), 10);

        values[100] = u64::from(u32::MAX);

        assert!(packed(&values).len() <= 10 + 8, "{}", packed(&values).len());
    }

    #[test]
    fn what_was_cut_or_never_written_is_refused_and_breaks_nothing() {
        let bytes = packed(&(0..100).map(|n| n * n).collect::<Vec<_>>());
        for len in 0..bytes.len() {
            assert_eq!(unpack(&mut &bytes[..len], 100), None, "{len}");
        }
        let mut rng = StdRng::seed_from_u64(8);
        for _ in 0..10_000 {
            let garbage: Vec<u8> = (0..rng.random_range(0..60)).map(|_| rng.random()).collect();
            let _any_answer_is_fine = unpack(&mut &garbage[..], 50);
        }
    }
}
