//! Vector tiles.
pub mod feature;
