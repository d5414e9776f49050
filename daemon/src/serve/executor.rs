//! Runs the streams of an HTTP/2 connection. One whose peer takes nothing of what there is for it is dropped, which
//! resets that stream and lets its answer go; the others of its connection go on.

use std::future::Future;
use std::time::Duration;

use hyper::rt::Executor;
use tokio_util::task::TaskTracker;

use super::body::Progress;
use super::counters::Counters;

#[derive(Clone)]
pub(super) struct StreamExecutor {
    stalled_max: Duration,
    counters: Counters,
    streams: TaskTracker,
}

impl StreamExecutor {
    pub fn new(stalled_max: Duration, counters: Counters, streams: TaskTracker) -> Self {
        StreamExecutor { stalled_max, counters, streams }
    }
}

impl<F> Executor<F> for StreamExecutor
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    fn execute(&self, stream: F) {
        let (stalled_max, counters) = (self.stalled_max, self.counters.clone());
        self.streams.spawn(async move {
            if !Progress::default().watch(stream, stalled_max).await {
                counters.streams_stalled.increment(1);
            }
        });
    }
}
