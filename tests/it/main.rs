//! The whole, from outside: the built binary, separate phone processes, real sockets, a real browser; and the rules that
//! the workspace keeps. One binary, so that it links once.

mod browser;
mod clock_steps;
mod command_line;
mod doors;
mod examples;
mod fetch;
mod fleet;
mod floods;
mod gpx;
mod harness;
mod map_faults;
mod map_swap;
mod maps;
mod pages;
mod policy;
mod repairs;
mod settings;
#[path = "../shared_data.rs"]
mod shared_data;
mod stores;
mod traffic;
mod trips;
mod watch;
