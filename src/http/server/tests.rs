//! The accept loop on real sockets, with patience that is short.

use std::net::SocketAddr;

use axum::Router;
use axum::routing::get;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_rustls::rustls::pki_types::pem::PemObject;

use super::*;

pub(super) const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n";

/// So many connections, from one address or from several.
pub(super) fn doors(max_connections: usize, patience: Patience) -> Doors {
    Doors {
        tls: None,
        max_connections,
        max_connections_per_address: max_connections,
        trusted_proxies: TrustedProxies::default(),
        patience,
    }
}

async fn start(router: Router, grace: Duration) -> (SocketAddr, oneshot::Sender<()>, JoinHandle<()>) {
    let doors = self::doors(100, Patience::default());
    start_with(doors, router, grace).await
}

pub(super) async fn start_with(
    doors: Doors,
    router: Router,
    grace: Duration,
) -> (SocketAddr, oneshot::Sender<()>, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (stop, stopped) = oneshot::channel();
    let shutdown = async {
        let _ = stopped.await;
    };
    (address, stop, tokio::spawn(serve(listener, router.into(), doors, shutdown, grace)))
}

pub(super) async fn read_until(stream: &mut TcpStream, end: &str) -> String {
    let mut text = String::new();
    while !text.ends_with(end) {
        let mut bytes = [0; 1024];
        match stream.read(&mut bytes).await.unwrap() {
            0 => break,
            length => text.push_str(std::str::from_utf8(&bytes[..length]).unwrap()),
        }
    }
    text
}

#[tokio::test]
async fn a_connection_is_kept_for_more_requests_and_an_idle_one_ends_with_the_server() {
    let router = Router::new().route("/", get(async || "hello"));
    let (address, stop, server) = start(router, Duration::from_mins(1)).await;
    let mut client = TcpStream::connect(address).await.unwrap();
    for _ in 0..3 {
        client.write_all(REQUEST).await.unwrap();
        assert!(read_until(&mut client, "hello").await.starts_with("HTTP/1.1 200 OK"));
    }
    let begun = Instant::now();
    stop.send(()).unwrap();
    server.await.unwrap();
    assert!(begun.elapsed() < Duration::from_secs(30), "an idle connection does not use up the grace");
    assert_eq!(read_until(&mut client, "\0").await, "", "it is closed");
    assert!(TcpStream::connect(address).await.is_err(), "and no other is accepted");
}

#[tokio::test]
async fn a_request_under_way_is_answered_within_the_grace() {
    let (entered, mut is_in) = tokio::sync::mpsc::channel::<()>(1);
    let (release, released) = tokio::sync::watch::channel(false);
    let handler = async move || {
        let mut released = released.clone();
        entered.send(()).await.unwrap();
        released.wait_for(|go| *go).await.unwrap();
        "at last"
    };
    let (address, stop, server) = start(Router::new().route("/", get(handler)), Duration::from_mins(1)).await;
    let mut client = TcpStream::connect(address).await.unwrap();
    client.write_all(REQUEST).await.unwrap();
    is_in.recv().await.unwrap();
    stop.send(()).unwrap();
    release.send(true).unwrap();
    assert!(read_until(&mut client, "at last").await.ends_with("at last"));
    server.await.unwrap();
}

#[tokio::test]
async fn a_request_that_never_ends_is_cut_off_after_the_grace() {
    let (entered, mut is_in) = tokio::sync::mpsc::channel::<()>(1);
    let handler = async move || {
        entered.send(()).await.unwrap();
        std::future::pending::<()>().await;
    };
    let (address, stop, server) =
        start(Router::new().route("/", get(handler)), Duration::from_millis(50)).await;
    let mut client = TcpStream::connect(address).await.unwrap();
    client.write_all(REQUEST).await.unwrap();
    is_in.recv().await.unwrap();
    stop.send(()).unwrap();
    tokio::time::timeout(Duration::from_secs(30), server).await.unwrap().unwrap();
}

/// Short enough for a test, in the order of the real ones.
pub(super) fn short() -> Patience {
    Patience {
        handshake: Duration::from_millis(200),
        head: Duration::from_millis(200),
        idle: Duration::from_mins(1),
        write: Duration::from_millis(200),
        tick: Duration::from_millis(10),
    }
}

pub(super) fn hello() -> Router {
    Router::new().route("/", get(async || "hello"))
}

/// Sends `pieces` one after the other, each when the last has gone, until the server hangs up.
async fn is_hung_up_on(mut client: TcpStream, mut pieces: impl Iterator<Item = &'static [u8]>) {
    let (mut reading, mut writing) = client.split();
    let mut beat = tokio::time::interval(Duration::from_millis(20));
    let mut rest = [0; 1024];
    loop {
        tokio::select! {
            read = reading.read(&mut rest) => match read {
                Ok(0) | Err(_) => return,
                Ok(_) => {}
            },
            _ = beat.tick() => if let Some(piece) = pieces.next() {
                let _ = writing.write_all(piece).await;
            },
        }
    }
}

#[tokio::test]
async fn a_head_that_drips_or_never_comes_is_cut_off_and_an_idle_connection_is_not() {
    let doors = self::doors(100, short());
    let (address, _stop, _server) = start_with(doors, hello(), Duration::from_secs(1)).await;
    let mut idle = TcpStream::connect(address).await.unwrap();
    idle.write_all(REQUEST).await.unwrap();
    read_until(&mut idle, "hello").await;
    let connect = async || TcpStream::connect(address).await.unwrap();
    let drips = || [b"GET / HTTP/1.1\r\n" as &[u8]].into_iter().chain(std::iter::repeat(b"x" as &[u8]));
    let late = async {
        // From the beginning, after an answer, and with nothing at all.
        tokio::join!(
            is_hung_up_on(connect().await, drips()),
            is_hung_up_on(connect().await, [REQUEST].into_iter().chain(drips())),
            is_hung_up_on(connect().await, std::iter::empty()),
        )
    };
    tokio::time::timeout(Duration::from_secs(30), late).await.expect("all are cut off");
    idle.write_all(REQUEST).await.unwrap();
    assert!(read_until(&mut idle, "hello").await.starts_with("HTTP/1.1 200 OK"));
}

#[tokio::test]
async fn a_client_that_does_not_read_its_answer_is_cut_off() {
    // More than the buffers of both ends take.
    let long = Router::new().route("/", get(async || vec![b'x'; 64 * 1024 * 1024]));
    let doors = self::doors(100, short());
    let (address, _stop, _server) = start_with(doors, long, Duration::from_secs(1)).await;
    let mut client = TcpStream::connect(address).await.unwrap();
    client.write_all(REQUEST).await.unwrap();
    // Written to, a connection that is gone says so; one that lives takes far more than this.
    let gone = async {
        while client.write_all(&[b'x'; 1024]).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), gone).await.expect("it is cut off");
}

#[tokio::test]
async fn where_there_are_too_many_those_who_said_nothing_make_room() {
    let patience = Patience { head: Duration::from_mins(1), ..short() };
    let doors = self::doors(8, patience);
    let (address, _stop, _server) = start_with(doors, hello(), Duration::from_secs(1)).await;
    let mut kept = TcpStream::connect(address).await.unwrap();
    kept.write_all(REQUEST).await.unwrap();
    read_until(&mut kept, "hello").await;
    let mut silent = Vec::new();
    for _ in 0..40 {
        silent.push(TcpStream::connect(address).await.unwrap());
        // Each newcomer that speaks is served, whatever the crowd.
        let mut client = TcpStream::connect(address).await.unwrap();
        client.write_all(REQUEST).await.unwrap();
        assert!(read_until(&mut client, "hello").await.ends_with("hello"));
        // He hangs up before the next; the silent stay.
    }
    for client in &mut silent[..30] {
        assert_eq!(read_until(client, "\0").await, "", "the oldest have made room");
    }
    kept.write_all(REQUEST).await.unwrap();
    assert!(read_until(&mut kept, "hello").await.ends_with("hello"), "whoever was answered stays");
}

#[tokio::test]
async fn where_all_have_requests_in_hand_newcomers_wait() {
    let (entered, mut is_in) = tokio::sync::mpsc::channel::<()>(1);
    let (release, released) = tokio::sync::watch::channel(false);
    let handler = async move || {
        let mut released = released.clone();
        entered.send(()).await.unwrap();
        released.wait_for(|go| *go).await.unwrap();
        "at last"
    };
    let router = Router::new().route("/", get(handler));
    let doors = self::doors(2, short());
    let (address, _stop, _server) = start_with(doors, router, Duration::from_secs(1)).await;
    let mut clients = Vec::new();
    for _ in 0..2 {
        let mut client = TcpStream::connect(address).await.unwrap();
        client.write_all(REQUEST).await.unwrap();
        is_in.recv().await.unwrap();
        clients.push(client);
    }
    let mut late = TcpStream::connect(address).await.unwrap();
    late.write_all(REQUEST).await.unwrap();
    let served = tokio::time::timeout(Duration::from_millis(300), is_in.recv()).await;
    assert!(served.is_err(), "there is no room");
    release.send(true).unwrap();
    is_in.recv().await.unwrap();
    clients.push(late);
    for client in &mut clients {
        assert!(read_until(client, "at last").await.ends_with("at last"));
    }
}

/// A server that speaks TLS, and a client that trusts it.
pub(super) async fn start_tls(
    patience: Patience,
    router: Router,
) -> (String, oneshot::Sender<()>, JoinHandle<()>, reqwest::Client, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let made = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).unwrap();
    let pair = PemPair { certificate: folder.path().join("certificate"), key: folder.path().join("key") };
    std::fs::write(&pair.certificate, made.cert.pem()).unwrap();
    std::fs::write(&pair.key, made.signing_key.serialize_pem()).unwrap();
    let doors = Doors { tls: Some(Tls::load(pair).unwrap()), ..doors(100, patience) };
    let (address, stop, server) = start_with(doors, router, Duration::from_mins(1)).await;
    let root = reqwest::Certificate::from_pem(made.cert.pem().as_bytes()).unwrap();
    let _ = tokio_rustls::rustls::crypto::ring::default_provider().install_default();
    let client = reqwest::Client::builder().tls_certs_only([root]).build().unwrap();
    (format!("https://{address}/"), stop, server, client, folder)
}

#[tokio::test]
async fn requests_under_way_over_http_2_are_answered_within_the_grace() {
    let (entered, mut is_in) = tokio::sync::mpsc::channel::<()>(3);
    let (release, released) = tokio::sync::watch::channel(false);
    let handler = async move || {
        let mut released = released.clone();
        entered.send(()).await.unwrap();
        released.wait_for(|go| *go).await.unwrap();
        "at last"
    };
    let router = Router::new().route("/", get(handler)).route("/hello", get(async || "hello"));
    let (url, stop, server, client, _folder) = start_tls(Patience::default(), router).await;
    // One connection, so that all three are streams of it.
    client.get(format!("{url}hello")).send().await.unwrap();
    let asked: Vec<_> = (0..3).map(|_| tokio::spawn(client.get(&url).send())).collect();
    for _ in 0..3 {
        is_in.recv().await.unwrap();
    }
    stop.send(()).unwrap();
    release.send(true).unwrap();
    for answer in asked {
        let answer = answer.await.unwrap().unwrap();
        assert_eq!(answer.version(), reqwest::Version::HTTP_2);
        assert_eq!(answer.text().await.unwrap(), "at last");
    }
    tokio::time::timeout(Duration::from_secs(30), server).await.unwrap().unwrap();
}

#[tokio::test]
async fn an_http_2_connection_is_kept_while_requests_come_and_ended_when_none_do() {
    let patience = Patience { head: Duration::from_mins(1), idle: Duration::from_millis(1_500), ..short() };
    let ports = Router::new().route(
        "/",
        get(async |request: axum::extract::Request| {
            request.extensions().get::<crate::http::client::Peer>().unwrap().0.port().to_string()
        }),
    );
    let (url, _stop, _server, client, _folder) = start_tls(patience, ports).await;
    let port = async || client.get(&url).send().await.unwrap().text().await.unwrap();
    let first = port().await;
    for _ in 0..20 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert_eq!(port().await, first, "the same connection");
    }
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_ne!(port().await, first, "another connection");
}

#[tokio::test]
async fn heads_and_handshakes_that_never_end_do_not_use_up_the_grace() {
    let patience = Patience { head: Duration::from_mins(1), handshake: Duration::from_mins(1), ..short() };
    let doors = self::doors(100, patience);
    let plain = start_with(doors, hello(), Duration::from_mins(1)).await;
    let (url, stop, server, _client, _folder) = start_tls(patience, hello()).await;
    let secure = (url[8..url.len() - 1].parse::<SocketAddr>().unwrap(), stop, server);
    for (address, stop, server) in [plain, secure] {
        let mut client = TcpStream::connect(address).await.unwrap();
        // Of a request as of a handshake the beginning.
        client.write_all(&REQUEST[..1]).await.unwrap();
        // What has only just come is waited for.
        tokio::time::sleep(Duration::from_millis(200)).await;
        stop.send(()).unwrap();
        tokio::time::timeout(Duration::from_secs(20), server).await.expect("in good time").unwrap();
    }
}

#[tokio::test]
async fn an_http_2_client_that_takes_no_answer_is_given_up() {
    let patience = Patience { idle: Duration::from_millis(1_500), ..short() };
    let (url, _stop, _server, _client, folder) = start_tls(patience, hello()).await;
    let mut roots = tokio_rustls::rustls::RootCertStore::empty();
    let pem = std::fs::read(folder.path().join("certificate")).unwrap();
    let certificate =
        <tokio_rustls::rustls::pki_types::CertificateDer as PemObject>::from_pem_slice(&pem).unwrap();
    roots.add(certificate).unwrap();
    let mut config =
        tokio_rustls::rustls::ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let address: SocketAddr = url[8..url.len() - 1].parse().unwrap();
    let stream = TcpStream::connect(address).await.unwrap();
    let connector = tokio_rustls::TlsConnector::from(std::sync::Arc::new(config));
    let stream = connector.connect("127.0.0.1".try_into().unwrap(), stream).await.unwrap();
    // Its window is closed, and it goes on answering pings.
    let (mut sender, connection) =
        h2::client::Builder::new().initial_window_size(0).handshake::<_, bytes::Bytes>(stream).await.unwrap();
    let connection = tokio::spawn(connection);
    let request = axum::http::Request::get("https://127.0.0.1/").body(()).unwrap();
    let (answer, _) = sender.send_request(request, true).unwrap();
    assert_eq!(answer.await.unwrap().status(), 200);
    let ended = tokio::time::timeout(Duration::from_secs(20), connection).await;
    assert!(ended.is_ok(), "it still holds its place");
}

#[tokio::test]
async fn whoever_holds_back_a_body_is_displaced_like_whoever_holds_back_a_head() {
    let router = Router::new().route("/", get(async || "hello").post(async |body: String| body));
    let doors = self::doors(4, Patience::default());
    let (address, _stop, _server) = start_with(doors, router, Duration::from_secs(5)).await;
    let mut slow = Vec::new();
    for _ in 0..4 {
        let mut client = TcpStream::connect(address).await.unwrap();
        client.write_all(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\nhalf").await.unwrap();
        slow.push(client);
    }
    // Newcomers get in one after the other, each for one of those.
    for _ in 0..4 {
        let mut client = TcpStream::connect(address).await.unwrap();
        client.write_all(REQUEST).await.unwrap();
        let answered = tokio::time::timeout(Duration::from_secs(5), read_until(&mut client, "hello"));
        assert!(answered.await.expect("a place").ends_with("hello"));
    }
}

/// There may be very many connections, and each has these two for as long as it lasts.
#[tokio::test]
async fn a_connection_in_clear_text_has_no_room_for_what_others_need() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let peer = stream.local_addr().unwrap();
    let front = Front::from(Router::new());
    let answering =
        front.answer(crate::http::client::Peer(peer), axum::http::Request::new(axum::body::Body::empty()));
    let speaker = Arc::new(Speaker::new(front.clone(), None));
    let watch = Arc::new(Watch::new(Clock::default(), speaker.first_stage()));
    let serving = speaker.serve(stream, peer, watch, GracefulShutdown::new().watcher());
    let bytes = [size_of_val(&serving), size_of_val(&answering)];
    assert!(bytes.iter().all(|bytes| *bytes <= 1_536), "{bytes:?}");
}
