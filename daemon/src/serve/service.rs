//! What happens to every request of every door before its handler: who asks is found, a request that could be read in
//! two ways is refused, bodies get their bounds, an answer waits while its address has much to take.

use std::convert::Infallible;
use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{ConnectInfo, State};
use axum::http::header::HOST;
use axum::http::{Method, Request, StatusCode, Version};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use hyper::body::{Body as _, Incoming};
use hyper::service::Service;
use hyper_util::service::TowerToHyperService;
use tokio_util::sync::CancellationToken;

use super::Stopping;
use super::body::{AnswerBody, PacedBody};
use super::counters::Counters;
use super::io::Watch;
use super::peers::{Place, Places, Reserved, Share, Unread};
use super::proxy::{AddressRange, forwarded_for};
use crate::problem::{Problem, ProblemKind};
use crate::request_id::{self, RequestId};

/// The router of one connection.
#[derive(Clone)]
pub(super) struct RequestService {
    pub router: TowerToHyperService<Router>,
    pub parts: Arc<ConnectionParts>,
}

/// What all requests of one connection share.
pub(super) struct ConnectionParts {
    pub peer: SocketAddr,
    /// The peer is a proxy that we trust: its requests name who asks.
    pub is_proxy: bool,
    pub trusted_proxies: Arc<[AddressRange]>,
    pub places: Places,
    pub unread: Unread,
    pub watch: Watch,
    pub body_first: Duration,
    pub counters: Counters,
    pub stop: CancellationToken,
}

impl ConnectionParts {
    /// Who asks: the address, and a place of its own if the connection is a proxy's.
    fn asker(&self, request: &Request<Incoming>) -> Result<(SocketAddr, Option<Place>), Problem> {
        let forwarded: Option<IpAddr> =
            self.is_proxy.then(|| forwarded_for(request.headers(), &self.trusted_proxies)).flatten();
        let Some(address) = forwarded else { return Ok((self.peer, None)) };
        let place = self.places.take_within(address).map_err(|reason| {
            self.counters.refused(reason);
            Problem::new(ProblemKind::RateLimited, "this address has too many requests under way").retry_after(AGAIN)
        })?;
        Ok((SocketAddr::new(address, 0), Some(place)))
    }
}

/// Waits until the address has taken enough of what it asked for before.
async fn reserve(share: &Share, bytes: usize, counters: &Counters) -> Result<Arc<Reserved>, Problem> {
    match tokio::time::timeout(RESERVE_MAX, share.reserve(bytes)).await {
        Ok(reserved) => Ok(Arc::new(reserved)),
        Err(_) => {
            counters.unread.increment(1);
            let detail = "this address has yet to take what it asked for before";
            Err(Problem::new(ProblemKind::RateLimited, detail).retry_after(AGAIN))
        }
    }
}

/// Put on every request: where its answer finds room if it may be large.
#[derive(Clone)]
struct LargeShare {
    share: Share,
    counters: Counters,
}

/// For routes whose answers may be large, with the bytes that such an answer has: it is made only once its address has
/// taken enough of those before. All other answers are taken for small.
pub async fn room_for(State(bytes): State<usize>, request: axum::extract::Request, next: Next) -> Response {
    let share = request.extensions().get::<LargeShare>().cloned();
    let Some(LargeShare { share, counters }) = share.filter(|_| *request.method() == Method::GET) else {
        return next.run(request).await;
    };
    // One connection of HTTP/1.1 has one answer at a time, one of HTTP/2 as many as it has streams.
    let bytes = if request.version() == Version::HTTP_2 { bytes } else { bytes.min(ANSWER_BYTES_HTTP1) };
    let reserved = match reserve(&share, bytes, &counters).await {
        Ok(reserved) => reserved,
        Err(problem) => return problem.into_response(),
    };
    let mut response = next.run(request).await;
    response.extensions_mut().insert(reserved);
    response
}

/// Put on an answer whose body is in memory once, however many are sent it: none of it is counted.
#[derive(Clone, Copy, Debug)]
pub struct SharedBody;

/// An answer, and what it holds until it is taken.
struct Answered {
    response: Response,
    reserved: Option<Arc<Reserved>>,
    place: Option<Place>,
}

impl RequestService {
    async fn answer(self, mut request: Request<Incoming>) -> Result<Answered, Problem> {
        check_host(&request)?;
        let (asker, place) = self.parts.asker(&request)?;
        let unread = place.as_ref().map_or(&self.parts.unread, Place::unread).clone();
        let counters = &self.parts.counters;
        // What changes something is answered briefly.
        let small = match *request.method() == Method::GET {
            true => Some(reserve(&unread.small, ANSWER_BYTES, counters).await?),
            false => None,
        };
        request.extensions_mut().insert(ConnectInfo(asker));
        request.extensions_mut().insert(Stopping(self.parts.stop.clone()));
        request.extensions_mut().insert(LargeShare { share: unread.large, counters: counters.clone() });
        let request = request.map(|body| Body::new(PacedBody::new(body, self.parts.body_first)));
        let Ok(mut response) = self.router.call(request).await;
        let reserved = response.extensions_mut().remove::<Arc<Reserved>>().or(small);
        if let Some(reserved) = &reserved {
            // A stream says no size: it makes its frames as its peer takes them.
            let is_shared = response.extensions().get::<SharedBody>().is_some();
            let bytes = if is_shared { 0 } else { response.body().size_hint().exact().unwrap_or(0) };
            reserved.settle(usize::try_from(bytes).unwrap_or(usize::MAX / 2));
        }
        Ok(Answered { response, reserved, place })
    }
}

impl Service<Request<Incoming>> for RequestService {
    type Response = hyper::Response<AnswerBody>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let is_http2 = request.version() == Version::HTTP_2;
        let under_way = self.parts.watch.begin(is_http2);
        let watch = self.parts.watch.clone();
        let id = RequestId::of(request.headers());
        let answering = id.clone().scope(self.clone().answer_or_problem(request));
        Box::pin(async move {
            let Answered { mut response, reserved, mut place } = answering.await;
            response.headers_mut().insert(request_id::HEADER, id.to_header());
            if response.status() == StatusCode::SWITCHING_PROTOCOLS {
                watch.upgrade();
                // The answer ends here, the connection does not.
                place.take().into_iter().for_each(|place| watch.keep(place));
            }
            Ok(response.map(|body| AnswerBody::new(body, is_http2, reserved, place, under_way)))
        })
    }
}

impl RequestService {
    async fn answer_or_problem(self, request: Request<Incoming>) -> Answered {
        self.answer(request).await.unwrap_or_else(|problem| Answered {
            response: problem.into_response(),
            reserved: None,
            place: None,
        })
    }
}

/// Which host is asked must be said once: proxies and we might pick different ones of two (RFC 9112 §3.2).
fn check_host(request: &Request<Incoming>) -> Result<(), Problem> {
    let count = request.headers().get_all(HOST).iter().count();
    let is_fine = match request.version() {
        Version::HTTP_2 | Version::HTTP_3 => count <= 1 && (count == 1 || request.uri().authority().is_some()),
        Version::HTTP_11 => count == 1,
        _ => count <= 1,
    };
    if is_fine { Ok(()) } else { Err(Problem::new(ProblemKind::BadRequest, "name one host")) }
}

/// How long a request waits for its address to take what it asked for before.
const RESERVE_MAX: Duration = Duration::from_secs(10);
const AGAIN: Duration = Duration::from_secs(5);
/// Held of the address's share until the answer's size is known.
const ANSWER_BYTES: usize = 4 << 10;
const ANSWER_BYTES_HTTP1: usize = 128 << 10;
