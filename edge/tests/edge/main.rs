//! The edge from outside: phones over real sockets, requests at its doors, the embedded log behind it.

#![expect(clippy::unwrap_used, reason = "a test may end where its ground gives way")]

mod doors;
mod durability;
mod garbage;
mod support;
