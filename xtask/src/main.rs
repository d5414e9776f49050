//! What developers and first-time users run, behind `./x`: demo, test, bench, and what these need on the machine.

mod bench;
mod city;
mod data;
mod demo;
mod docs;
mod shell;
mod soak;
mod test;
mod web;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "x", about = "Builds, shows and checks Wayfix")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// A real city with drivers moving on its streets: prints the address to open.
    Demo(demo::Options),
    /// Every check: format, lints, tests, documents, policy. What continuous integration runs.
    Test(test::Options),
    /// Runs a benchmark and prints its rows: datagram, whole, maps, profiles, eta, swap, trail, fold.
    Bench {
        name: String,
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Runs phones, watchers and deliveries against the release binary for an hour, or as long as is said, and judges what
    /// it holds and writes meanwhile.
    Soak(soak::Options),
    /// Writes the pages that are made from the product itself: settings and metrics.
    Docs(docs::Options),
    /// Fetches the pages' packages from npm, by lock file.
    Web,
    /// Says where the data of the truth tests lies (`WAYFIX_DATA`, else ../shared/data); fails where it is not whole.
    Data,
    /// Fetches or draws the demo's city and prints where it lies.
    City,
}

fn main() -> ExitCode {
    let outcome = match Arguments::parse().command {
        Command::Demo(options) => demo::run(&options),
        Command::Test(options) => test::run(&options),
        Command::Bench { name, arguments } => bench::run(&name, &arguments),
        Command::Soak(options) => soak::run(&options),
        Command::Docs(options) => docs::run(&options),
        Command::Web => web::fetch(),
        Command::Data => data::check(),
        Command::City => city::find().map(|path| println!("{}", path.display())),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("x: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The top of the checkout.
fn root() -> PathBuf {
    let manifest = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    manifest.parent().map(PathBuf::from).unwrap_or(manifest)
}
