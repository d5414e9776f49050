//! Bodies with bounds: a request's must come at a pace, an answer's is cut so that a peer that takes nothing leaves
//! little behind.

use std::error::Error;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes, to_bytes};
use hyper::body::{Body as HttpBody, Frame, Incoming, SizeHint};
use tokio::time::{Instant, Sleep};

use super::io::UnderWay;
use super::peers::{Place, Reserved};
use crate::problem::{Problem, ProblemKind};

/// Reads a body whole. What is wrong with it is said as it is: too large, too slow, or cut short.
pub async fn read_body(body: Body, bytes_max: usize) -> Result<Bytes, Problem> {
    to_bytes(body, bytes_max).await.map_err(|error| match fault_of(&error) {
        Fault::TooLarge => Problem::new(ProblemKind::TooLarge, format!("a body may have {bytes_max} bytes")),
        Fault::TooSlow => Problem::new(ProblemKind::TooSlow, "the body came too slowly"),
        Fault::Broken => Problem::new(ProblemKind::BadRequest, "the body broke off, or its chunks are malformed"),
    })
}

enum Fault {
    TooLarge,
    TooSlow,
    Broken,
}

fn fault_of(error: &axum::Error) -> Fault {
    let mut source = error.source();
    while let Some(error) = source {
        if error.is::<http_body_util::LengthLimitError>() {
            return Fault::TooLarge;
        }
        if error.is::<TooSlow>() {
            return Fault::TooSlow;
        }
        source = error.source();
    }
    Fault::Broken
}

/// A request's body did not keep pace.
#[derive(Debug)]
pub struct TooSlow;

impl fmt::Display for TooSlow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the body came too slowly")
    }
}

impl Error for TooSlow {}

/// A request's body, which must come whole within `first`, longer only as far as its bytes earn it.
pub(super) struct PacedBody {
    body: Incoming,
    first: Duration,
    begun: Option<Instant>,
    bytes: u64,
    timer: Option<Pin<Box<Sleep>>>,
}

impl PacedBody {
    pub fn new(body: Incoming, first: Duration) -> Self {
        PacedBody { body, first, begun: None, bytes: 0, timer: None }
    }
}

impl HttpBody for PacedBody {
    type Data = Bytes;
    type Error = Box<dyn Error + Send + Sync>;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Box<dyn Error + Send + Sync>>>> {
        let this = self.get_mut();
        if let Poll::Ready(frame) = Pin::new(&mut this.body).poll_frame(cx) {
            if let Some(Ok(frame)) = &frame {
                this.bytes += frame.data_ref().map_or(0, |data| data.len() as u64);
            }
            return Poll::Ready(frame.map(|frame| frame.map_err(Into::into)));
        }
        let begun = *this.begun.get_or_insert_with(Instant::now);
        let until = begun + this.first + Duration::from_secs_f64(this.bytes as f64 / BYTES_PER_S_MIN);
        let timer = this.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(until)));
        if timer.deadline() != until {
            timer.as_mut().reset(until);
        }
        timer.as_mut().poll(cx).map(|()| Some(Err(TooSlow.into())))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// An answer's body, with what the answer holds until its end.
pub(super) struct AnswerBody {
    body: Body,
    /// Of the chunk under way, what has not been handed on.
    rest: Bytes,
    /// HTTP/2 keeps what is handed to it until the peer's window opens, so it is handed little at once.
    piece_bytes_max: usize,
    progress: Option<Progress>,
    _reserved: Option<Arc<Reserved>>,
    _place: Option<Place>,
    _under_way: UnderWay,
}

impl AnswerBody {
    pub fn new(
        body: Body,
        is_http2: bool,
        reserved: Option<Arc<Reserved>>,
        place: Option<Place>,
        under_way: UnderWay,
    ) -> Self {
        let progress = Progress::current();
        if let Some(progress) = &progress {
            progress.handed_on();
        }
        AnswerBody {
            body,
            rest: Bytes::new(),
            piece_bytes_max: if is_http2 { PIECE_BYTES } else { usize::MAX },
            progress,
            _reserved: reserved,
            _place: place,
            _under_way: under_way,
        }
    }
}

impl HttpBody for AnswerBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let this = self.get_mut();
        if this.rest.is_empty() {
            match Pin::new(&mut this.body).poll_frame(cx) {
                Poll::Pending => {
                    if let Some(progress) = &this.progress {
                        progress.waits_for_us();
                    }
                    return Poll::Pending;
                }
                Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                    Ok(data) => this.rest = data,
                    Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
                },
                ended @ Poll::Ready(Some(Err(_)) | None) => return ended,
            }
        }
        if let Some(progress) = &this.progress {
            progress.handed_on();
        }
        let piece = this.rest.split_to(this.rest.len().min(this.piece_bytes_max));
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let mut hint = self.body.size_hint();
        let rest = self.rest.len() as u64;
        let upper = hint.upper();
        hint.set_lower(0);
        if let Some(upper) = upper {
            hint.set_upper(upper + rest);
        }
        hint.set_lower(self.body.size_hint().lower() + rest);
        hint
    }
}

/// Since when a stream of HTTP/2 has had something that its peer does not take. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(super) struct Progress(Arc<Mutex<Option<Instant>>>);

impl Progress {
    pub fn current() -> Option<Progress> {
        CURRENT.try_with(Clone::clone).ok()
    }

    fn handed_on(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    fn waits_for_us(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Runs a stream to its end, or until its peer has taken nothing for `stalled_max`; true if it ended by itself.
    pub async fn watch<F: Future>(self, stream: F, stalled_max: Duration) -> bool {
        let stalled = async {
            loop {
                let since = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
                let until = since.unwrap_or_else(Instant::now) + stalled_max;
                if until <= Instant::now() {
                    return;
                }
                tokio::time::sleep_until(until).await;
            }
        };
        tokio::select! {
            _ = CURRENT.scope(self.clone(), stream) => true,
            () = stalled => false,
        }
    }
}

tokio::task_local! {
    static CURRENT: Progress;
}

/// A slow phone's uplink: a body of 256 KiB may take a minute more.
const BYTES_PER_S_MIN: f64 = 4096.0;
/// A piece has to be taken within `stalled_max`, 10 s: so whoever takes 410 bytes a second gets the whole answer.
const PIECE_BYTES: usize = 4 << 10;

#[cfg(test)]
mod tests {
    use super::super::deadlines::Times;
    use super::super::io::Watch;
    use super::*;

    #[tokio::test]
    async fn a_body_s_fault_is_said_as_it_is() {
        let broken = futures_body([Ok(Bytes::from_static(b"{")), Err("cut".into())]);
        let slow = futures_body([Err(Box::new(TooSlow) as Box<dyn Error + Send + Sync>)]);

        assert_eq!(read_body(Body::from("12345"), 5).await.unwrap(), "12345");
        assert_eq!(read_body(Body::from("123456"), 5).await.unwrap_err().kind, ProblemKind::TooLarge);
        assert_eq!(read_body(broken, 5).await.unwrap_err().kind, ProblemKind::BadRequest);
        assert_eq!(read_body(slow, 5).await.unwrap_err().kind, ProblemKind::TooSlow);
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_that_waits_for_us_lasts_and_one_that_waits_for_its_peer_does_not() {
        let stalled_max = Duration::from_secs(11);
        let ours = async {
            Progress::current().unwrap().waits_for_us();
            tokio::time::sleep(Duration::from_secs(3600)).await;
        };
        let theirs = async {
            Progress::current().unwrap().handed_on();
            tokio::time::sleep(Duration::from_secs(3600)).await;
        };

        assert!(Progress::default().watch(ours, stalled_max).await);
        assert!(!Progress::default().watch(theirs, stalled_max).await);
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_takes_a_kilobyte_a_second_gets_the_whole_answer() {
        let stalled_max = Duration::from_secs(10);
        let taken = Arc::new(Mutex::new(0));
        let count = taken.clone();
        let stream = async move {
            let times = Times { head_max: stalled_max, idle_max: stalled_max, stalled_max };
            let under_way = Watch::new(times).begin(true);
            let mut body = AnswerBody::new(Body::from(vec![b'x'; 200 << 10]), true, None, None, under_way);
            while let Some(frame) = std::future::poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
                let bytes = frame.unwrap().into_data().unwrap().len();
                // As hyper: it asks for more once the peer has taken what it was handed.
                tokio::time::sleep(Duration::from_secs_f64(bytes as f64 / 1024.0)).await;
                *count.lock().unwrap() += bytes;
            }
        };

        assert!(Progress::default().watch(stream, stalled_max).await);
        assert_eq!(*taken.lock().unwrap(), 200 << 10);
    }

    fn futures_body<const N: usize>(frames: [Result<Bytes, Box<dyn Error + Send + Sync>>; N]) -> Body {
        struct Frames(std::collections::VecDeque<Result<Bytes, Box<dyn Error + Send + Sync>>>);
        impl HttpBody for Frames {
            type Data = Bytes;
            type Error = Box<dyn Error + Send + Sync>;

            fn poll_frame(
                mut self: Pin<&mut Self>,
                _cx: &mut Context<'_>,
            ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
                Poll::Ready(self.0.pop_front().map(|frame| frame.map(Frame::data)))
            }
        }
        Body::new(Frames(frames.into_iter().collect()))
    }
}
