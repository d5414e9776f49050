//! What the crate promises, held against real cities where `../shared/data` is, and always against a generated town.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod alternatives;
mod archive;
mod chains;
mod cities;
mod cpus;
mod diff;
mod extract;
mod file;
mod graph;
mod index;
mod kinds;
mod router;
#[path = "../../../tests/shared_data.rs"]
mod shared_data;
mod tagged;
mod tiles;
