//! The wayfix binary.
fn main() {}
