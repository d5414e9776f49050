//! The edge from outside: phones over real sockets, requests at its doors, the embedded log behind it.

mod doors;
mod durability;
mod garbage;
mod support;
