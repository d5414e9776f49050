//! The processor's settings: as written, then checked. Past `ProcessorConfig` nothing is out of range.

use std::path::{Path, PathBuf};
use std::time::Duration;

use backends::route_service::{RouterConfig, RouterConfigError, RouterSettings};
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
    pub learner: LearnerSettings,
    pub router: RouterSettings,
}

/// Learning speeds and arrival times from what drivers do.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LearnerSettings {
    /// Whether this process learns when it is its turn: one of the fleet's processes does.
    pub enabled: bool,
    /// How often, at most, it is told how today's speeds differ from the usual; six times as long passes at most while
    /// somebody drives.
    pub live_every_s: u32,
    /// How often the speeds of the usual week are told.
    pub speeds_every_s: u32,
    /// How often, at most, it is told what arrival times get wrong.
    pub eta_every_s: u32,
    /// How often what was learned is kept, so that a restart learns no more than this anew.
    pub state_every_s: u32,
    /// Drivers who may be under way at a time; those beyond teach nothing.
    pub drivers_max: u32,
}

impl Default for LearnerSettings {
    fn default() -> Self {
        LearnerSettings {
            enabled: true,
            live_every_s: 10,
            speeds_every_s: 3_600,
            eta_every_s: 60,
            state_every_s: 300,
            drivers_max: 200_000,
        }
    }
}

impl Default for ProcessorSettings {
    fn default() -> Self {
        ProcessorSettings {
            snapshot_every_s: 60,
            reads_waiting_max: 4,
            live_views_max: 200_000,
            events_of_movement: true,
            learner: LearnerSettings::default(),
            router: RouterSettings::default(),
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
    /// None: another process learns.
    pub learner: Option<LearnerConfig>,
    pub router: RouterConfig,
    /// Questions to an outside router that may be under way at a time.
    pub router_asked_max: usize,
}

/// Checked.
#[derive(Clone, Debug)]
pub struct LearnerConfig {
    pub live_every: Duration,
    pub speeds_every: Duration,
    pub eta_every: Duration,
    pub state_every: Duration,
    pub drivers_max: usize,
}

#[derive(Debug, thiserror::Error, PartialEq)]
pub enum ProcessorConfigError {
    #[error("processor.{key}: {least} to {most}, not {value}")]
    Range { key: &'static str, least: u32, most: u32, value: u32 },
    #[error("processor.router.{0}")]
    Router(#[from] RouterConfigError),
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
            learner: self.learner.enabled.then(|| self.learner.check()).transpose()?,
            router: RouterConfig::try_from(self.router.clone())?,
            router_asked_max: self.router.asked_max as usize,
        })
    }
}

impl LearnerSettings {
    /// Every table that is told is kept as long as records are: so none is told more often than that bears.
    pub fn check(&self) -> Result<LearnerConfig, ProcessorConfigError> {
        let every = |key, value, least| {
            within(key, value, least, 86_400).map(|seconds| Duration::from_secs(u64::from(seconds)))
        };
        Ok(LearnerConfig {
            live_every: every("learner.live_every_s", self.live_every_s, 10)?,
            speeds_every: every("learner.speeds_every_s", self.speeds_every_s, 60)?,
            eta_every: every("learner.eta_every_s", self.eta_every_s, 10)?,
            state_every: every("learner.state_every_s", self.state_every_s, 1)?,
            drivers_max: within("learner.drivers_max", self.drivers_max, 1, 10_000_000)? as usize,
        })
    }
}

fn within(key: &'static str, value: u32, least: u32, most: u32) -> Result<u32, ProcessorConfigError> {
    let is_within = (least..=most).contains(&value);
    is_within.then_some(value).ok_or(ProcessorConfigError::Range { key, least, most, value })
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
        let all_the_time = LearnerSettings { live_every_s: 9, ..LearnerSettings::default() };
        let error = all_the_time.check().unwrap_err();
        assert_eq!(error.to_string(), "processor.learner.live_every_s: 10 to 86400, not 9");
    }
}
