//! Each target takes its seeds, what was ever found, and thousands of mutations of both, without a panic.

#![allow(clippy::unwrap_used, reason = "a failure here fails the test")]

use std::fs;
use std::path::Path;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use wayfix_fuzz::{TARGETS, seeds};

#[test]
fn every_decoder_takes_its_corpus_and_what_is_near_it() {
    for target in TARGETS {
        let mut inputs = seeds(target.name);
        assert!(!inputs.is_empty() && inputs.iter().all(|input| !input.is_empty()), "{} has seeds", target.name);
        inputs.extend(found(target.name));
        inputs.iter().for_each(|input| (target.run)(input));
        let mut rng = SmallRng::seed_from_u64(SEED);
        // Large inputs cost more each: all targets get about as many bytes.
        let bytes: usize = inputs.iter().map(Vec::len).sum::<usize>() / inputs.len();
        for round in 0..(BYTES_PER_TARGET / bytes.max(1)).clamp(ROUNDS_MIN, ROUNDS_MAX) {
            let input = mutated(&inputs, &mut rng);
            // Shown if it panics: the captured output of a test that fails.
            println!("{} round {round}, seed {SEED}, {} bytes", target.name, input.len());
            (target.run)(&input);
        }
    }
}

/// What a fuzzer found, kept so that it is tried again each time.
fn found(name: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(name);
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let mut paths: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths.iter().map(|path| fs::read(path).unwrap()).collect()
}

fn mutated(inputs: &[Vec<u8>], rng: &mut SmallRng) -> Vec<u8> {
    let mut bytes = inputs[rng.random_range(0..inputs.len())].clone();
    for _ in 0..rng.random_range(1..=4) {
        let at = rng.random_range(0..=bytes.len().saturating_sub(1));
        match rng.random_range(0..6) {
            0 if !bytes.is_empty() => bytes[at] ^= 1 << rng.random_range(0..8),
            1 if !bytes.is_empty() => bytes[at] = *[0, 1, 0x7f, 0x80, 0xff].get(rng.random_range(0..5)).unwrap(),
            2 => bytes.truncate(at),
            3 => bytes.insert(at.min(bytes.len()), rng.random()),
            4 => {
                let other = &inputs[rng.random_range(0..inputs.len())];
                let from = rng.random_range(0..=other.len().saturating_sub(1));
                bytes.truncate(at);
                bytes.extend_from_slice(&other[from.min(other.len())..]);
            }
            _ => {
                let end = (at + 8).min(bytes.len());
                bytes[at.min(end)..end].iter_mut().for_each(|byte| *byte = rng.random());
            }
        }
    }
    bytes
}

const SEED: u64 = 20_261_130;
const BYTES_PER_TARGET: usize = 2_000_000;
const ROUNDS_MIN: usize = 40;
const ROUNDS_MAX: usize = 20_000;
