//! One connection: the handshake where there is one, then HTTP/1.1 or HTTP/2 until its end.
//!
//! In clear text HTTP/1.1 alone is spoken: to tell the two apart by their first bytes would cost every connection a
//! buffer more. Over TLS ALPN says which. The way of a request through here allocates nothing of its own.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Bytes, HttpBody};
use hyper::body::{Frame, Incoming, SizeHint};
use hyper::server::conn::{http1, http2};
use hyper::service::{Service as HyperService, service_fn};
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::graceful::Watcher;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;

use super::patience::{AwaitedBody, Stage, Watch, Watched};
use crate::http::client::Peer;
use crate::http::front::{AnswerBody, Front};

/// The largest head of a request, bytes. What is longer than `guard` takes, but not than this, gets a whole answer; what
/// is longer than this a bare status.
const MAX_HEAD: usize = 64 * 1024;
/// The largest list of headers of an HTTP/2 request, bytes as HTTP/2 counts them.
const MAX_HEADER_LIST: u32 = 32 * 1024;
/// Requests at once on an HTTP/2 connection: as many as browsers ask for in a burst.
const MAX_STREAMS: u32 = 128;
/// Of an answer on HTTP/2 so many bytes are held at most for a client whose window is closed.
const MAX_SEND_BUFFER: usize = 64 * 1024;
/// Of an answer over TLS so many bytes are held encrypted for a client that does not read: two records, each of which is a
/// copy for this client alone.
const MAX_SEALED: usize = 32 * 1024;
/// A silent HTTP/2 client is asked so often whether it is there, and has as long to answer.
const PING: Duration = Duration::from_secs(20);

/// What all connections share.
pub(super) struct Speaker {
    http1: http1::Builder,
    http2: http2::Builder<TokioExecutor>,
    tls: Option<TlsAcceptor>,
    front: Front,
}

impl Speaker {
    pub(super) fn new(front: Front, tls: Option<TlsAcceptor>) -> Self {
        let mut http1 = http1::Builder::new();
        // The patience covers it, without a timer for each request.
        // With `writev` the body of an answer is written from where it lies. Without it hyper would copy it into a buffer
        // of the connection: a client that reads slowly would hold a copy of its own of a list that many share.
        http1.header_read_timeout(None).max_buf_size(MAX_HEAD).writev(true);
        let mut http2 = http2::Builder::new(TokioExecutor::new());
        // hyper's defaults bound resets (CVE-2023-44487) and frames of headers that go on and on.
        http2
            .timer(TokioTimer::new())
            .max_concurrent_streams(MAX_STREAMS)
            .max_header_list_size(MAX_HEADER_LIST)
            .max_send_buf_size(MAX_SEND_BUFFER)
            .keep_alive_interval(PING)
            .keep_alive_timeout(PING);
        Self { http1, http2, tls, front }
    }

    /// How a connection begins.
    pub(super) const fn first_stage(&self) -> Stage {
        if self.tls.is_some() { Stage::Handshake } else { Stage::Fresh }
    }

    /// Serves a connection to its end, or until the watcher says that it should come to one.
    pub(super) async fn serve(
        self: Arc<Self>,
        stream: TcpStream,
        peer: SocketAddr,
        watch: Arc<Watch>,
        ending: Watcher,
    ) {
        // An answer is one small write: Nagle would only hold it back.
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "TCP_NODELAY was refused");
        }
        match &self.tls {
            None => self.speak_http1(stream, peer, watch, ending).await,
            // Elsewhere, so that connections in clear text, of which there may be very many, have no room for it.
            Some(tls) => Box::pin(self.speak_over_tls(tls, stream, peer, watch, ending)).await,
        }
    }

    async fn speak_over_tls(
        &self,
        tls: &TlsAcceptor,
        stream: TcpStream,
        peer: SocketAddr,
        watch: Arc<Watch>,
        ending: Watcher,
    ) {
        let mut stream = match tls.accept(stream).await {
            Ok(stream) => stream,
            Err(error) => return tracing::debug!(%error, %peer, "a TLS handshake failed"),
        };
        stream.get_mut().1.set_buffer_limit(Some(MAX_SEALED));
        watch.enter(Stage::Fresh);
        if stream.get_ref().1.alpn_protocol() == Some(b"h2") {
            self.speak_http2(stream, peer, watch, ending).await;
        } else {
            self.speak_http1(stream, peer, watch, ending).await;
        }
    }

    async fn speak_http1<S>(&self, stream: S, peer: SocketAddr, watch: Arc<Watch>, ending: Watcher)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let service = service(self.front.clone(), peer, watch.clone());
        let io = TokioIo::new(Watched::new(stream, watch, true));
        over(ending.watch(self.http1.serve_connection(io, service)).await);
    }

    async fn speak_http2<S>(&self, stream: S, peer: SocketAddr, watch: Arc<Watch>, ending: Watcher)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let service = service(self.front.clone(), peer, watch.clone());
        let io = TokioIo::new(Watched::new(stream, watch, false));
        over(ending.watch(self.http2.serve_connection(io, service)).await);
    }
}

/// Clients hang up as they please.
fn over(ended: hyper::Result<()>) {
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection ended early");
    }
}

/// The front as hyper calls it: each request is in hand until its answer is there. What the client then takes its time to
/// read is the watch's to bound: on HTTP/2 it may keep an answer waiting for as long as it likes.
fn service(
    front: Front,
    peer: SocketAddr,
    watch: Arc<Watch>,
) -> impl HyperService<Request<Incoming>, Response = Response<AnswerBody>, Error = Infallible, Future: Send> + Send
{
    service_fn(move |request: Request<Incoming>| {
        let in_hand = watch.begin();
        let request = request.map(|body| {
            let awaited = (!body.is_end_stream()).then(|| watch.await_body());
            Asked { body, awaited }
        });
        let front = front.clone();
        async move {
            let answer = front.answer(Peer(peer), request).await;
            drop(in_hand);
            Ok(answer)
        }
    })
}

/// The body of a request, which the client may send as slowly as the handler lets it.
struct Asked {
    body: Incoming,
    awaited: Option<AwaitedBody>,
}

impl HttpBody for Asked {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let this = self.get_mut();
        let frame = Pin::new(&mut this.body).poll_frame(cx);
        if this.body.is_end_stream() || matches!(frame, Poll::Ready(None | Some(Err(_)))) {
            this.awaited = None;
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
