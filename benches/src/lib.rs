//! Benchmarks: programs that print a figure beside its yardstick. What they have in common is here: rows, load, and
//! the CPU time of threads, which says more than the wall clock where cores are shared.

pub mod allocated;
pub mod bare;
pub mod bench_edge;
pub mod city;
pub mod cpu;
pub mod echo;
pub mod fleet;
pub mod fold_world;
pub mod http;
pub mod load;
pub mod matching;
pub mod null_log;
pub mod peers;
pub mod report;
pub mod sealed_phone;
pub mod server;
pub mod tagged;
pub mod truth;

pub use report::{Goal, Report};
