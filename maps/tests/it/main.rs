//! What the crate promises, held against real cities where `../shared/data` is, and always against a generated town.

mod cities;
mod extract;
mod file;
mod graph;
mod index;
mod router;
mod tiles;
