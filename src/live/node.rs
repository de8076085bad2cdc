//! A connection to one server: how a client is configured, how long a call may wait for it, and how it comes back.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use fred::clients::{Client, SubscriberClient};
use fred::error::{Error, ErrorKind};
use fred::interfaces::{ClientLike, EventInterface};
use fred::types::Builder;
use fred::types::RespVersion;
use fred::types::config::{
    Config, ConnectionConfig, PerformanceConfig, ReconnectPolicy, TcpConfig, UnresponsiveConfig,
};
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{broadcast, watch};

use super::{LiveError, Result};

/// How long a call already under way waits for a lost connection to come back. With it an answer that Redis is dead
/// comes well within the 500 ms that API.md allows.
pub(super) const PATIENCE: Duration = Duration::from_millis(250);
/// Pause between attempts to connect.
const RECONNECT_DELAY_MS: u32 = 100;
/// How many expiry events may wait for the listener before it has to look for itself.
const EVENT_CAPACITY: usize = 8_192;
/// The same for news of a connection. Each client has nine such channels, and their room is taken at once.
const NEWS_CAPACITY: usize = 64;

/// A connection to one server that comes back by itself; while it is gone, calls fail at once instead of waiting.
#[derive(Clone)]
pub(super) struct Node {
    client: Client,
    up: watch::Receiver<bool>,
    opened: Instant,
    /// Whether a silent connection is being replaced.
    replacing: Arc<AtomicBool>,
    watcher: Arc<AbortOnDrop>,
}

/// Ends a task with its owner.
pub(super) struct AbortOnDrop(pub(super) tokio::task::JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Ends a replacement, however it ends.
struct Done(Arc<AtomicBool>);

impl Drop for Done {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

impl Node {
    /// Starts connecting; does not wait for the server. `extra` is added to the command timeout, for blocking commands;
    /// `reconnected` is told at each (re)connection.
    pub(super) fn open(
        config: Config,
        timeouts: Timeouts,
        reconnected: broadcast::Sender<()>,
    ) -> Result<Self> {
        let client = builder(config, timeouts, NEWS_CAPACITY).build()?;
        let (up_now, up) = watch::channel(false);
        let mut errors = client.error_rx();
        let mut reconnects = client.reconnect_rx();
        let seen_from = client.clone();
        let mut connection = client.connect();
        let watcher = tokio::spawn(async move {
            loop {
                // News are a reason to look, and so is a while without: the state itself is read off the client. A
                // lagged receiver has missed news, not the state; a closed one means that the client has quit.
                let news = tokio::select! {
                    error = errors.recv() => error.map(drop),
                    reconnection = reconnects.recv() => reconnection.map(|_| drop(reconnected.send(()))),
                    () = tokio::time::sleep(PATIENCE) => Ok(()),
                    // It connects anew for ever: this end is our own `quit`, or a defect.
                    ended = &mut connection => {
                        if !matches!(ended, Ok(Ok(()))) {
                            tracing::error!(?ended, "the task behind a connection to Redis has ended");
                        }
                        return;
                    }
                };
                if matches!(news, Err(RecvError::Closed)) {
                    return;
                }
                let is_up = seen_from.is_connected();
                up_now.send_if_modified(|up| std::mem::replace(up, is_up) != is_up);
            }
        });
        let watcher = Arc::new(AbortOnDrop(watcher));
        Ok(Self { client, up, opened: Instant::now(), replacing: Arc::default(), watcher })
    }

    pub(super) fn client(&self) -> Client {
        self.client.clone()
    }

    pub(super) fn is_up(&self) -> bool {
        self.client.is_connected()
    }

    /// Whether nobody looks after the connection any more: every call would find it down for ever.
    pub(super) fn is_abandoned(&self) -> bool {
        self.watcher.0.is_finished()
    }

    #[cfg(test)]
    pub(super) fn abort_watcher(&self) {
        self.watcher.0.abort();
    }

    /// Runs a command; fails with [`LiveError::Down`] where there is no connection, or the one there was is lost for
    /// longer than `PATIENCE`. The inner result is Redis's own answer.
    pub(super) async fn run<T>(
        &self,
        command: impl Future<Output = std::result::Result<T, Error>> + Unpin,
    ) -> Result<std::result::Result<T, Error>> {
        let mut up = self.up.clone();
        if !self.client.is_connected() {
            // One that was opened for this very call has a moment to connect.
            let left = PATIENCE.saturating_sub(self.opened.elapsed());
            if left.is_zero() || tokio::time::timeout(left, up.wait_for(|up| *up)).await.is_err() {
                return Err(LiveError::Down);
            }
        }
        tokio::select! {
            biased;
            answer = command => {
                if matches!(&answer, Err(error) if *error.kind() == ErrorKind::Timeout) {
                    self.replace_connection();
                }
                Ok(answer)
            }
            () = async {
                loop {
                    if up.wait_for(|up| !up).await.is_err() {
                        return;
                    }
                    if tokio::time::timeout(PATIENCE, up.wait_for(|up| *up)).await.is_err() {
                        return;
                    }
                }
            } => Err(LiveError::Down),
        }
    }

    /// A connection on which a command found no answer is closed and opened anew: the server behind it may be hung, or
    /// gone without a word. Until the new one is there calls fail at once instead of waiting one after the other.
    /// (fred's own check for silent connections counts from the last write, which never comes under load.)
    pub(super) fn replace_connection(&self) {
        if self.replacing.swap(true, Ordering::Relaxed) {
            return;
        }
        let (client, done) = (self.client.clone(), Done(self.replacing.clone()));
        tokio::spawn(async move {
            let _ = client.force_reconnection().await;
            drop(done);
        });
    }

    /// Waits until there is a connection, or there may be one: the caller looks.
    pub(super) async fn changed(&self) {
        let mut up = self.up.clone();
        // The watcher hears of every change; the bound covers a change between the two looks.
        let _ = tokio::time::timeout(PATIENCE, up.changed()).await;
    }

    pub(super) async fn close(&self) {
        let _ = tokio::time::timeout(Duration::from_millis(500), self.client.quit()).await;
    }
}

/// How long a command may take.
#[derive(Debug, Clone, Copy)]
pub(super) struct Timeouts {
    pub(super) command: Duration,
    /// What a blocking command may take beyond it.
    pub(super) extra: Duration,
}

/// A client for subscriptions, of its own connection.
pub(super) fn subscriber(config: Config, command: Duration) -> Result<SubscriberClient> {
    let timeouts = Timeouts { command, extra: Duration::ZERO };
    Ok(builder(config, timeouts, EVENT_CAPACITY).build_subscriber_client()?)
}

/// A client that asks one server one question, and does not try twice.
pub(super) fn visitor(mut config: Config, patience: Duration) -> Result<Client> {
    config.fail_fast = true;
    let connection = ConnectionConfig {
        connection_timeout: patience,
        internal_command_timeout: patience,
        max_command_attempts: 1,
        tcp: TcpConfig { nodelay: Some(true), ..TcpConfig::default() },
        ..ConnectionConfig::default()
    };
    let performance = PerformanceConfig {
        default_command_timeout: patience,
        broadcast_channel_capacity: 4,
        ..PerformanceConfig::default()
    };
    let mut builder = Builder::from_config(config);
    builder.set_performance_config(performance).set_connection_config(connection);
    Ok(builder.build()?)
}

/// fred's defaults are not ours: without this a client never reconnects, never times out, batches small packets, and
/// its event channel holds 32 messages.
fn builder(mut config: Config, timeouts: Timeouts, capacity: usize) -> Builder {
    let Timeouts { command, extra } = timeouts;
    config.version = RespVersion::RESP3;
    config.fail_fast = false;
    let mut builder = Builder::from_config(config);
    let mut policy = ReconnectPolicy::new_constant(0, RECONNECT_DELAY_MS);
    policy.set_jitter(RECONNECT_DELAY_MS / 2);
    builder
        .set_policy(policy)
        .set_performance_config(PerformanceConfig {
            default_command_timeout: command + extra,
            broadcast_channel_capacity: capacity,
            ..PerformanceConfig::default()
        })
        .set_connection_config(ConnectionConfig {
            connection_timeout: Duration::from_secs(1),
            internal_command_timeout: Duration::from_secs(1),
            // A command in flight when the connection breaks is answered with an error, not kept for later.
            max_command_attempts: 1,
            unresponsive: UnresponsiveConfig {
                max_timeout: Some(command * 2 + extra),
                interval: Duration::from_millis(500),
            },
            // fred's default is to connect anew at each READONLY or LOADING, which leaves nothing for reads.
            reconnect_errors: vec![],
            tcp: TcpConfig { nodelay: Some(true), ..TcpConfig::default() },
            ..ConnectionConfig::default()
        });
    builder
}
