//! TLS: the certificate and its key, and their renewal while connections live on.
//!
//! TLS 1.2 and 1.3, with ring; HTTP/2 and HTTP/1.1 by ALPN. The two files are read again every few seconds and compared by
//! content, so that it does not matter how they are replaced (a rename, a symbolic link, an edit in place). No error here
//! shows what the files hold: one of them is a secret.

use std::convert::Infallible;
use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::crypto::{CryptoProvider, ring};
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::{ClientHello, ResolvesServerCert};
use tokio_rustls::rustls::sign::CertifiedKey;
use tokio_rustls::rustls::{self, ServerConfig};

/// Between two looks at the files.
const LOOK: Duration = Duration::from_secs(2);

/// What can be wrong with the certificate or its key.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("cannot read {}: {error}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// A file without what it is there for.
    #[error("{} holds no {what} in PEM", path.display())]
    Nothing {
        /// Which.
        path: PathBuf,
        /// What is missing.
        what: &'static str,
    },
    /// Two files that are no pair, or not of a kind that can be served.
    #[error("{} and {} cannot be used together: {error}", pair.certificate.display(), pair.key.display())]
    Unusable {
        /// Which.
        pair: PemPair,
        /// Why.
        error: rustls::Error,
    },
}

/// The two files: certificates, the server's own first, and its private key; both PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PemPair {
    /// The certificates.
    pub certificate: PathBuf,
    /// The key.
    pub key: PathBuf,
}

/// What the files hold.
#[derive(Clone, PartialEq, Eq)]
struct Content {
    certificate: Vec<u8>,
    key: Vec<u8>,
}

/// TLS as a server speaks it; clones share one certificate.
#[derive(Clone)]
pub struct Tls {
    pair: PemPair,
    provider: Arc<CryptoProvider>,
    current: Arc<Current>,
    config: Arc<ServerConfig>,
    loaded: Content,
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls").field("pair", &self.pair).finish_non_exhaustive()
    }
}

/// The certificate that the next handshake gets.
struct Current(RwLock<Arc<CertifiedKey>>);

impl fmt::Debug for Current {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Current(…)")
    }
}

impl ResolvesServerCert for Current {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.read().unwrap_or_else(PoisonError::into_inner).clone())
    }
}

impl PemPair {
    fn read(&self) -> Result<Content, TlsError> {
        let read = |path: &PathBuf| {
            std::fs::read(path).map_err(|error| TlsError::Read { path: path.clone(), error })
        };
        Ok(Content { certificate: read(&self.certificate)?, key: read(&self.key)? })
    }

    fn certify(&self, content: &Content, provider: &CryptoProvider) -> Result<CertifiedKey, TlsError> {
        let nothing = |path: &PathBuf, what| TlsError::Nothing { path: path.clone(), what };
        let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&content.certificate).collect();
        let chain = chain.ok().filter(|chain| !chain.is_empty());
        let chain = chain.ok_or_else(|| nothing(&self.certificate, "certificate"))?;
        let key =
            PrivateKeyDer::from_pem_slice(&content.key).map_err(|_| nothing(&self.key, "private key"))?;
        CertifiedKey::from_der(chain, key, provider)
            .map_err(|error| TlsError::Unusable { pair: self.clone(), error })
    }
}

impl Tls {
    /// Reads the two files.
    ///
    /// # Errors
    /// [`TlsError`], which names the file.
    pub fn load(pair: PemPair) -> Result<Self, TlsError> {
        let provider = Arc::new(ring::default_provider());
        let loaded = pair.read()?;
        let current = Arc::new(Current(RwLock::new(Arc::new(pair.certify(&loaded, &provider)?))));
        let mut config = ServerConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .map_err(|error| TlsError::Unusable { pair: pair.clone(), error })?
            .with_no_client_auth()
            .with_cert_resolver(current.clone());
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Self { pair, provider, current, config: Arc::new(config), loaded })
    }

    pub(super) fn acceptor(&self) -> TlsAcceptor {
        self.config.clone().into()
    }

    /// Takes what the files hold from now on, whenever that changes. What cannot be used leaves the former certificate
    /// in use, and is said once.
    pub(super) async fn follow(mut self) -> Infallible {
        let mut renewal = Renewal { seen: Some(self.loaded.clone()), state: Files::Good };
        loop {
            tokio::time::sleep(LOOK).await;
            let pair = self.pair.clone();
            // A task that was cancelled is the runtime's end.
            if let Ok(read) = tokio::task::spawn_blocking(move || pair.read()).await {
                self.take(read, &mut renewal);
            }
        }
    }

    fn take(&mut self, read: Result<Content, TlsError>, renewal: &mut Renewal) {
        let content = match read {
            Ok(content) => content,
            Err(error) => return renewal.trouble(Files::Unreadable, &error),
        };
        // Seen twice: of two files that are replaced one after the other, the first alone fits nothing.
        if renewal.seen.as_ref() != Some(&content) {
            renewal.seen = Some(content);
            return;
        }
        if matches!(&renewal.state, Files::Bad(bad) if *bad == content) {
            return;
        }
        if content != self.loaded {
            match self.pair.certify(&content, &self.provider) {
                Ok(certified) => {
                    *self.current.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(certified);
                    self.loaded = content;
                    tracing::info!(certificate = %self.pair.certificate.display(), "a new certificate is in use");
                }
                Err(error) => return renewal.trouble(Files::Bad(content), &error),
            }
        }
        if std::mem::replace(&mut renewal.state, Files::Good) != Files::Good {
            tracing::info!("the TLS certificate and its key are good again");
        }
    }
}

/// What the looks at the files have found.
struct Renewal {
    /// What was seen last.
    seen: Option<Content>,
    /// What has been said of them.
    state: Files,
}

/// What is known of the files.
#[derive(PartialEq, Eq)]
enum Files {
    /// In use.
    Good,
    /// Not there, or not to be read.
    Unreadable,
    /// There, and no good.
    Bad(Content),
}

impl Renewal {
    fn trouble(&mut self, state: Files, error: &TlsError) {
        if self.state != state {
            tracing::error!(%error, "the TLS files cannot be used: the former certificate stays in use");
            self.state = state;
        }
    }
}
