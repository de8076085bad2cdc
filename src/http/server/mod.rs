//! The accept loop: a bounded number of connections, each with bounds on how slow its client may be, and an end within
//! its grace.
//!
//! Where as many connections are open as may be, a newcomer takes the place of one without a request in hand: of one that
//! has never been answered before one that has, and of the one that has been silent for longest. So a flood of
//! connections that say nothing displaces itself, and leaves those who send heartbeats alone. Where every connection has a
//! request in hand, newcomers wait.
//!
//! One address (of IPv6: one /64) has a bound of its own, so that it cannot take all connections. Beyond it the same rule
//! applies among the connections of that address alone, and where all of them have a request in hand, the newcomer is
//! closed. Trusted proxies have no such bound: many clients share their addresses.

#[cfg(test)]
mod bounds_tests;
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
use super::client::{TrustedProxies, block};
use crate::presence::drill::drill;
use connection::Speaker;
use held::{Admission, Bounds, Held};
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
    /// Connections at once from one IPv4 address, or from one IPv6 network of 64 bits.
    pub max_connections_per_address: usize,
    /// The proxies to whose addresses that bound does not apply.
    pub trusted_proxies: TrustedProxies,
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
    let Doors { tls, max_connections, max_connections_per_address, trusted_proxies, patience } = doors;
    let speaker = Arc::new(Speaker::new(front, tls.as_ref().map(Tls::acceptor)));
    let (clock, connections) = (Clock::default(), GracefulShutdown::new());
    let mut held = Held::new(Bounds { most: max_connections, per_address: max_connections_per_address });
    let mut waiting: Option<(TcpStream, SocketAddr)> = None;
    let mut tick = interval(patience.tick);
    // A process that was stopped for a while has not been waited for.
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut renewal = std::pin::pin!(renew(tls));
    let mut shutdown = std::pin::pin!(shutdown);
    drill("http");
    loop {
        if let Some((stream, peer)) = waiting.take() {
            let address = Some(peer.ip()).filter(|address| !trusted_proxies.trusts(*address)).map(block);
            match held.admit(address) {
                Admission::Admitted => {
                    let watch = Arc::new(Watch::new(clock.clone(), speaker.first_stage()));
                    let serving = speaker.clone().serve(stream, peer, watch.clone(), connections.watcher());
                    held.hold(watch, address, serving);
                }
                Admission::Waits => waiting = Some((stream, peer)),
                Admission::Refused => drop(stream),
            }
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
