//! The `wayfix` binary: command line and composition only.

mod compose;
mod config;
mod demo;
mod installation;
mod map_watch;
mod maps;
mod output;
mod pages;
mod repair;
mod restore;
mod settings;
mod sim;
mod tiles;
mod up;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Puts a driver's dot on the customer's map, truthfully.
#[derive(Parser)]
#[command(name = "wayfix", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Runs everything in one process, with its state in one folder and no services.
    Up(up::Options),
    /// Runs everything on one map with a fleet of simulated or replayed drivers, and prints the address to open.
    Demo(demo::Options),
    /// Imports, inspects, matches and routes on OpenStreetMap extracts.
    #[command(subcommand)]
    Maps(maps::Command),
    /// Drives simulated drivers against a running server, over real sockets.
    Sim(sim::SimArguments),
    /// Drives recorded traces against a running server, over real sockets.
    Replay(sim::ReplayArguments),
    /// Looks whether the stores of a data folder belong together, mends what can be mended without a loss, and goes on
    /// without what is lost where that is accepted by name.
    Repair(repair::Options),
    /// Says that a data folder is a restored copy, older than what it replaces: no number is given again.
    Restore(restore::Options),
    /// Shows or checks the configuration.
    #[command(subcommand)]
    Config(settings::Command),
}

fn main() -> ExitCode {
    let outcome = match Arguments::parse().command {
        Command::Up(options) => up::run(&options),
        Command::Demo(options) => demo::run(&options),
        Command::Maps(command) => maps::run(command),
        Command::Sim(arguments) => sim::simulate(&arguments),
        Command::Replay(arguments) => sim::replay(&arguments),
        Command::Repair(options) => repair::run(&options),
        Command::Restore(options) => restore::run(&options),
        Command::Config(command) => settings::run(&command),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("wayfix: {error:#}");
            let is_usage = error.downcast_ref::<settings::SettingsError>().is_some();
            let is_strict = error.downcast_ref::<maps::NotStrict>().is_some();
            ExitCode::from(match (is_usage, is_strict) {
                (true, _) => EXIT_USAGE,
                (false, true) => EXIT_STRICT,
                (false, false) => 1,
            })
        }
    }
}

/// What was asked for with `--strict` is not so.
const EXIT_STRICT: u8 = 3;
/// As in sysexits: bad usage or configuration.
const EXIT_USAGE: u8 = 64;
