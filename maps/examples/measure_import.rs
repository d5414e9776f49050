//! How long an import takes, stage by stage: `measure_import EXTRACT MAP`.

mod common;

use std::path::PathBuf;
use std::sync::Mutex;
use std::time::Instant;

use maps::import::{ImportOptions, Stage, import};

fn main() {
    let mut arguments = std::env::args_os().skip(1).map(PathBuf::from);
    let (Some(extract), Some(map)) = (arguments.next(), arguments.next()) else {
        eprintln!("usage: measure_import EXTRACT MAP");
        std::process::exit(64);
    };
    let start = Instant::now();
    let last: Mutex<Option<Stage>> = Mutex::new(None);
    let progress = |progress: maps::import::Progress| {
        let mut last = last.lock().expect("nobody panics while it is held");
        if last.replace(progress.stage) != Some(progress.stage) {
            println!(
                "{:>8.3} s {:>8.2} s cpu  {}",
                start.elapsed().as_secs_f64(),
                common::cpu_s(),
                progress.stage.as_str()
            );
        }
    };
    match import(&extract, &map, &ImportOptions::default(), &progress) {
        Ok(imported) => {
            println!("{:>8.3} s {:>8.2} s cpu  done\n{imported}", start.elapsed().as_secs_f64(), common::cpu_s());
        }
        Err(error) => {
            eprintln!("{error}");
            std::process::exit(1);
        }
    }
}
