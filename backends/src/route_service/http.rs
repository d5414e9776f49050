//! Asking an engine: one time limit over all tries, bodies bounded, and only what may pass by itself asked again.

use std::time::Duration;

use daemon::Backoff;
use reqwest::redirect::Policy;
use reqwest::{Client, RequestBuilder, Response};

use super::RouteServiceError;

pub(super) struct Http {
    client: Client,
    timeout: Duration,
}

/// An answer that is one, whatever it says.
pub(super) struct Answer {
    pub is_success: bool,
    pub body: Vec<u8>,
}

impl Http {
    /// Straight to the address that was set: no proxy, no redirect.
    pub fn new(timeout: Duration) -> Result<Http, RouteServiceError> {
        let client = Client::builder().no_proxy().redirect(Policy::none()).connect_timeout(timeout).timeout(timeout);
        let client = client.user_agent("wayfix").build();
        Ok(Http { client: client.map_err(unavailable)?, timeout })
    }

    pub async fn ask(&self, request: impl Fn(&Client) -> RequestBuilder) -> Result<Answer, RouteServiceError> {
        let late = || RouteServiceError::Unavailable { reason: format!("no answer within {:?}", self.timeout) };
        let tries = async {
            let mut failures = 0;
            loop {
                match once(request(&self.client)).await {
                    Err(error) if error.is_transient() && failures < RETRIES_MAX => {
                        tokio::time::sleep(BACKOFF.delay(failures)).await;
                        failures += 1;
                    }
                    answered => return answered,
                }
            }
        };
        tokio::time::timeout(self.timeout, tries).await.unwrap_or_else(|_| Err(late()))
    }
}

async fn once(request: RequestBuilder) -> Result<Answer, RouteServiceError> {
    let mut response = request.send().await.map_err(unavailable)?;
    let status = response.status();
    if status.is_server_error() || status.as_u16() == 429 || status.as_u16() == 408 {
        return Err(RouteServiceError::Unavailable { reason: format!("it answered {status}") });
    }
    if status.is_redirection() || status.is_informational() {
        return Err(RouteServiceError::Refused { reason: format!("it answered {status}") });
    }
    let body = read(&mut response).await?;
    Ok(Answer { is_success: status.is_success(), body })
}

async fn read(response: &mut Response) -> Result<Vec<u8>, RouteServiceError> {
    let too_large = || RouteServiceError::TooLarge { bytes_max: BODY_BYTES_MAX };
    if response.content_length().is_some_and(|bytes| bytes > BODY_BYTES_MAX as u64) {
        return Err(too_large());
    }
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(unavailable)? {
        if body.len() + chunk.len() > BODY_BYTES_MAX {
            return Err(too_large());
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

fn unavailable(error: reqwest::Error) -> RouteServiceError {
    // The address may hold a key: it is left out.
    let error = error.without_url();
    let mut reason = error.to_string();
    let mut cause: Option<&dyn std::error::Error> = std::error::Error::source(&error);
    while let Some(error) = cause {
        reason = format!("{reason}: {error}");
        cause = error.source();
    }
    RouteServiceError::Unavailable { reason }
}

/// What an engine says of itself, cut to what a log line bears.
pub(super) fn said(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(SAID_MAX).collect()
}

/// A way across a region, annotated, is some hundred kilobytes.
pub(super) const BODY_BYTES_MAX: usize = 4 << 20;
const RETRIES_MAX: u32 = 2;
const BACKOFF: Backoff = Backoff { first: Duration::from_millis(50), max: Duration::from_millis(500) };
const SAID_MAX: usize = 200;
