//! HTTPS as the phone needs it: sessions from the API, sealed datagrams to an edge. A self-signed certificate is
//! believed only if it is the one whose hash is known beforehand; plain HTTP only on loopback.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use protocol::datagram::ANSWER_LEN_MAX;
use protocol::session::SessionGrant;
use reqwest::{StatusCode, Url};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, DigitallySignedStruct, SignatureScheme};

#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    #[error("{0} is not an address")]
    Address(String),
    #[error("plain HTTP is for loopback only, not for {0}")]
    Plain(String),
    #[error("request failed")]
    Request(#[from] reqwest::Error),
    #[error("TLS cannot be set up")]
    Tls(#[from] rustls::Error),
    #[error("answered {0}")]
    Status(StatusCode),
    #[error("answer is larger than {0} bytes")]
    TooLarge(usize),
    #[error("answer is not what it should be")]
    Json(#[from] serde_json::Error),
}

impl HttpError {
    /// The credential or the request itself was refused: asking again soon is no use.
    pub fn is_refusal(&self) -> bool {
        let HttpError::Status(status) = self else { return false };
        status.is_client_error()
            && *status != StatusCode::TOO_MANY_REQUESTS
            && *status != StatusCode::REQUEST_TIMEOUT
            && *status != StatusCode::CONFLICT
    }
}

/// The body of a request for a session.
#[derive(Clone, Copy, Debug, serde::Serialize)]
pub struct SessionAsked {
    pub logged_in: bool,
}

/// Connections, shared by all phones that hold a clone. One set per certificate pinned.
#[derive(Clone, Default)]
pub struct HttpClients {
    by_pin: Arc<Mutex<HashMap<Option<[u8; 32]>, reqwest::Client>>>,
}

impl HttpClients {
    /// A new session for the device with this credential.
    pub async fn fetch_grant(
        &self,
        api: &Url,
        pin: Option<[u8; 32]>,
        credential: &str,
        asked: &SessionAsked,
        timeout: Duration,
    ) -> Result<SessionGrant, HttpError> {
        let url = joined(api, "api/v1/sessions");
        let request = self.client(pin)?.post(url).bearer_auth(credential).timeout(timeout);
        let response = request.json(asked).send().await?;
        Ok(serde_json::from_slice(&read(response, GRANT_LEN_MAX).await?)?)
    }

    /// Carries one sealed datagram. Gives the sealed answer, nothing if there is none.
    pub async fn post_datagram(
        &self,
        edge: &str,
        pin: Option<[u8; 32]>,
        datagram: Vec<u8>,
        timeout: Duration,
    ) -> Result<Vec<u8>, HttpError> {
        let url = joined(&checked_url(edge)?, "v1/datagrams");
        let request = self.client(pin)?.post(url).timeout(timeout);
        let response = request.header("content-type", DATAGRAM_TYPE).body(datagram).send().await?;
        read(response, ANSWER_LEN_MAX).await
    }

    /// One that believes this certificate alone, or those that the system does.
    pub fn client(&self, pin: Option<[u8; 32]>) -> Result<reqwest::Client, HttpError> {
        let mut by_pin = self.by_pin.lock().expect("nothing panics while it holds the clients");
        if let Some(client) = by_pin.get(&pin) {
            return Ok(client.clone());
        }
        let builder = reqwest::Client::builder().redirect(reqwest::redirect::Policy::none()).no_proxy();
        let client = match pin {
            None => builder.build()?,
            Some(pin) => builder.tls_backend_preconfigured(pinned_tls(pin)?).build()?,
        };
        if by_pin.len() < PINS_MAX {
            by_pin.insert(pin, client.clone());
        }
        Ok(client)
    }
}

/// An address to which a phone may speak.
pub fn checked_url(text: &str) -> Result<Url, HttpError> {
    let url = Url::parse(text).map_err(|_| HttpError::Address(text.to_string()))?;
    let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
    let is_loopback = host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback());
    match url.scheme() {
        "https" => Ok(url),
        "http" if is_loopback => Ok(url),
        "http" => Err(HttpError::Plain(host.to_string())),
        _ => Err(HttpError::Address(text.to_string())),
    }
}

fn joined(base: &Url, path: &str) -> Url {
    let mut url = base.clone();
    url.set_path(&format!("{}/{path}", base.path().trim_end_matches('/')));
    url
}

/// The body of a response that succeeded, bounded.
async fn read(mut response: reqwest::Response, len_max: usize) -> Result<Vec<u8>, HttpError> {
    if !response.status().is_success() {
        return Err(HttpError::Status(response.status()));
    }
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await? {
        if body.len() + chunk.len() > len_max {
            return Err(HttpError::TooLarge(len_max));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

fn pinned_tls(pin: [u8; 32]) -> Result<rustls::ClientConfig, HttpError> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions()?;
    let verifier = Arc::new(PinnedCertificate { pin, provider });
    let mut config = config.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

/// Believes one certificate, whatever name it bears.
#[derive(Debug)]
struct PinnedCertificate {
    pin: [u8; 32],
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for PinnedCertificate {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let hash = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, certificate);
        if hash.as_ref() == self.pin {
            Ok(ServerCertVerified::assertion())
        } else {
            Err(CertificateError::ApplicationVerificationFailure.into())
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

pub const DATAGRAM_TYPE: &str = "application/vnd.wayfix.datagram";
/// 64 ids and 16 edges are about 6 KB.
const GRANT_LEN_MAX: usize = 64 * 1024;
const PINS_MAX: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_http_is_for_loopback_only() {
        for good in ["https://edge.example", "http://127.0.0.1:8080/base", "http://[::1]:80", "http://localhost"] {
            assert!(checked_url(good).is_ok(), "{good}");
        }
        for bad in ["http://192.0.2.1", "http://localhost.example", "ftp://127.0.0.1", "edge.example", ""] {
            assert!(checked_url(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_base_with_a_path_keeps_it() {
        let base = checked_url("https://example.org/wayfix/").unwrap();

        assert_eq!(joined(&base, "v1/datagrams").as_str(), "https://example.org/wayfix/v1/datagrams");
    }
}
