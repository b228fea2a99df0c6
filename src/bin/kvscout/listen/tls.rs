//! TLS of the listeners: a certificate, its key, and whose certificates clients may show; read again when they change.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::RwLock;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tracing::{info, warn};
use webpki::EndEntityCert;

use crate::auth::{Stamp, read_secret};
use crate::config::TlsFiles;

/// What is spoken within.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
    Http,
    Grpc,
}

/// The files, and what was last made of them.
#[derive(Debug)]
pub(crate) struct Tls {
    certificate: PathBuf,
    key: PathBuf,
    client_ca: Option<PathBuf>,
    state: RwLock<State>,
}

#[derive(Debug)]
struct State {
    stamps: Vec<Option<Stamp>>,
    http: Arc<ServerConfig>,
    grpc: Arc<ServerConfig>,
}

impl Tls {
    /// TLS with these files; none where they are not configured.
    ///
    /// # Errors
    ///
    /// A file cannot be used, or key and certificate do not belong together.
    pub(crate) fn open(files: &TlsFiles) -> Result<Option<Tls>, String> {
        let (Some(certificate), Some(key)) = (&files.certificate, &files.key) else {
            return Ok(None);
        };
        let (certificate, key) = (PathBuf::from(certificate), PathBuf::from(key));
        let client_ca = files.client_ca.as_ref().map(PathBuf::from);
        let state = State::read(&certificate, &key, client_ca.as_deref())?;
        Ok(Some(Tls { certificate, key, client_ca, state: RwLock::new(state) }))
    }

    /// What a connection that comes now is served with.
    pub(super) fn config(&self, protocol: Protocol) -> Arc<ServerConfig> {
        let state = self.state.read();
        Arc::clone(match protocol {
            Protocol::Http => &state.http,
            Protocol::Grpc => &state.grpc,
        })
    }

    /// Reads the files again if they changed. If they cannot be used, such as when one of two is not there yet, what was
    /// read before goes on; they are looked at again when they change again.
    pub(crate) fn refresh(&self) {
        let stamps = stamps(&self.certificate, &self.key, self.client_ca.as_deref());
        if stamps == self.state.read().stamps {
            return;
        }
        match State::read(&self.certificate, &self.key, self.client_ca.as_deref()) {
            Ok(state) => {
                *self.state.write() = state;
                info!("new connections have the certificate that was changed");
            }
            Err(error) => {
                self.state.write().stamps = stamps;
                warn!(error, "the changed certificate cannot be used: the one before goes on");
            }
        }
    }
}

/// The names of a client's certificate: of hosts, and URIs such as SPIFFE's.
pub(super) fn names(certificate: &CertificateDer<'_>) -> Arc<[String]> {
    // The handshake has read it already.
    let Ok(certificate) = EndEntityCert::try_from(certificate) else { return Arc::default() };
    let hosts = certificate.valid_dns_names();
    hosts.chain(certificate.valid_uri_names()).map(str::to_owned).collect()
}

fn stamps(certificate: &Path, key: &Path, client_ca: Option<&Path>) -> Vec<Option<Stamp>> {
    [Some(certificate), Some(key), client_ca].into_iter().flatten().map(Stamp::of).collect()
}

impl State {
    fn read(certificate: &Path, key: &Path, client_ca: Option<&Path>) -> Result<State, String> {
        // Before the files: what changes meanwhile is read again.
        let stamps = stamps(certificate, key, client_ca);
        let chain = certificates(certificate)?;
        let (text, _) = read_secret(key).map_err(|(error, _)| error)?;
        let private = PrivateKeyDer::from_pem_slice(text.as_bytes())
            // What is wrong with a key says nothing of it.
            .map_err(|_| format!("{}: has no private key in PEM", key.display()))?;
        let provider = Arc::new(ring::default_provider());
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(|error| format!("TLS: {error}"))?;
        let builder = match client_ca {
            None => builder.with_no_client_auth(),
            Some(path) => {
                let mut roots = RootCertStore::empty();
                for certificate in certificates(path)? {
                    let wrong = |error| format!("{}: {error}", path.display());
                    roots.add(certificate).map_err(wrong)?;
                }
                // Whoever shows none is nobody in particular: a probe, or known by a token.
                let verifier =
                    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
                        .allow_unauthenticated()
                        .build()
                        .map_err(|error| format!("{}: {error}", path.display()))?;
                builder.with_client_cert_verifier(verifier)
            }
        };
        let mut http = builder.with_single_cert(chain, private).map_err(|error| {
            format!("{} with {}: {error}", certificate.display(), key.display())
        })?;
        let mut grpc = http.clone();
        http.alpn_protocols = vec![b"http/1.1".to_vec()];
        grpc.alpn_protocols = vec![b"h2".to_vec()];
        Ok(State { stamps, http: Arc::new(http), grpc: Arc::new(grpc) })
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let wrong = |what: String| format!("{}: {what}", path.display());
    let bytes = fs::read(path).map_err(|error| wrong(error.to_string()))?;
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    match chain {
        Ok(chain) if !chain.is_empty() => Ok(chain),
        _ => Err(wrong("has no certificate in PEM".to_owned())),
    }
}
