//! The accept loop: HTTP/1.1 with keep-alive, bounds on slow clients, and an end within its grace.

use std::io;
use std::time::Duration;

use axum::{Extension, Router};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use super::client::Peer;
use crate::presence::drill::drill;

/// How long a connection may take for the head of its next request, idling included: hyper counts both as one. Longer
/// than two heartbeats, so that clients keep their connections.
const HEAD_TIMEOUT: Duration = Duration::from_secs(75);
/// The largest head of a request, bytes.
const MAX_HEAD: usize = 64 * 1024;
/// How long accepting rests where the process is out of file descriptors.
const ACCEPT_REST: Duration = Duration::from_millis(100);

/// Serves `router` on `listener` until `shutdown` is done, then answers what is under way for `grace` at most, and
/// cuts off what is left.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    shutdown: impl Future<Output = ()>,
    grace: Duration,
) {
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT).max_buf_size(MAX_HEAD);
    let connections = GracefulShutdown::new();
    let mut tasks = JoinSet::new();
    let mut shutdown = std::pin::pin!(shutdown);
    drill("http");
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, peer)) => {
                    let router = router.clone().layer(Extension(Peer(peer)));
                    let serving = serve_connection(&http, stream, router);
                    let serving = connections.watch(serving);
                    tasks.spawn(async move {
                        if let Err(error) = serving.await {
                            // Clients hang up as they please.
                            tracing::debug!(%error, "a connection ended early");
                        }
                    });
                }
                Err(error) => rest_after(&error).await,
            },
            Some(_) = tasks.join_next(), if !tasks.is_empty() => {}
            () = &mut shutdown => break,
        }
    }
    drop(listener);
    let open = tasks.len();
    tracing::info!(open, "no more connections are accepted");
    if tokio::time::timeout(grace, connections.shutdown()).await.is_err() {
        tracing::warn!("connections were cut off: their requests took longer than the grace");
    }
    tasks.shutdown().await;
}

type Connection = http1::Connection<TokioIo<TcpStream>, TowerToHyperService<Router>>;

fn serve_connection(http: &http1::Builder, stream: TcpStream, router: Router) -> Connection {
    // An answer is one small write: Nagle would only hold it back.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "TCP_NODELAY was refused");
    }
    http.serve_connection(TokioIo::new(stream), TowerToHyperService::new(router))
}

/// A connection that died while it waited is nobody's loss; anything else, like a lack of file descriptors, will be
/// there again at once, so rest instead of spinning.
async fn rest_after(error: &io::Error) {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    if matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset) {
        return;
    }
    tracing::error!(%error, "a connection could not be accepted");
    tokio::time::sleep(ACCEPT_REST).await;
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use axum::routing::get;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::sync::oneshot;
    use tokio::task::JoinHandle;
    use tokio::time::Instant;

    use super::*;

    const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n";

    async fn start(router: Router, grace: Duration) -> (SocketAddr, oneshot::Sender<()>, JoinHandle<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel();
        let shutdown = async {
            let _ = stopped.await;
        };
        (address, stop, tokio::spawn(serve(listener, router, shutdown, grace)))
    }

    async fn read_until(stream: &mut TcpStream, end: &str) -> String {
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
        let (address, stop, server) =
            start(Router::new().route("/", get(handler)), Duration::from_mins(1)).await;
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
}
