//! The certificate of the TLS doors: given, or self-signed, made at the first start and kept. Phones are told the hash
//! of a self-signed one with their session and accept no other, so it outlives restarts; it is made anew at a start when
//! half of its life is over, which their next session tells them.
//!
//! Files are looked at again while all runs (`CertificateWatch`): whoever renews a given certificate need not restart.

mod validity;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use aws_lc_rs::digest;
use daemon::Clock;
use daemon::admin::{Health, Readiness};
use daemon::write_private;
use rcgen::{CertificateParams, DnType, KeyPair};
use rustls::ServerConfig;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use time::OffsetDateTime;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

pub use validity::Validity;

use crate::config::TlsConfig;

/// What the TLS doors serve with.
#[derive(Debug)]
pub struct ServerTls {
    pub config: Arc<ServerConfig>,
    /// SHA-256 of the certificate, for phones to accept no other. None when a real one was given.
    pub pin: Option<[u8; 32]>,
    /// To be run beside the doors.
    pub watch: CertificateWatch,
}

#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("{path} cannot be read as PEM")]
    Pem { path: PathBuf, source: rustls::pki_types::pem::Error },
    #[error("{path} holds no certificate")]
    NoCertificate { path: PathBuf },
    #[error("{path} cannot be written")]
    Write { path: PathBuf, source: io::Error },
    #[error("a certificate cannot be made for these names")]
    Make(#[from] rcgen::Error),
    #[error("the certificate and its key cannot be served")]
    Serve(#[from] rustls::Error),
}

/// Whether these files, or a certificate made for these names, can be served. Blocking: reads files.
pub fn check(config: &TlsConfig) -> Result<(), TlsError> {
    match config {
        TlsConfig::Files { certificate, key } => {
            let files = Files { certificate: certificate.clone(), key: key.clone() };
            files.read(&rustls::crypto::aws_lc_rs::default_provider())?;
        }
        TlsConfig::SelfSigned { names } => {
            params_for(names)?.self_signed(&KeyPair::generate()?)?;
        }
    }
    Ok(())
}

/// Blocking: reads and at the first start writes files.
pub fn server_tls(config: &TlsConfig, state_folder: &Path, clock: Clock) -> Result<ServerTls, TlsError> {
    let files = match config {
        TlsConfig::Files { certificate, key } => Files { certificate: certificate.clone(), key: key.clone() },
        TlsConfig::SelfSigned { names } => {
            let files =
                Files { certificate: state_folder.join("tls-certificate.pem"), key: state_folder.join("tls-key.pem") };
            let now = now_of(clock);
            if !files.are_young(now) {
                files.make_self_signed(names, now)?;
            }
            files
        }
    };
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let seen = files.print();
    let served = files.read(&provider)?;
    let mut pin = [0; 32];
    pin.copy_from_slice(digest::digest(&digest::SHA256, &served.cert[0]).as_ref());
    let is_ours = matches!(config, TlsConfig::SelfSigned { .. });
    let shown = Arc::new(Shown(ArcSwap::from_pointee(served)));
    let mut config = ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_cert_resolver(shown.clone());
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let watch = CertificateWatch { files, provider, shown, seen, clock };
    Ok(ServerTls { config: Arc::new(config), pin: is_ours.then_some(pin), watch })
}

/// The certificate that is shown at the moment.
#[derive(Debug)]
struct Shown(ArcSwap<CertifiedKey>);

impl ResolvesServerCert for Shown {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.load_full())
    }
}

/// Looks at the certificate's files now and then, and shows what it finds there.
#[derive(Debug)]
pub struct CertificateWatch {
    files: Files,
    provider: Arc<CryptoProvider>,
    shown: Arc<Shown>,
    seen: Option<Print>,
    clock: Clock,
}

impl CertificateWatch {
    pub async fn run(mut self, readiness: Readiness, stop: CancellationToken) -> anyhow::Result<()> {
        loop {
            readiness.set(PART, self.health());
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
            self = tokio::task::spawn_blocking(move || {
                self.look();
                self
            })
            .await?;
        }
    }

    /// Takes up what changed. What cannot be read stays out: the files may be half written, and are looked at again.
    fn look(&mut self) {
        let print = self.files.print();
        if print.is_none() || print == self.seen {
            return;
        }
        match self.files.read(&self.provider) {
            Ok(served) => {
                info!(file = %self.files.certificate.display(), "the certificate changed, the new one is shown");
                self.shown.0.store(Arc::new(served));
                self.seen = print;
            }
            Err(error) => {
                let error = format!("{:#}", anyhow::Error::from(error));
                warn!(error, "the certificate changed and cannot be used, the old one stays");
            }
        }
    }

    fn health(&self) -> Health {
        let shown = self.shown.0.load();
        let Some(validity) = shown.cert.first().and_then(|first| Validity::of(first)) else { return Health::Ready };
        let left = validity.not_after - now_of(self.clock);
        if left > END_IS_NEAR {
            return Health::Ready;
        }
        Health::Degraded(format!("the certificate ends in {} days: renew it", left.whole_days()))
    }
}

/// Where a certificate and its key lie.
#[derive(Clone, Debug)]
struct Files {
    certificate: PathBuf,
    key: PathBuf,
}

/// By what a change of the files is known.
type Print = [(Option<SystemTime>, u64); 2];

impl Files {
    fn print(&self) -> Option<Print> {
        let of = |path: &Path| std::fs::metadata(path).map(|meta| (meta.modified().ok(), meta.len())).ok();
        Some([of(&self.certificate)?, of(&self.key)?])
    }

    fn read(&self, provider: &CryptoProvider) -> Result<CertifiedKey, TlsError> {
        let not_pem = |path: &Path| {
            let path = path.to_path_buf();
            move |source| TlsError::Pem { path, source }
        };
        let chain = CertificateDer::pem_file_iter(&self.certificate)
            .and_then(Iterator::collect::<Result<Vec<_>, _>>)
            .map_err(not_pem(&self.certificate))?;
        if chain.is_empty() {
            return Err(TlsError::NoCertificate { path: self.certificate.clone() });
        }
        let key = PrivateKeyDer::from_pem_file(&self.key).map_err(not_pem(&self.key))?;
        Ok(CertifiedKey::from_der(chain, key, provider)?)
    }

    /// Whether what was made before is there, is such as clients accept, and has half of its life before it.
    fn are_young(&self, now: OffsetDateTime) -> bool {
        // The key is written last: with only one of the two there, both are made again.
        if !self.key.is_file() {
            return false;
        }
        let Ok(first) = CertificateDer::from_pem_file(&self.certificate) else { return false };
        let Some(Validity { not_before, not_after }) = Validity::of(&first) else { return false };
        let life = not_after - not_before;
        life <= LIFE && not_before <= now && now < not_before + life / 2
    }

    fn make_self_signed(&self, names: &[String], now: OffsetDateTime) -> Result<(), TlsError> {
        let mut params = params_for(names)?;
        // A day before: the clocks of phones differ from ours.
        params.not_before = now - Duration::from_secs(86_400);
        params.not_after = params.not_before + LIFE;
        let key_pair = KeyPair::generate()?;
        let made = params.self_signed(&key_pair)?;
        for (path, text) in [(&self.certificate, made.pem()), (&self.key, key_pair.serialize_pem())] {
            write_private(path, text.as_bytes()).map_err(|source| TlsError::Write { path: path.clone(), source })?;
        }
        Ok(())
    }
}

fn params_for(names: &[String]) -> Result<CertificateParams, rcgen::Error> {
    let mut all = vec!["localhost".to_string(), "127.0.0.1".to_string(), "::1".to_string()];
    all.extend(names.iter().filter(|name| !name.is_empty()).cloned());
    let mut params = CertificateParams::new(all)?;
    params.distinguished_name.push(DnType::CommonName, "Wayfix");
    Ok(params)
}

fn now_of(clock: Clock) -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(clock.now_ms() / 1000).unwrap_or(OffsetDateTime::UNIX_EPOCH)
}

/// The name in `/readyz`.
const PART: &str = "certificate";
/// Clients refuse more than 825 days.
const LIFE: time::Duration = time::Duration::days(820);
const END_IS_NEAR: time::Duration = time::Duration::days(14);
const LOOK_EVERY: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn self_signed() -> TlsConfig {
        TlsConfig::SelfSigned { names: vec!["192.168.1.20".to_string(), "tracker.example".to_string()] }
    }

    #[test]
    fn a_self_signed_certificate_outlives_a_restart_and_its_key_is_private() {
        let folder = tempfile::tempdir().unwrap();

        let first = server_tls(&self_signed(), folder.path(), Clock::system()).unwrap();
        let second = server_tls(&self_signed(), folder.path(), Clock::system()).unwrap();

        assert!(first.pin.is_some());
        assert_eq!(first.pin, second.pin);
        let mode = std::fs::metadata(folder.path().join("tls-key.pem")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_given_certificate_is_served_and_not_pinned() {
        let folder = tempfile::tempdir().unwrap();
        server_tls(&self_signed(), folder.path(), Clock::system()).unwrap();
        let given = TlsConfig::Files {
            certificate: folder.path().join("tls-certificate.pem"),
            key: folder.path().join("tls-key.pem"),
        };

        assert_eq!(server_tls(&given, folder.path(), Clock::system()).unwrap().pin, None);
    }

    #[test]
    fn files_that_are_no_certificate_are_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("broken.pem");
        for text in ["", "-----BEGIN CERTIFICATE-----\nAAAA\n", "nonsense"] {
            std::fs::write(&path, text).unwrap();
            let given = TlsConfig::Files { certificate: path.clone(), key: path.clone() };

            let error = server_tls(&given, folder.path(), Clock::system()).unwrap_err().to_string();

            assert!(error.contains("broken.pem"), "{error}");
        }
    }

    #[test]
    fn half_of_a_pair_is_made_again() {
        let folder = tempfile::tempdir().unwrap();
        let first = server_tls(&self_signed(), folder.path(), Clock::system()).unwrap();
        std::fs::remove_file(folder.path().join("tls-key.pem")).unwrap();

        let second = server_tls(&self_signed(), folder.path(), Clock::system()).unwrap();

        assert_ne!(first.pin, second.pin);
    }
    #[test]
    fn a_self_signed_certificate_lives_as_long_as_clients_accept_and_is_made_anew_at_half_of_it() {
        let folder = tempfile::tempdir().unwrap();
        let day_ms = 86_400_000;
        let clock = |days: i64| {
            let origin_ms = Clock::system().now_ms() + days * day_ms;
            Clock::scaled(daemon::Scale { factor: 1.5, origin_ms }).unwrap()
        };
        let start = |days| server_tls(&self_signed(), folder.path(), clock(days)).unwrap();

        let first = start(0);
        let validity = Validity::of(&first.watch.shown.0.load().cert[0]).unwrap();

        assert!(validity.not_after - validity.not_before <= time::Duration::days(825));
        assert_eq!(start(400).pin, first.pin, "before half of its life it stays");
        let second = start(415);
        assert_ne!(second.pin, first.pin);
        assert_ne!(start(0).pin, second.pin, "one from the future is refused by clients");
    }

    #[test]
    fn one_that_was_made_for_two_thousand_years_is_made_again() {
        let folder = tempfile::tempdir().unwrap();
        let files =
            Files { certificate: folder.path().join("tls-certificate.pem"), key: folder.path().join("tls-key.pem") };
        let params = CertificateParams::new(vec!["localhost".to_string()]).unwrap();
        let key = KeyPair::generate().unwrap();
        write_private(&files.certificate, params.self_signed(&key).unwrap().pem().as_bytes()).unwrap();
        write_private(&files.key, key.serialize_pem().as_bytes()).unwrap();

        assert!(!files.are_young(now_of(Clock::system())));
        let made = server_tls(&self_signed(), folder.path(), Clock::system()).unwrap();

        assert!(made.watch.files.are_young(now_of(Clock::system())));
    }

    #[test]
    fn a_certificate_that_changes_is_shown_and_one_that_is_broken_is_not() {
        let (ours, others) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        server_tls(&self_signed(), ours.path(), Clock::system()).unwrap();
        server_tls(&self_signed(), others.path(), Clock::system()).unwrap();
        let file = |folder: &Path, name: &str| folder.join(name);
        let given = TlsConfig::Files {
            certificate: file(ours.path(), "tls-certificate.pem"),
            key: file(ours.path(), "tls-key.pem"),
        };
        let mut tls = server_tls(&given, ours.path(), Clock::system()).unwrap();
        let first = tls.watch.shown.0.load().cert[0].clone();

        std::fs::write(file(ours.path(), "tls-certificate.pem"), "half a certif").unwrap();
        tls.watch.look();
        assert_eq!(tls.watch.shown.0.load().cert[0], first);

        for name in ["tls-certificate.pem", "tls-key.pem"] {
            std::fs::copy(file(others.path(), name), file(ours.path(), name)).unwrap();
        }
        tls.watch.look();
        assert_ne!(tls.watch.shown.0.load().cert[0], first);
    }
}
