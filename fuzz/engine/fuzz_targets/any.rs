//! One program for every target: the binary's name says which.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let name = env!("CARGO_BIN_NAME");
    let target = wayfix_fuzz::TARGETS.iter().find(|target| target.name == name);
    (target.expect("every binary is named after a target").run)(bytes);
});
