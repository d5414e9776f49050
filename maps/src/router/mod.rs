//! Routes.
pub mod order;
