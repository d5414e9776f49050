//! The bytes of one connection, with its deadlines kept. hyper and whoever takes an upgraded connection read and write
//! through this; when the connection has had its time, reading ends, and a head that came too slowly is answered 408.
//!
//! A connection that we end while its peer still sends would be reset by the kernel, and with it what the peer has not
//! read yet: the 401 that came before its body was sent, the Close frame that names its fault. So what is left of such a
//! connection is shut down for writing and read for a moment more (`linger`).

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::time::Sleep;
use tokio_util::task::TaskTracker;

use super::counters::Counters;
use super::deadlines::{Deadlines, Expiry, Times};
use super::peers::Place;

/// What the bytes and the requests of one connection tell its deadlines. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Watch(Arc<Watched>);

#[derive(Debug)]
struct Watched {
    deadlines: Mutex<Deadlines>,
    /// Places beside the connection's own, of who is behind a proxy.
    kept: Mutex<Vec<Place>>,
}

impl Watch {
    pub fn new(times: Times) -> Self {
        let deadlines = Mutex::new(Deadlines::new(times, Instant::now()));
        Watch(Arc::new(Watched { deadlines, kept: Mutex::default() }))
    }

    fn with<T>(&self, act: impl FnOnce(&mut Deadlines) -> T) -> T {
        act(&mut self.0.deadlines.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Keeps a place for as long as the connection lasts.
    pub fn keep(&self, place: Place) {
        self.0.kept.lock().unwrap_or_else(PoisonError::into_inner).push(place);
    }

    /// A request has come; its answer has ended when what this gives is dropped.
    pub fn begin(&self, is_http2: bool) -> UnderWay {
        self.with(|deadlines| deadlines.handle_request(is_http2));
        UnderWay(self.clone())
    }

    pub fn upgrade(&self) {
        self.with(Deadlines::handle_upgrade);
    }
}

/// A request whose answer has not ended.
#[derive(Debug)]
pub(super) struct UnderWay(Watch);

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.with(|deadlines| deadlines.handle_answered(Instant::now()));
    }
}

pub(super) trait Bytes: AsyncRead + AsyncWrite + Unpin + Send + 'static {}

impl<S: AsyncRead + AsyncWrite + Unpin + Send + 'static> Bytes for S {}

pub(super) struct GuardedIo<S: Bytes> {
    /// Some until it is dropped.
    stream: Option<S>,
    watch: Watch,
    timer: Pin<Box<Sleep>>,
    /// The first bytes that came, to tell the versions of HTTP apart.
    began: [u8; 4],
    began_len: usize,
    /// Its time is over: nothing is read or written any more.
    is_over: bool,
    /// The peer has ended, or takes nothing: nobody would read a last word.
    has_no_peer: bool,
    /// A flush waits, which says as much as a write that does.
    is_flush_blocked: bool,
    counters: Counters,
    lingering: TaskTracker,
    place: Option<Place>,
}

impl<S: Bytes> GuardedIo<S> {
    pub fn new(stream: S, watch: Watch, place: Place, counters: Counters, lingering: TaskTracker) -> Self {
        let first = watch.with(|deadlines| deadlines.poll_timeout(Instant::now())).unwrap_or_else(Instant::now);
        GuardedIo {
            stream: Some(stream),
            watch,
            timer: Box::pin(tokio::time::sleep_until(first.into())),
            began: [0; 4],
            began_len: 0,
            is_over: false,
            has_no_peer: false,
            is_flush_blocked: false,
            counters,
            lingering,
            place: Some(place),
        }
    }

    fn stream(&mut self) -> Pin<&mut S> {
        Pin::new(self.stream.as_mut().expect("it is there until this is dropped"))
    }

    fn poll_expiry(&mut self, cx: &mut Context<'_>) -> Poll<Expiry> {
        loop {
            let now = Instant::now();
            let (expired, next) = self.watch.with(|deadlines| (deadlines.expired(now), deadlines.poll_timeout(now)));
            if let Some(expiry) = expired {
                return Poll::Ready(expiry);
            }
            let Some(next) = next else { return Poll::Pending };
            // A timer that fires too early only looks once more; moving it at every read would cost more.
            if self.timer.is_elapsed() || next < self.timer.deadline().into_std() {
                self.timer.as_mut().reset(next.into());
            }
            ready!(self.timer.as_mut().poll(cx));
        }
    }

    fn expire(&mut self, expiry: Expiry, cx: &mut Context<'_>) {
        self.is_over = true;
        self.counters.ended(expiry);
        match expiry {
            Expiry::Stalled => self.has_no_peer = true,
            Expiry::SlowHead if self.began != *HTTP2_BEGINS => {
                // If the kernel has no room for these few bytes, the peer does without them.
                let _is_best_effort = self.stream().poll_write(cx, TOO_SLOW);
            }
            Expiry::SlowHead | Expiry::NoRequest | Expiry::Idle => {}
        }
    }

    fn handle_read(&mut self, bytes: &[u8]) {
        let room = self.began.len() - self.began_len;
        let first = &bytes[..bytes.len().min(room)];
        self.began[self.began_len..self.began_len + first.len()].copy_from_slice(first);
        self.began_len += first.len();
        self.watch.with(|deadlines| deadlines.handle_read(Instant::now()));
    }

    /// What a write or a flush came to, told to the deadlines.
    fn watched<T>(&mut self, outcome: Poll<io::Result<T>>, cx: &mut Context<'_>) -> Poll<io::Result<T>> {
        match &outcome {
            Poll::Ready(Ok(_)) => self.watch.with(Deadlines::handle_written),
            Poll::Ready(Err(_)) => self.has_no_peer = true,
            Poll::Pending => {
                self.watch.with(|deadlines| deadlines.handle_blocked(Instant::now()));
                if let Poll::Ready(expiry) = self.poll_expiry(cx) {
                    self.expire(expiry, cx);
                    return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
                }
            }
        }
        outcome
    }
}

impl<S: Bytes> AsyncRead for GuardedIo<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !this.is_over
            && let Poll::Ready(expiry) = this.poll_expiry(cx)
        {
            this.expire(expiry, cx);
        }
        if this.is_over {
            return Poll::Ready(if this.has_no_peer { Err(io::ErrorKind::TimedOut.into()) } else { Ok(()) });
        }
        let before = buffer.filled().len();
        let outcome = ready!(this.stream().poll_read(cx, buffer));
        match &outcome {
            Ok(()) if buffer.filled().len() > before => this.handle_read(&buffer.filled()[before..]),
            Ok(()) | Err(_) => this.has_no_peer = true,
        }
        Poll::Ready(outcome)
    }
}

impl<S: Bytes> AsyncWrite for GuardedIo<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.is_over {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        let outcome = this.stream().poll_write(cx, bytes);
        this.watched(outcome, cx)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.is_over {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        let outcome = this.stream().poll_write_vectored(cx, slices);
        this.watched(outcome, cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.as_ref().is_some_and(S::is_write_vectored)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let outcome = this.stream().poll_flush(cx);
        // A plain socket's flush is always ready and says nothing; that of TLS waits for the kernel.
        if outcome.is_ready() && !this.is_flush_blocked {
            return outcome;
        }
        this.is_flush_blocked = outcome.is_pending();
        this.watched(outcome, cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let outcome = this.stream().poll_shutdown(cx);
        if outcome.is_ready() { outcome } else { this.watched(outcome, cx) }
    }
}

impl<S: Bytes> Drop for GuardedIo<S> {
    fn drop(&mut self) {
        let (Some(stream), false) = (self.stream.take(), self.has_no_peer) else { return };
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        self.lingering.spawn_on(linger(stream, self.place.take()), &runtime);
    }
}

/// Lets the peer hear our last word: says that nothing more comes, and takes what it still sends, for a while.
async fn linger<S: Bytes>(mut stream: S, _place: Option<Place>) {
    let begun = tokio::time::Instant::now();
    let mut bytes = [0; 4096];
    let mut taken = 0_u32;
    let _peer_has_gone = tokio::time::timeout(LINGER_FIRST, stream.shutdown()).await;
    loop {
        let earned = Duration::from_secs_f64(f64::from(taken) / LINGER_BYTES_PER_S);
        let until = begun + (LINGER_FIRST + earned).min(LINGER_MAX);
        match tokio::time::timeout_at(until, stream.read(&mut bytes)).await {
            Ok(Ok(count)) if count > 0 && taken < LINGER_BYTES_MAX => taken += count as u32,
            Ok(Ok(_) | Err(_)) | Err(_) => return,
        }
    }
}

const HTTP2_BEGINS: &[u8; 4] = b"PRI ";
const TOO_SLOW: &[u8] = b"HTTP/1.1 408 Request Timeout\r\ncontent-type: application/problem+json\r\ncontent-length: 135\r\nconnection: close\r\n\r\n{\"type\":\"urn:wayfix:problem:too_slow\",\"title\":\"the request did not come in time\",\"status\":408,\"detail\":\"its headers came too slowly\"  }";
const LINGER_FIRST: Duration = Duration::from_secs(2);
const LINGER_MAX: Duration = Duration::from_secs(30);
/// No body that is taken anywhere is larger.
const LINGER_BYTES_MAX: u32 = 16 << 20;
/// A slow phone's uplink; whoever sends less than this is not waited for.
const LINGER_BYTES_PER_S: f64 = 8192.0;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answer_to_slow_headers_is_as_long_as_it_says() {
        let text = std::str::from_utf8(TOO_SLOW).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        let length: usize = head.split("content-length: ").nth(1).unwrap().lines().next().unwrap().parse().unwrap();

        assert_eq!(body.len(), length);
        assert_eq!(serde_json::from_str::<serde_json::Value>(body).unwrap()["status"], 408);
    }
}
