//! The processor's settings: as written, then checked. Past `ProcessorConfig` nothing is out of range.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// As written.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ProcessorSettings {
    /// How often each partition's state is kept, so that a restart folds no more than this anew.
    pub snapshot_every_s: u32,
    /// Reads that may wait for the fold, per partition: what they hold is a MiB each at most.
    pub reads_waiting_max: u32,
    /// Views that the live sink keeps for each partition, to apply changes to.
    pub live_views_max: u32,
    /// Whether every movement goes to the events topic too, or only what happens on the way.
    pub events_of_movement: bool,
}

impl Default for ProcessorSettings {
    fn default() -> Self {
        ProcessorSettings {
            snapshot_every_s: 60,
            reads_waiting_max: 4,
            live_views_max: 200_000,
            events_of_movement: true,
        }
    }
}

/// Checked.
#[derive(Clone, Debug)]
pub struct ProcessorConfig {
    /// Where opened maps are kept.
    pub maps_folder: PathBuf,
    pub snapshot_every: Duration,
    pub reads_waiting_max: usize,
    pub live_views_max: usize,
    pub events_of_movement: bool,
}

#[derive(Debug, thiserror::Error, PartialEq)]
#[error("processor.{key}: {least} to {most}, not {value}")]
pub struct ProcessorConfigError {
    key: &'static str,
    least: u32,
    most: u32,
    value: u32,
}

impl ProcessorSettings {
    /// `state_folder` is the processor's own.
    pub fn check(&self, state_folder: &Path) -> Result<ProcessorConfig, ProcessorConfigError> {
        let every_s = within("snapshot_every_s", self.snapshot_every_s, 1, 3_600)?;
        Ok(ProcessorConfig {
            maps_folder: state_folder.join("maps"),
            snapshot_every: Duration::from_secs(u64::from(every_s)),
            reads_waiting_max: within("reads_waiting_max", self.reads_waiting_max, 1, 1_024)? as usize,
            live_views_max: within("live_views_max", self.live_views_max, 1, u32::MAX)? as usize,
            events_of_movement: self.events_of_movement,
        })
    }
}

fn within(key: &'static str, value: u32, least: u32, most: u32) -> Result<u32, ProcessorConfigError> {
    let is_within = (least..=most).contains(&value);
    is_within.then_some(value).ok_or(ProcessorConfigError { key, least, most, value })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_within_range_and_what_is_not_is_refused_by_name() {
        assert!(ProcessorSettings::default().check(Path::new("state")).is_ok());

        let never = ProcessorSettings { snapshot_every_s: 0, ..ProcessorSettings::default() };

        let error = never.check(Path::new("state")).unwrap_err();
        assert_eq!(error.to_string(), "processor.snapshot_every_s: 1 to 3600, not 0");
    }
}
