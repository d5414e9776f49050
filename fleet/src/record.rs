//! What a fleet leaves behind as JSON lines: where its drivers truly were, and which of their fixes were acknowledged.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use protocol::update::Leg;
use protocol::{Fix, FixNumber, Time};
use serde::Serialize;

/// Where a driver truly was at a second, and when he will truly be at the stop ahead.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct TruthLine {
    pub at_ms: Time,
    pub driver: u32,
    pub delivery: Option<u64>,
    pub lat: f64,
    pub lng: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub speed_m_s: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub leg: Option<Leg>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub arrives_ms: Option<Time>,
}

/// A fix that an edge has said to be safe, by its identity as it was sent: history must have it exactly once.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct AckedLine {
    pub driver: u32,
    pub number: u64,
    /// Tenths of a second since the Unix epoch.
    pub measured_ds: i64,
    /// Millionths of a degree, as on the wire.
    pub lat_e6: i32,
    pub lon_e6: i32,
}

impl AckedLine {
    pub fn of(driver: u32, number: FixNumber, fix: &Fix) -> Self {
        AckedLine {
            driver,
            number: number.0,
            measured_ds: fix.measured.0,
            lat_e6: to_e6(fix.position.lat_e7),
            lon_e6: to_e6(fix.position.lon_e7),
        }
    }
}

/// To the nearest, halves away from zero, as the datagram does.
fn to_e6(e7: i32) -> i32 {
    (e7 + 5 * e7.signum()) / 10
}

/// A file that many write lines to. A line that could not be written is remembered until the end.
pub(crate) struct Lines {
    file: Mutex<BufWriter<File>>,
    is_broken: AtomicBool,
}

impl Lines {
    pub fn create(path: &Path) -> io::Result<Self> {
        Ok(Lines { file: Mutex::new(BufWriter::new(File::create(path)?)), is_broken: AtomicBool::new(false) })
    }

    pub fn write(&self, line: &impl Serialize) {
        let mut file = self.file.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let written =
            serde_json::to_writer(&mut *file, line).map_err(io::Error::from).and_then(|()| file.write_all(b"\n"));
        if written.is_err() {
            self.is_broken.store(true, Ordering::Relaxed);
        }
    }

    /// All that was written so far is in the file.
    pub fn flush(&self) -> io::Result<()> {
        self.file.lock().unwrap_or_else(std::sync::PoisonError::into_inner).flush()?;
        if self.is_broken.load(Ordering::Relaxed) {
            return Err(io::Error::other("a line could not be written"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_is_rounded_as_the_datagram_rounds() {
        let degrees = [0, 4, 5, 14, 15, 411_500_004, 411_500_005, -4, -5, -14, -15, -86_100_005];

        assert_eq!(degrees.map(to_e6), [0, 0, 1, 1, 2, 41_150_000, 41_150_001, 0, -1, -1, -2, -8_610_001]);
    }

    #[test]
    fn lines_that_many_write_stay_whole() {
        let path = std::env::temp_dir().join(format!("wayfix-fleet-lines-{}", std::process::id()));
        let lines = Lines::create(&path).unwrap();

        std::thread::scope(|scope| {
            for n in 0..8u32 {
                let lines = &lines;
                scope.spawn(move || (0..500u32).for_each(|i| lines.write(&(n, i))));
            }
        });
        lines.flush().unwrap();

        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        let mut read: Vec<(u32, u32)> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        read.sort();
        assert_eq!(read, (0..8).flat_map(|n| (0..500).map(move |i| (n, i))).collect::<Vec<_>>());
    }
}
