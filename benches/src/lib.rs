//! Benchmarks: programs that print a figure beside its yardstick.
