//! CPU time of threads, as the kernel counts it in nanoseconds.

use std::fs;
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

/// CPU time so far of all threads of this process whose name begins with `prefix`.
pub fn of_threads(prefix: &str) -> Duration {
    let Ok(tasks) = fs::read_dir("/proc/self/task") else { return Duration::ZERO };
    let of_task = |task: fs::DirEntry| {
        let name = fs::read_to_string(task.path().join("comm")).ok()?;
        if !name.trim_end().starts_with(prefix) {
            return None;
        }
        let stat = fs::read_to_string(task.path().join("schedstat")).ok()?;
        stat.split(' ').next()?.parse().ok().map(Duration::from_nanos)
    };
    tasks.filter_map(Result::ok).filter_map(of_task).sum()
}

/// Of the thread that asks.
pub fn of_this_thread() -> Duration {
    read(ClockId::CLOCK_THREAD_CPUTIME_ID)
}

/// Of the whole process.
pub fn of_process() -> Duration {
    of_threads("")
}

/// Of the whole process, threads that have ended included.
pub fn of_process_ever() -> Duration {
    read(ClockId::CLOCK_PROCESS_CPUTIME_ID)
}

fn read(clock: ClockId) -> Duration {
    clock_gettime(clock).map_or(Duration::ZERO, Duration::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_has_ended_still_counts() {
        let spin = || {
            let began = std::time::Instant::now();
            while of_this_thread() < Duration::from_millis(200) {
                assert!(began.elapsed() < Duration::from_secs(60), "the kernel does not count");
            }
        };
        let before = of_process_ever();

        std::thread::spawn(spin).join().expect("it does not panic");

        assert!(of_process_ever() - before >= Duration::from_millis(150));
    }

    #[test]
    fn a_busy_thread_is_seen() {
        let before = of_this_thread();
        let mut sum = 0u64;
        (0..20_000_000u64).for_each(|i| sum = sum.wrapping_mul(31).wrapping_add(std::hint::black_box(i)));
        std::hint::black_box(sum);

        assert!(of_this_thread() > before);
        assert!(of_process() >= of_this_thread());
    }
}
