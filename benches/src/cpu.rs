//! CPU time of threads, as the kernel counts it in nanoseconds.

use std::fs;
use std::time::Duration;

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
    let stat = fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    stat.split(' ').next().and_then(|text| text.parse().ok()).map_or(Duration::ZERO, Duration::from_nanos)
}

/// Of the whole process.
pub fn of_process() -> Duration {
    of_threads("")
}

/// Of the whole process, threads that have ended included; in steps of a hundredth of a second.
pub fn of_process_ever() -> Duration {
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let after_name = stat.rsplit(')').next().unwrap_or_default();
    // The 14th and the 15th field, in user and in kernel mode; the name is the second.
    let ticks: u64 = after_name.split_whitespace().skip(11).take(2).filter_map(|text| text.parse::<u64>().ok()).sum();
    Duration::from_millis(10 * ticks)
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
