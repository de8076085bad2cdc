//! An identity provider, as far as its keys go: a web server on loopback that can answer in every bad way.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;

/// What is answered to whoever asks for the keys.
#[derive(Clone, Debug)]
pub enum Answers {
    /// This text, as JSON.
    Text(String),
    /// This status, with a set of keys all the same.
    Status(u16, String),
    /// Nothing, while the connection stays open.
    Never,
    /// A set of keys without end.
    Endless,
    /// A set of keys without end, a byte every tenth of a second.
    Drip,
}

/// A running provider. Ends with the value.
pub struct Provider {
    port: u16,
    scheme: &'static str,
    state: Arc<State>,
    accepting: Option<JoinHandle<()>>,
}

struct State {
    answers: Mutex<Answers>,
    asked: AtomicUsize,
    /// The first line of each request that was for something else than the keys.
    strays: Mutex<Vec<String>>,
    sent: AtomicU64,
    tls: Option<TlsAcceptor>,
}

/// A JWK set.
pub fn key_set<'k>(keys: impl IntoIterator<Item = &'k Value>) -> Answers {
    Answers::Text(json!({"keys": keys.into_iter().collect::<Vec<_>>()}).to_string())
}

impl Provider {
    /// A provider that answers so.
    pub async fn start(answers: Answers) -> Self {
        Self::listening(answers, None).await
    }

    /// [`start`](Self::start) behind TLS, with a certificate and its key in PEM.
    pub async fn start_tls(answers: Answers, certificate: &str, key: &str) -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let chain = CertificateDer::pem_slice_iter(certificate.as_bytes()).collect::<Result<_, _>>();
        let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).expect("a key");
        let config = ServerConfig::builder().with_no_client_auth();
        let config = config.with_single_cert(chain.expect("a certificate"), key).expect("a pair");
        Self::listening(answers, Some(TlsAcceptor::from(Arc::new(config)))).await
    }

    async fn listening(answers: Answers, tls: Option<TlsAcceptor>) -> Self {
        let scheme = if tls.is_some() { "https" } else { "http" };
        let state = State {
            answers: Mutex::new(answers),
            asked: AtomicUsize::new(0),
            strays: Mutex::default(),
            sent: AtomicU64::new(0),
            tls,
        };
        let mut provider = Self { port: 0, scheme, state: Arc::new(state), accepting: None };
        provider.up().await;
        provider
    }

    /// Where its keys are.
    pub fn url(&self) -> String {
        format!("{}://127.0.0.1:{}/keys.json", self.scheme, self.port)
    }

    /// What it answers from now on.
    pub fn answer(&self, answers: Answers) {
        *self.state.answers.lock().unwrap_or_else(PoisonError::into_inner) = answers;
    }

    /// How often it has been asked.
    pub fn asked(&self) -> usize {
        self.state.asked.load(Ordering::SeqCst)
    }

    /// What it has been asked besides its keys.
    pub fn strays(&self) -> Vec<String> {
        self.state.strays.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// How many bytes it has sent of answers without end.
    pub fn sent(&self) -> u64 {
        self.state.sent.load(Ordering::SeqCst)
    }

    /// Refuses connections from now on.
    pub async fn down(&mut self) {
        if let Some(accepting) = self.accepting.take() {
            accepting.abort();
            let _ = accepting.await;
        }
    }

    /// Ends a [`down`](Self::down), on the same port.
    pub async fn up(&mut self) {
        let listener = TcpListener::bind(("127.0.0.1", self.port)).await.expect("the port");
        self.port = listener.local_addr().unwrap().port();
        let state = self.state.clone();
        self.accepting = Some(tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let state = state.clone();
                tokio::spawn(async move {
                    match state.tls.clone() {
                        None => state.serve(client).await,
                        Some(tls) => match tls.accept(client).await {
                            Ok(client) => state.serve(client).await,
                            Err(_) => Ok(()),
                        },
                    }
                });
            }
        }));
    }
}

impl Drop for Provider {
    fn drop(&mut self) {
        if let Some(accepting) = &self.accepting {
            accepting.abort();
        }
    }
}

impl State {
    async fn serve(&self, mut client: impl AsyncRead + AsyncWrite + Unpin) -> std::io::Result<()> {
        let mut request = Vec::new();
        while !request.ends_with(b"\r\n\r\n") {
            if client.read_buf(&mut request).await? == 0 {
                return Ok(());
            }
        }
        self.asked.fetch_add(1, Ordering::SeqCst);
        if !request.starts_with(b"GET /keys.json") {
            let line = String::from_utf8_lossy(&request).lines().next().unwrap_or_default().to_owned();
            self.strays.lock().unwrap_or_else(PoisonError::into_inner).push(line);
        }
        let answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let (status, body) = match answers {
            Answers::Text(body) => (200, body),
            Answers::Status(status, body) => (status, body),
            Answers::Never => {
                // Until the other side has had enough.
                let _ = client.read(&mut [0]).await;
                return Ok(());
            }
            Answers::Drip => {
                client.write_all(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n{\"keys\":[").await?;
                loop {
                    client.write_all(b" ").await?;
                    self.sent.fetch_add(1, Ordering::SeqCst);
                    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                }
            }
            Answers::Endless => {
                client.write_all(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n{\"keys\":[").await?;
                loop {
                    client.write_all(&[b' '; 8192]).await?;
                    self.sent.fetch_add(8192, Ordering::SeqCst);
                }
            }
        };
        let head = format!(
            "HTTP/1.1 {status} X\r\nContent-Length: {}\r\nLocation: /elsewhere\r\nConnection: close\r\n\r\n",
            body.len()
        );
        client.write_all(head.as_bytes()).await?;
        client.write_all(body.as_bytes()).await?;
        client.shutdown().await
    }
}
