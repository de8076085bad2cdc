//! What one client may take of the server: connections, and memory for answers that it does not read.

use std::net::SocketAddr;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::routing::get;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpSocket;
use tokio::time::timeout;

use super::tests::{REQUEST, doors, hello, read_until, short, start_tls, start_with};
use super::*;

const SOON: Duration = Duration::from_secs(10);

/// A connection from this address of the loopback network.
async fn connect(from: [u8; 4], to: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind((from, 0).into()).unwrap();
    socket.connect(to).await.unwrap()
}

/// Whether a request on this connection is answered.
async fn is_answered(client: &mut TcpStream) -> bool {
    if client.write_all(REQUEST).await.is_err() {
        return false;
    }
    let mut answer = [0; 1024];
    matches!(timeout(SOON, client.read(&mut answer)).await.expect("an answer or the end"), Ok(length) if length > 0)
}

const ONE: [u8; 4] = [127, 0, 0, 2];
const OTHER: [u8; 4] = [127, 0, 0, 3];

#[tokio::test]
async fn one_address_displaces_its_own_connections_and_no_others() {
    let bounded = Doors { max_connections_per_address: 4, ..doors(64, Patience::default()) };
    let (address, _stop, _server) = start_with(bounded, hello(), Duration::from_secs(1)).await;
    let mut others = connect(OTHER, address).await;
    assert!(is_answered(&mut others).await);
    let mut own = Vec::new();
    for _ in 0..12 {
        let mut client = connect(ONE, address).await;
        assert!(is_answered(&mut client).await, "the newest is let in");
        own.push(client);
    }
    let mut alive = Vec::new();
    for client in &mut own {
        alive.push(is_answered(client).await);
    }
    let expected: Vec<bool> = (0..12).map(|number| number >= 8).collect();
    assert_eq!(alive, expected, "the four newest stay");
    assert!(is_answered(&mut others).await, "the other address has lost nothing");
}

#[tokio::test]
async fn one_address_whose_connections_are_all_busy_gets_no_more_while_others_do() {
    let (entered, mut is_in) = tokio::sync::mpsc::channel::<()>(1);
    let (release, released) = tokio::sync::watch::channel(false);
    let handler = async move || {
        let mut released = released.clone();
        entered.send(()).await.unwrap();
        released.wait_for(|go| *go).await.unwrap();
        "at last"
    };
    let router = Router::new().route("/", get(handler)).route("/hello", get(async || "hello"));
    let bounded = Doors { max_connections_per_address: 2, ..doors(64, Patience::default()) };
    let (address, _stop, _server) = start_with(bounded, router, Duration::from_secs(1)).await;
    let mut busy = Vec::new();
    for _ in 0..2 {
        let mut client = connect(ONE, address).await;
        client.write_all(REQUEST).await.unwrap();
        is_in.recv().await.unwrap();
        busy.push(client);
    }
    let mut refused = connect(ONE, address).await;
    let read = timeout(SOON, refused.read(&mut [0; 16])).await.expect("closed at once");
    assert!(matches!(read, Ok(0) | Err(_)), "{read:?}");
    let mut other = connect(OTHER, address).await;
    other.write_all(b"GET /hello HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    assert!(read_until(&mut other, "hello").await.ends_with("hello"), "other addresses do not wait for that");
    release.send(true).unwrap();
    for client in &mut busy {
        assert!(read_until(client, "at last").await.ends_with("at last"));
    }
}

#[tokio::test]
async fn a_trusted_proxy_has_no_bound_of_its_own() {
    let trusted_proxies = TrustedProxies::parse("127.0.0.2").unwrap();
    let bounded = Doors { max_connections_per_address: 2, trusted_proxies, ..doors(64, Patience::default()) };
    let (address, _stop, _server) = start_with(bounded, hello(), Duration::from_secs(1)).await;
    let mut clients = Vec::new();
    for _ in 0..12 {
        let mut client = connect(ONE, address).await;
        assert!(is_answered(&mut client).await);
        clients.push(client);
    }
    for client in &mut clients {
        assert!(is_answered(client).await, "all of them stay");
    }
}

/// Of an answer that many share, more than the buffers of the kernel take.
const ANSWER: usize = 16 * 1024 * 1024;
const READERS: usize = 24;

/// What this process holds in memory, bytes; Linux tells.
fn resident() -> Option<usize> {
    let pages: usize = std::fs::read_to_string("/proc/self/statm").ok()?.split(' ').nth(1)?.parse().ok()?;
    Some(pages * 4096)
}

fn shared_answer() -> Router {
    let answer = Bytes::from(vec![b'x'; ANSWER]);
    Router::new().route("/", get(async move || Body::from(answer.clone())))
}

/// Asks, and reads no more than the beginning.
async fn begin_to_read(mut client: impl AsyncRead + AsyncWrite + Unpin) -> impl Sized {
    client.write_all(REQUEST).await.unwrap();
    client.read_exact(&mut [0; 512]).await.unwrap();
    client
}

/// Checks that all readers together take less than two copies of the answer would.
fn assert_shared(before: Option<usize>, readers: &[impl Sized]) {
    let (Some(before), Some(after)) = (before, resident()) else { return };
    let grown = after.saturating_sub(before);
    assert!(grown < 2 * ANSWER, "{} readers took {} MiB", readers.len(), grown / 1024 / 1024);
}

#[tokio::test]
async fn many_who_read_slowly_hold_one_copy_of_the_answer_they_share() {
    let (address, _stop, _server) =
        start_with(doors(100, Patience::default()), shared_answer(), Duration::from_secs(1)).await;
    let before = resident();
    let mut readers = Vec::new();
    for _ in 0..READERS {
        readers.push(begin_to_read(TcpStream::connect(address).await.unwrap()).await);
    }
    assert_shared(before, &readers);
}

#[tokio::test]
async fn many_who_read_slowly_over_tls_hold_little_more_than_one_copy() {
    let (url, _stop, _server, _client, folder) = start_tls(Patience::default(), shared_answer()).await;
    let connector = connector(&folder.path().join("certificate"));
    let address: SocketAddr = url[8..url.len() - 1].parse().unwrap();
    let before = resident();
    let mut readers = Vec::new();
    for _ in 0..READERS {
        let stream = TcpStream::connect(address).await.unwrap();
        let stream = connector.connect("127.0.0.1".try_into().unwrap(), stream).await.unwrap();
        readers.push(begin_to_read(stream).await);
    }
    assert_shared(before, &readers);
}

/// A client of HTTP/1.1 over TLS that trusts this certificate.
fn connector(certificate: &std::path::Path) -> tokio_rustls::TlsConnector {
    use tokio_rustls::rustls::pki_types::{CertificateDer, pem::PemObject};
    let mut roots = tokio_rustls::rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(certificate).unwrap()).unwrap();
    let config =
        tokio_rustls::rustls::ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    tokio_rustls::TlsConnector::from(Arc::new(config))
}

#[tokio::test]
async fn the_bounds_for_slow_clients_hold_for_an_answer_that_is_shared() {
    let (address, _stop, _server) =
        start_with(doors(100, short()), shared_answer(), Duration::from_secs(1)).await;
    let mut client = TcpStream::connect(address).await.unwrap();
    client.write_all(REQUEST).await.unwrap();
    let gone = async {
        while client.write_all(b"x").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(Duration::from_secs(30), gone).await.expect("a client that takes nothing is cut off");
}
