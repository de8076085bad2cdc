//! The accept loop: a bounded number of connections, each with bounds on how slow its client may be, and an end within
//! its grace.
//!
//! Where as many connections are open as may be, a newcomer takes the place of one without a request in hand: of one that
//! has never been answered before one that has, and of the one that has been silent for longest. So a flood of
//! connections that say nothing displaces itself, and leaves those who send heartbeats alone. Where every connection has a
//! request in hand, newcomers wait.

mod connection;
mod held;
mod patience;
#[cfg(test)]
mod tests;
mod tls;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper_util::server::graceful::GracefulShutdown;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{MissedTickBehavior, interval};

use super::Front;
use crate::presence::drill::drill;
use connection::Speaker;
use held::Held;
use patience::{Clock, Watch};

pub use patience::Patience;
pub use tls::{PemPair, Tls, TlsError};

/// How long accepting rests where the process is out of file descriptors.
const ACCEPT_REST: Duration = Duration::from_millis(100);

/// Who is let in, and how.
#[derive(Debug)]
pub struct Doors {
    /// TLS, where it is spoken.
    pub tls: Option<Tls>,
    /// Connections at once, those in a handshake included.
    pub max_connections: usize,
    /// How slow clients may be.
    pub patience: Patience,
}

/// Serves `front` on `listener` until `shutdown` is done, then answers what is under way for `grace` at most, and
/// cuts off what is left.
pub async fn serve(
    listener: TcpListener,
    front: Front,
    doors: Doors,
    shutdown: impl Future<Output = ()>,
    grace: Duration,
) {
    let Doors { tls, max_connections, patience } = doors;
    let speaker = Arc::new(Speaker::new(front, tls.as_ref().map(Tls::acceptor)));
    let (clock, connections) = (Clock::default(), GracefulShutdown::new());
    let mut held = Held::new(max_connections);
    let mut waiting: Option<(TcpStream, SocketAddr)> = None;
    let mut tick = interval(patience.tick);
    // A process that was stopped for a while has not been waited for.
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut renewal = std::pin::pin!(renew(tls));
    let mut shutdown = std::pin::pin!(shutdown);
    drill("http");
    loop {
        if let Some((stream, peer)) = waiting.take_if(|_| held.makes_room()) {
            let watch = Arc::new(Watch::new(clock.clone(), speaker.first_stage()));
            held.hold(watch.clone(), speaker.clone().serve(stream, peer, watch, connections.watcher()));
        }
        tokio::select! {
            accepted = listener.accept(), if waiting.is_none() => match accepted {
                Ok(accepted) => waiting = Some(accepted),
                Err(error) => rest_after(&error).await,
            },
            () = held.next_end() => {}
            _ = tick.tick() => {
                clock.advance();
                held.close(|watch| watch.is_late(&patience));
            }
            () = &mut renewal => {}
            () = &mut shutdown => break,
        }
    }
    drop((listener, waiting));
    tracing::info!(open = held.len(), "no more connections are accepted");
    held.close(Watch::dawdles);
    let over = async {
        connections.shutdown().await;
    };
    if tokio::time::timeout(grace, over).await.is_err() {
        tracing::warn!("connections were cut off: their requests took longer than the grace");
    }
    held.end().await;
}

/// Never done: there may always be another certificate.
async fn renew(tls: Option<Tls>) {
    match tls {
        Some(tls) => match tls.follow().await {},
        None => std::future::pending().await,
    }
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
