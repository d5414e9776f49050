//! SIGTERM and SIGINT ask for an orderly stop, the second one for an end at once; SIGHUP asks to look at files again.
//!
//! A thread of its own waits for them, which no runtime that starts, hangs or stops can hold up: they are heard from the
//! first line of the process to its last. They are blocked for every thread that begins after `listen`, so call it
//! before any other thread is begun.

use std::sync::Arc;

use anyhow::Context;
use nix::sys::signal::{SigSet, Signal};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// What has been asked for. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Signals {
    /// Cancelled by the first SIGTERM or SIGINT.
    pub stop: CancellationToken,
    /// Notified by every SIGHUP.
    pub look_again: Arc<Notify>,
}

impl Signals {
    pub fn listen() -> anyhow::Result<Signals> {
        let mut heard = SigSet::empty();
        [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP].into_iter().for_each(|signal| heard.add(signal));
        heard.thread_block().context("block the signals for all other threads")?;
        let signals = Signals::default();
        let ours = signals.clone();
        let body = move || {
            loop {
                // It fails only for a set that is no set.
                let Ok(signal) = heard.wait() else { return };
                ours.handle(signal);
            }
        };
        std::thread::Builder::new().name("signals".to_string()).spawn(body).context("start the thread of signals")?;
        Ok(signals)
    }

    fn handle(&self, signal: Signal) {
        if signal == Signal::SIGHUP {
            return self.look_again.notify_one();
        }
        if self.stop.is_cancelled() {
            eprintln!("wayfix: told twice to stop: ended at once");
            std::process::exit(EXIT_AT_ONCE);
        }
        self.stop.cancel();
    }
}

/// It failed to stop in order.
const EXIT_AT_ONCE: i32 = 1;
