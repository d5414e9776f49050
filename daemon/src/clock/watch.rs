//! The one watcher over the process's clocks. Each second it compares the wall clock with the time since the machine
//! started; a step is believed at the second look, and from then on every clock of the process shows it.
//!
//! What is believed stands in a file too, so that a step between two runs on the same machine, without a restart of the
//! machine between them, is seen like any other. A file that is gone or damaged costs that knowledge and nothing else.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use metrics::Counter;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tracing::{info, warn};

use super::wall::{Look, WallOffset};
use crate::admin::{Health, Readiness};
use crate::drain::Drain;
use crate::meter::Meter;

/// What all clocks of this process believe of the wall clock.
pub(super) static WALL: LazyLock<Wall> = LazyLock::new(|| Wall::of(WallOffset::new(offset_now_ms())));

pub(super) struct Wall {
    /// `state`'s, to be read without its lock.
    offset_ms: AtomicI64,
    least_ms: AtomicI64,
    state: Mutex<WallOffset>,
    steps: watch::Sender<u64>,
    boot: u64,
}

impl Wall {
    fn of(state: WallOffset) -> Wall {
        Wall {
            offset_ms: AtomicI64::new(state.current_ms()),
            least_ms: AtomicI64::new(state.current_ms()),
            state: Mutex::new(state),
            steps: watch::Sender::new(0),
            boot: number_of(&boot_id()),
        }
    }

    pub(super) fn offset_ms(&self) -> i64 {
        self.offset_ms.load(Ordering::Acquire)
    }

    pub(super) fn least_ms(&self) -> i64 {
        self.least_ms.load(Ordering::Acquire)
    }

    pub(super) fn past_ms(&self) -> Vec<i64> {
        self.lock().past_ms(since_start_ms()).collect()
    }

    pub(super) fn boot(&self) -> u64 {
        self.boot
    }

    pub(super) fn steps(&self) -> watch::Receiver<u64> {
        self.steps.subscribe()
    }

    /// From here on all clocks show it.
    fn believe(&self, state: WallOffset) {
        // The least is never above the offset, so that nothing expires between the two.
        let (offset_ms, least_ms) = (state.current_ms(), state.least_ms(since_start_ms()));
        if least_ms < self.least_ms() {
            self.least_ms.store(least_ms, Ordering::Release);
        }
        *self.lock() = state;
        self.offset_ms.store(offset_ms, Ordering::Release);
        self.least_ms.store(least_ms, Ordering::Release);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, WallOffset> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the file says.
#[derive(Serialize, Deserialize)]
struct Kept {
    boot: String,
    wall: WallOffset,
}

/// Watches over the clocks. One per process, made before anything else asks for the time.
pub struct ClockWatch {
    file: PathBuf,
    /// By how much the wall clock was set while nothing ran.
    stopped_step_ms: Option<i64>,
}

impl ClockWatch {
    /// Takes up what an earlier run on this machine believed.
    pub fn begin(file: PathBuf) -> ClockWatch {
        let mut stopped_step_ms = None;
        if let Some(Kept { wall: mut state, .. }) = read(&file).filter(|kept| kept.boot == boot_id()) {
            let (since_start_ms, wall_ms) = clocks_ms();
            if let Look::Stepped { by_ms } = state.take_up(since_start_ms, wall_ms) {
                stopped_step_ms = Some(by_ms);
            }
            WALL.believe(state);
        }
        ClockWatch { file, stopped_step_ms }
    }

    /// Watches until the drain stops.
    pub fn start(self, meter: &Meter, readiness: Readiness, drain: &Drain) {
        let steps = meter.counter("wayfix_clock_steps_total", "Times that the wall clock was seen to be set.", &[]);
        let stop = drain.token().clone();
        drain.spawn("clock watch", async move {
            let mut watcher = Watcher { file: self.file, steps, readiness, noted: None };
            watcher.begin(self.stopped_step_ms).await;
            while stop.run_until_cancelled(tokio::time::sleep(LOOK_EVERY)).await.is_some() {
                watcher.look().await;
            }
            Ok(())
        });
    }
}

struct Watcher {
    file: PathBuf,
    steps: Counter,
    readiness: Readiness,
    /// When the last step was noted in `/readyz`, by the time since the start.
    noted: Option<i64>,
}

impl Watcher {
    async fn begin(&mut self, stopped_step_ms: Option<i64>) {
        self.readiness.set(PART, Health::Ready);
        if let Some(by_ms) = stopped_step_ms {
            self.say(by_ms, "while nothing ran");
        }
        let state = WALL.lock().clone();
        self.keep(state).await;
    }

    async fn look(&mut self) {
        let mut state = WALL.lock().clone();
        let (since_start_ms, wall_ms) = clocks_ms();
        let seen = state.look(since_start_ms, wall_ms);
        if let Look::Stepped { by_ms } = seen {
            self.keep(state.clone()).await;
            WALL.believe(state);
            WALL.steps.send_modify(|steps| *steps += 1);
            self.say(by_ms, "while we ran");
        } else {
            WALL.believe(state);
        }
        if self.noted.is_some_and(|at_ms| since_start_ms - at_ms >= NOTED_MS) {
            self.noted = None;
            self.readiness.set(PART, Health::Ready);
        }
    }

    fn say(&mut self, by_ms: i64, when: &str) {
        let (by_s, direction) = (by_ms.unsigned_abs() as f64 / 1000.0, if by_ms < 0 { "back" } else { "forward" });
        warn!(by_ms, "the wall clock was set {direction} by {by_s:.1} s {when}");
        self.steps.increment(1);
        self.noted = Some(since_start_ms());
        let note = format!("it was set {direction} by {by_s:.1} s within the last hour; all goes on by the new time");
        self.readiness.set(PART, Health::Degraded(note));
    }

    /// Best effort, and not for long: the step does not wait for a disk that is slow.
    async fn keep(&self, wall: WallOffset) {
        let file = self.file.clone();
        let kept = Kept { boot: boot_id(), wall };
        let writing = tokio::task::spawn_blocking(move || write(&file, &kept));
        match tokio::time::timeout(KEEP_WITHIN, writing).await {
            Ok(Ok(Ok(()))) => {}
            Ok(Ok(Err(error))) => info!(%error, file = %self.file.display(), "what the clock shows could not be kept"),
            Ok(Err(_)) | Err(_) => info!(file = %self.file.display(), "what the clock shows could not be kept in time"),
        }
    }
}

fn read(file: &Path) -> Option<Kept> {
    serde_json::from_slice(&std::fs::read(file).ok()?).ok()
}

fn write(file: &Path, kept: &Kept) -> std::io::Result<()> {
    let beside = file.with_extension("new");
    std::fs::write(&beside, serde_json::to_vec(kept)?)?;
    std::fs::rename(beside, file)
}

/// The time since the machine started and the wall's, close to each other.
fn clocks_ms() -> (i64, i64) {
    (since_start_ms(), wall_ms())
}

fn offset_now_ms() -> i64 {
    let (since_start_ms, wall_ms) = clocks_ms();
    wall_ms.saturating_sub(since_start_ms)
}

fn wall_ms() -> i64 {
    match SystemTime::now().duration_since(UNIX_EPOCH) {
        Ok(since) => i64::try_from(since.as_millis()).unwrap_or(i64::MAX),
        Err(before) => i64::try_from(before.duration().as_millis()).map_or(i64::MIN, |ms| -ms),
    }
}

/// By the clock that runs through sleep, where the system has one.
pub(super) fn since_start_ms() -> i64 {
    #[cfg(target_os = "linux")]
    let clock = nix::time::ClockId::CLOCK_BOOTTIME;
    #[cfg(not(target_os = "linux"))]
    let clock = nix::time::ClockId::CLOCK_MONOTONIC;
    let now = nix::time::clock_gettime(clock).expect("every system has this clock");
    now.tv_sec().saturating_mul(1_000).saturating_add(now.tv_nsec() / 1_000_000)
}

/// Which start of the machine this is; where the system does not say, every run is one of its own.
fn boot_id() -> String {
    static BOOT_ID: LazyLock<String> = LazyLock::new(|| {
        let read = std::fs::read_to_string("/proc/sys/kernel/random/boot_id");
        read.map_or_else(|_| format!("{:x}", rand::random::<u64>()), |text| text.trim().to_string())
    });
    BOOT_ID.clone()
}

/// Of the 122 random bits 60 or so are enough.
fn number_of(boot_id: &str) -> u64 {
    let digits = boot_id.chars().filter_map(|digit| digit.to_digit(16)).take(16);
    digits.fold(0, |number, digit| number << 4 | u64::from(digit))
}

/// The name in `/readyz`.
const PART: &str = "clock";
const LOOK_EVERY: Duration = Duration::from_secs(1);
const KEEP_WITHIN: Duration = Duration::from_millis(500);
/// Long enough for an operator to come and see it.
const NOTED_MS: i64 = 3_600_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_read_again_and_a_damaged_file_is_as_none() {
        let folder = std::env::temp_dir().join(format!("wayfix-clock-{:x}", rand::random::<u64>()));
        std::fs::create_dir_all(&folder).unwrap();
        let file = folder.join("clock.json");
        let mut wall = WallOffset::new(5);
        wall.take_up(1_000, 9_000_000);

        write(&file, &Kept { boot: "a".to_string(), wall: wall.clone() }).unwrap();

        let kept = read(&file).expect("it was written");
        assert_eq!((kept.boot.as_str(), kept.wall), ("a", wall));
        std::fs::write(&file, b"{").unwrap();
        assert!(read(&file).is_none());
        std::fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn the_time_since_the_start_runs_and_this_is_one_start() {
        let before = since_start_ms();
        assert!(before > 0 && since_start_ms() >= before);
        assert_eq!(boot_id(), boot_id());
    }
}
