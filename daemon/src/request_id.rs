//! The id of a request: said by the client in `x-request-id` or drawn here, answered in the same header, put into
//! problems and log lines, so that one who complains and one who reads the log speak of the same request.

use axum::http::{HeaderMap, HeaderValue};
use tokio::task::futures::TaskLocalFuture;

/// 1 to 64 letters, digits, dots, dashes and underscores: safe in a header, in JSON and in a log line.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RequestId(HeaderValue);

impl RequestId {
    /// What the client said, if it can be used; drawn otherwise.
    pub fn of(headers: &HeaderMap) -> RequestId {
        let said = headers.get(HEADER).and_then(|value| value.to_str().ok());
        said.and_then(RequestId::said).unwrap_or_else(RequestId::draw)
    }

    pub fn said(text: &str) -> Option<RequestId> {
        let is_safe = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
        let is_fit = (1..=CHARS_MAX).contains(&text.len()) && text.bytes().all(is_safe);
        is_fit.then(|| HeaderValue::from_str(text).ok()).flatten().map(RequestId)
    }

    pub fn draw() -> RequestId {
        let text = format!("{:016x}", rand::random::<u64>());
        RequestId(HeaderValue::try_from(text).expect("hex digits are a header's value"))
    }

    /// Of the request in whose handling this is asked.
    pub fn current() -> Option<RequestId> {
        CURRENT.try_with(Clone::clone).ok()
    }

    /// While `handling` runs this is the current one.
    pub fn scope<F: Future>(self, handling: F) -> TaskLocalFuture<RequestId, F> {
        CURRENT.scope(self, handling)
    }

    pub fn as_str(&self) -> &str {
        self.0.to_str().unwrap_or_default()
    }

    pub fn to_header(&self) -> HeaderValue {
        self.0.clone()
    }
}

tokio::task_local! {
    static CURRENT: RequestId;
}

pub const HEADER: &str = "x-request-id";
const CHARS_MAX: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_client_says_is_kept_only_if_it_is_harmless() {
        for (said, is_kept) in
            [("order-17.a_b", true), ("", false), ("a b", false), ("a\"b", false), (&"x".repeat(65), false)]
        {
            let mut headers = HeaderMap::new();
            headers.insert(HEADER, HeaderValue::from_str(said).unwrap());

            let id = RequestId::of(&headers);

            assert_eq!(id.as_str() == said, is_kept, "{said}");
            assert!(!id.as_str().is_empty());
        }
    }

    #[test]
    fn two_requests_that_say_nothing_get_different_ids() {
        assert_ne!(RequestId::of(&HeaderMap::new()), RequestId::of(&HeaderMap::new()));
    }
}
