//! The certificate of the TLS doors: given, or self-signed, made at the first start and kept. Phones are told the hash
//! of a self-signed one with their session and accept no other, so it must outlive restarts.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use aws_lc_rs::digest;
use rcgen::{CertificateParams, DnType, KeyPair};
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::config::TlsConfig;
use crate::identity::write_private;

/// What the TLS doors serve with.
#[derive(Clone, Debug)]
pub struct ServerTls {
    pub config: Arc<ServerConfig>,
    /// SHA-256 of the certificate, for phones to accept no other. None when a real one was given.
    pub pin: Option<[u8; 32]>,
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

/// Blocking: reads and at the first start writes files.
pub fn server_tls(config: &TlsConfig, state_folder: &Path) -> Result<ServerTls, TlsError> {
    match config {
        TlsConfig::Files { certificate, key } => Ok(ServerTls { config: serve_with(certificate, key)?.0, pin: None }),
        TlsConfig::SelfSigned { names } => {
            let certificate = state_folder.join("tls-certificate.pem");
            let key = state_folder.join("tls-key.pem");
            // The key is written last: with only one of the two there, both are made again.
            if !(certificate.is_file() && key.is_file()) {
                make_self_signed(names, &certificate, &key)?;
            }
            let (config, first) = serve_with(&certificate, &key)?;
            let mut pin = [0; 32];
            pin.copy_from_slice(digest::digest(&digest::SHA256, &first).as_ref());
            Ok(ServerTls { config, pin: Some(pin) })
        }
    }
}

fn serve_with(certificate: &Path, key: &Path) -> Result<(Arc<ServerConfig>, CertificateDer<'static>), TlsError> {
    let not_pem = |path: &Path| {
        let path = path.to_path_buf();
        move |source| TlsError::Pem { path, source }
    };
    let chain = CertificateDer::pem_file_iter(certificate)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(not_pem(certificate))?;
    let first = chain.first().cloned().ok_or_else(|| TlsError::NoCertificate { path: certificate.to_path_buf() })?;
    let key = PrivateKeyDer::from_pem_file(key).map_err(not_pem(key))?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(chain, key)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok((Arc::new(config), first))
}

fn make_self_signed(names: &[String], certificate: &Path, key: &Path) -> Result<(), TlsError> {
    let mut all = vec!["localhost".to_string(), "127.0.0.1".to_string(), "::1".to_string()];
    all.extend(names.iter().filter(|name| !name.is_empty()).cloned());
    let mut params = CertificateParams::new(all)?;
    params.distinguished_name.push(DnType::CommonName, "Wayfix");
    let key_pair = KeyPair::generate()?;
    let made = params.self_signed(&key_pair)?;
    for (path, text) in [(certificate, made.pem()), (key, key_pair.serialize_pem())] {
        write_private(path, text.as_bytes()).map_err(|source| TlsError::Write { path: path.to_path_buf(), source })?;
    }
    Ok(())
}

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

        let first = server_tls(&self_signed(), folder.path()).unwrap();
        let second = server_tls(&self_signed(), folder.path()).unwrap();

        assert!(first.pin.is_some());
        assert_eq!(first.pin, second.pin);
        let mode = std::fs::metadata(folder.path().join("tls-key.pem")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_given_certificate_is_served_and_not_pinned() {
        let folder = tempfile::tempdir().unwrap();
        server_tls(&self_signed(), folder.path()).unwrap();
        let given = TlsConfig::Files {
            certificate: folder.path().join("tls-certificate.pem"),
            key: folder.path().join("tls-key.pem"),
        };

        assert_eq!(server_tls(&given, folder.path()).unwrap().pin, None);
    }

    #[test]
    fn files_that_are_no_certificate_are_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("broken.pem");
        for text in ["", "-----BEGIN CERTIFICATE-----\nAAAA\n", "nonsense"] {
            std::fs::write(&path, text).unwrap();
            let given = TlsConfig::Files { certificate: path.clone(), key: path.clone() };

            let error = server_tls(&given, folder.path()).unwrap_err().to_string();

            assert!(error.contains("broken.pem"), "{error}");
        }
    }

    #[test]
    fn half_of_a_pair_is_made_again() {
        let folder = tempfile::tempdir().unwrap();
        let first = server_tls(&self_signed(), folder.path()).unwrap();
        std::fs::remove_file(folder.path().join("tls-key.pem")).unwrap();

        let second = server_tls(&self_signed(), folder.path()).unwrap();

        assert_ne!(first.pin, second.pin);
    }
}
