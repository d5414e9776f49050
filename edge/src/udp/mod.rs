//! The UDP door: one thread per core, each with its own socket on the shared port, its own sessions and its own
//! intake. No runtime runs on them: a task per packet would cost more than all the rest of a datagram's way.

pub mod inbox;
pub mod socket;
pub mod thread;
