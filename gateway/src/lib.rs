//! The fleet that streams live views to customers and serves the API.

pub mod hub;
