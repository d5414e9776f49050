//! Rows: what was measured, beside what, and whether it is as good as it should be. Printed, and written to
//! `target/bench/NAME.json`.

use std::path::PathBuf;

use anyhow::Context;
use serde::Serialize;

/// What a figure should be.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Goal {
    AtLeast(f64),
    AtMost(f64),
    Between(f64, f64),
    /// Said for context.
    None,
}

#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Row {
    pub what: String,
    pub value: f64,
    pub unit: String,
    /// What the value is to be read beside.
    pub yardstick: String,
    pub goal: Goal,
    /// None where there is no goal.
    pub holds: Option<bool>,
}

/// All rows of one run.
#[derive(Debug, Serialize)]
pub struct Report {
    pub name: String,
    pub machine: Machine,
    pub arguments: Vec<String>,
    pub rows: Vec<Row>,
}

#[derive(Debug, Serialize)]
pub struct Machine {
    pub cpu: String,
    pub cores: usize,
    /// How busy it was with other things, over the last minute, when the run began.
    pub load_average: f64,
}

impl Report {
    pub fn new(name: &str) -> Self {
        let machine = Machine::this();
        println!("{name}: {}, {} cores, load average {:.1}", machine.cpu, machine.cores, machine.load_average);
        Report { name: name.to_string(), machine, arguments: std::env::args().skip(1).collect(), rows: Vec::new() }
    }

    pub fn row(&mut self, what: &str, value: f64, unit: &str, yardstick: &str, goal: Goal) {
        let holds = match goal {
            Goal::AtLeast(least) => Some(value >= least),
            Goal::AtMost(most) => Some(value <= most),
            Goal::Between(least, most) => Some((least..=most).contains(&value)),
            Goal::None => None,
        };
        let goal_text = match goal {
            Goal::AtLeast(least) => format!(">= {}", shown(least)),
            Goal::AtMost(most) => format!("<= {}", shown(most)),
            Goal::Between(least, most) => format!("{} - {}", shown(least), shown(most)),
            Goal::None => String::new(),
        };
        let holds_text = match holds {
            Some(true) => "holds",
            Some(false) => "DOES NOT HOLD",
            None => "",
        };
        println!("{what:<58} {:>13} {unit:<12} {goal_text:>11}  {holds_text:<14} {yardstick}", shown(value));
        let (what, unit, yardstick) = (what.to_string(), unit.to_string(), yardstick.to_string());
        self.rows.push(Row { what, value, unit, yardstick, goal, holds });
    }

    pub fn finish(self) -> anyhow::Result<()> {
        let folder = workspace().join("target/bench");
        std::fs::create_dir_all(&folder).context("make target/bench")?;
        let path = folder.join(format!("{}.json", self.name));
        std::fs::write(&path, serde_json::to_vec_pretty(&self)?).context("write the rows")?;
        println!("written to target/bench/{}.json", self.name);
        Ok(())
    }
}

impl Machine {
    fn this() -> Self {
        let cpus = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let model = cpus.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
        let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
        Machine {
            cpu: model.map_or("unknown", |(_, name)| name.trim()).to_string(),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            load_average: load.split(' ').next().and_then(|text| text.parse().ok()).unwrap_or(0.0),
        }
    }
}

fn shown(value: f64) -> String {
    if value.abs() >= 1000.0 {
        format!("{value:.0}")
    } else if value.abs() >= 10.0 {
        format!("{value:.1}")
    } else {
        format!("{value:.3}")
    }
}

/// Cargo says where this package is when it runs us; alone we write where we stand.
pub fn workspace() -> PathBuf {
    let package = std::env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from);
    package.and_then(|package| Some(package.parent()?.to_path_buf())).unwrap_or_else(|| PathBuf::from("."))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_says_whether_its_goal_holds() {
        let mut report = Report::new("test");

        report.row("ratio", 0.7, "", "bare loop", Goal::AtLeast(0.65));
        report.row("lost", 0.2, "%", "sent", Goal::AtMost(0.1));
        report.row("covered", 82.1, "%", "", Goal::Between(78.0, 82.0));
        report.row("rate", 1.0, "/s", "", Goal::None);

        let holds: Vec<_> = report.rows.iter().map(|row| row.holds).collect();
        assert_eq!(holds, [Some(true), Some(false), Some(false), None]);
    }
}
