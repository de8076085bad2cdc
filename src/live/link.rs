//! Connections to Redis: how a client is configured, and how long a call may wait for one.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
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
use tokio::sync::watch;

use super::{LiveError, Options, Result};

/// How long a call already under way waits for a lost connection to come back. With it an answer that Redis is dead
/// comes well within the 500 ms that API.md allows.
const PATIENCE: Duration = Duration::from_millis(250);
/// How long a blocking read may wait for something to read.
pub(super) const BLOCK: Duration = Duration::from_secs(5);
/// Pause between attempts to connect.
const RECONNECT_DELAY_MS: u32 = 100;
/// Between two looks for another server where this one takes no writes: a replica that was the primary closes no
/// connection, and whoever asks for its name again may find the new one. Reads are cut short by each look.
const LOOK_ELSEWHERE: Duration = Duration::from_secs(5);
/// How many expiry events may wait for the listener before it has to look for itself.
const EVENT_CAPACITY: usize = 8_192;
/// The same for news of a connection. Each client has nine such channels, and their room is taken at once.
const NEWS_CAPACITY: usize = 64;

/// A connection to Redis that comes back by itself; while it is gone, calls fail at once instead of waiting.
#[derive(Clone)]
pub(super) struct Link {
    client: Client,
    up: watch::Receiver<bool>,
    /// Opened when Redis is known to be the right one ([`super::LiveSet::ready`]); until then it is as good as away.
    gate: Arc<AtomicBool>,
    /// Whether a silent connection is being replaced.
    replacing: Arc<AtomicBool>,
    looked_elsewhere: Arc<Mutex<Option<Instant>>>,
    _watcher: Arc<AbortOnDrop>,
}

struct AbortOnDrop(tokio::task::JoinHandle<()>);

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

impl Link {
    /// Starts connecting; does not wait for Redis. `extra` is added to the command timeout, for blocking commands.
    pub(super) fn open(options: &Options, extra: Duration, gate: &Arc<AtomicBool>) -> Result<Self> {
        let client = builder(options, extra, NEWS_CAPACITY)?.build()?;
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
                    reconnection = reconnects.recv() => reconnection.map(drop),
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
        Ok(Self {
            client,
            up,
            gate: gate.clone(),
            replacing: Arc::default(),
            looked_elsewhere: Arc::default(),
            _watcher: watcher,
        })
    }

    pub(super) fn client(&self) -> &Client {
        &self.client
    }

    /// Runs a command; fails with [`LiveError::Down`] where there is no connection, or the one there was is lost for
    /// longer than `PATIENCE`. The inner result is Redis's own answer.
    pub(super) async fn run<T>(
        &self,
        command: impl Future<Output = std::result::Result<T, Error>>,
    ) -> Result<std::result::Result<T, Error>> {
        if !self.gate.load(Ordering::Relaxed) {
            return Err(LiveError::Down);
        }
        self.run_before_ready(command).await
    }

    /// [`Self::run`] for the one question that opens the gate.
    pub(super) async fn run_before_ready<T>(
        &self,
        command: impl Future<Output = std::result::Result<T, Error>>,
    ) -> Result<std::result::Result<T, Error>> {
        if !self.client.is_connected() {
            return Err(LiveError::Down);
        }
        let mut up = self.up.clone();
        // On the heap: fred's futures are large, and this one is part of everyone's.
        let command = Box::pin(command);
        tokio::select! {
            biased;
            answer = command => {
                match &answer {
                    Err(error) if *error.kind() == ErrorKind::Timeout => self.replace_connection(),
                    Err(error) if error.details().starts_with("READONLY") => self.look_elsewhere(),
                    _ => {}
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
    fn replace_connection(&self) {
        if self.replacing.swap(true, Ordering::Relaxed) {
            return;
        }
        let (client, done) = (self.client.clone(), Done(self.replacing.clone()));
        tokio::spawn(async move {
            let _ = client.force_reconnection().await;
            drop(done);
        });
    }

    /// Connects anew where the server is a replica, now and then.
    fn look_elsewhere(&self) {
        let mut looked = self.looked_elsewhere.lock().unwrap_or_else(PoisonError::into_inner);
        if looked.is_none_or(|looked| looked.elapsed() >= LOOK_ELSEWHERE) {
            *looked = Some(Instant::now());
            self.replace_connection();
        }
    }

    /// Returns when nobody looks after the connection any more: every call would find it down for ever.
    pub(super) async fn abandoned(&self) {
        let mut up = self.up.clone();
        while up.changed().await.is_ok() {}
    }

    /// Waits until there is a connection.
    pub(super) async fn connected(&self) {
        let mut up = self.up.clone();
        while !self.client.is_connected() {
            // The watcher hears of every change; the bound covers a change between the two looks.
            let _ = tokio::time::timeout(PATIENCE, up.changed()).await;
        }
    }

    /// Told at each (re)connection.
    pub(super) fn reconnections(&self) -> tokio::sync::broadcast::Receiver<fred::types::config::Server> {
        self.client.reconnect_rx()
    }

    pub(super) async fn close(&self) {
        let _ = tokio::time::timeout(Duration::from_millis(500), self.client.quit()).await;
    }
}

/// A client for subscriptions, of its own connection.
pub(super) fn subscriber(options: &Options) -> Result<SubscriberClient> {
    Ok(builder(options, Duration::ZERO, EVENT_CAPACITY)?.build_subscriber_client()?)
}

/// The number of the database that `url` names.
pub(super) fn database(url: &str) -> Result<u8> {
    Ok(Config::from_url(url)?.database.unwrap_or(0))
}

/// fred's defaults are not ours: without this a client never reconnects, never times out, batches small packets, and
/// its event channel holds 32 messages.
fn builder(options: &Options, extra: Duration, capacity: usize) -> Result<Builder> {
    let mut config = Config::from_url(&options.url)?;
    config.version = RespVersion::RESP3;
    config.fail_fast = false;
    let mut builder = Builder::from_config(config);
    let mut policy = ReconnectPolicy::new_constant(0, RECONNECT_DELAY_MS);
    policy.set_jitter(RECONNECT_DELAY_MS / 2);
    builder
        .set_policy(policy)
        .set_performance_config(PerformanceConfig {
            default_command_timeout: options.command_timeout + extra,
            broadcast_channel_capacity: capacity,
            ..PerformanceConfig::default()
        })
        .set_connection_config(ConnectionConfig {
            connection_timeout: Duration::from_secs(1),
            internal_command_timeout: Duration::from_secs(1),
            // A command in flight when the connection breaks is answered with an error, not kept for later.
            max_command_attempts: 1,
            unresponsive: UnresponsiveConfig {
                max_timeout: Some(options.command_timeout * 2 + extra),
                interval: Duration::from_millis(500),
            },
            // fred's default is to connect anew at each READONLY or LOADING, which leaves nothing for reads.
            reconnect_errors: vec![],
            tcp: TcpConfig { nodelay: Some(true), ..TcpConfig::default() },
            ..ConnectionConfig::default()
        });
    Ok(builder)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_link_whose_watcher_dies_says_that_it_is_abandoned() {
        let options = Options {
            url: "redis://127.0.0.1:1".into(),
            ttl: Duration::from_secs(1),
            shards: 1,
            ended_ttl: Duration::from_secs(1),
            instance: "test".into(),
            command_timeout: Duration::from_secs(1),
        };
        let link = Link::open(&options, Duration::ZERO, &Arc::default()).unwrap();
        let Link { _watcher: watcher, .. } = &link;
        let abandoned = tokio::time::timeout(Duration::from_secs(30), link.abandoned());
        let death = async {
            tokio::task::yield_now().await;
            watcher.0.abort();
        };
        assert!(tokio::join!(abandoned, death).0.is_ok(), "its absence is no reason, its end is");
    }
}
