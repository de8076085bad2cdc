//! Expiry events: `__keyevent@<db>__:expired`, on a connection of their own.
//!
//! Events are a wake-up and nothing more: they come when Redis deletes a key, not when its TTL ends, and are lost with the
//! connection. Whoever hears one re-checks the deadline in `lua/claim.lua`; whoever hears none has the sweeper.

use std::time::Duration;

use fred::clients::SubscriberClient;
use fred::interfaces::{ClientLike, ConfigInterface, EventInterface, KeysInterface, PubsubInterface};
use fred::types::config::Server;
use fred::types::{Expiration, Key, KeyspaceEvent};
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;

use super::Result;
use super::keys::Keys;
use super::live_set::LiveSet;
use super::node;
use super::primaries::Primary;
use crate::model::UserId;

/// How long the canary's event may take.
const CANARY_PATIENCE: Duration = Duration::from_secs(1);
const CANARY_TTL_MS: i64 = 20;

/// Something to act upon.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A presence key has expired (perhaps one that has been written again since).
    Expired {
        /// The shard that its name tells.
        shard: u32,
        /// Its user.
        user: UserId,
    },
    /// Events were lost: more came than could be heard, or the connection broke. Sweep, and go on.
    Missed,
    /// The connection is back: arm the events again ([`ExpiryEvents::arm`]).
    Reconnected,
}

/// The subscription.
pub struct ExpiryEvents {
    live: LiveSet,
    server: Server,
    subscriber: SubscriberClient,
    channel: String,
    events: Receiver<KeyspaceEvent>,
    reconnections: Receiver<Server>,
    canary: Key,
    keeper: tokio::task::JoinHandle<()>,
}

impl ExpiryEvents {
    /// Opens a connection to one of those who serve, for each tells of its own keys alone, and subscribes as soon as it
    /// is there.
    pub async fn subscribe(live: &LiveSet, primary: &Primary) -> Result<Self> {
        let server = primary.0.clone();
        let subscriber = node::subscriber(live.topology.config(&server), live.options.command_timeout)?;
        // Whole before it waits: should nobody want it any more, for the server serves nothing now, its end closes it.
        let mut events = Self {
            events: subscriber.keyspace_event_rx(),
            reconnections: subscriber.reconnect_rx(),
            keeper: subscriber.manage_subscriptions(),
            channel: format!("__keyevent@{}__:expired", live.topology.database()),
            canary: live.keys(0).canary(&live.options.instance, 0),
            live: live.clone(),
            server,
            subscriber,
        };
        events.subscriber.connect();
        events.subscriber.wait_for_connect().await?;
        // From here on: the first connection is none to tell of.
        events.reconnections = events.subscriber.reconnect_rx();
        events.subscriber.subscribe(events.channel.as_str()).await?;
        Ok(events)
    }

    /// Makes Redis publish expiry events where that is allowed, and tries with a canary whether they come.
    ///
    /// # Errors
    /// Where Redis is away. A refused `CONFIG` is no error: the canary tells.
    pub async fn arm(&mut self) -> Result<bool> {
        if let Err(error) = self.configure().await {
            tracing::debug!(%error, "CONFIG is refused here; the canary tells whether expiry events are on");
        }
        self.subscriber.subscribe(self.channel.as_str()).await?;
        // Chosen anew each time: slots move.
        self.canary =
            self.live.key_at(&self.server, |n| self.live.keys(0).canary(&self.live.options.instance, n))?;
        let written = self.live.back.call_at(&self.server, |client| {
            let (key, bound) = (self.canary.clone(), Some(Expiration::PX(CANARY_TTL_MS)));
            async move { client.set::<(), _, _>(key, "", bound, None, false).await }
        });
        written.await??;
        tokio::time::sleep(Duration::from_millis(CANARY_TTL_MS.unsigned_abs() + 5)).await;
        // The touch that makes Redis notice.
        let touched = self.live.back.call_at(&self.server, |client| {
            let key = self.canary.clone();
            async move { client.exists::<bool, _>(key).await }
        });
        touched.await??;
        let heard = tokio::time::timeout(CANARY_PATIENCE, async {
            loop {
                match self.events.recv().await {
                    Ok(event) if event.key == self.canary => return true,
                    Ok(_) | Err(RecvError::Lagged(_)) => {}
                    Err(RecvError::Closed) => return false,
                }
            }
        });
        Ok(heard.await.unwrap_or(false))
    }

    /// Adds `E` and `x` to what the server publishes already.
    async fn configure(&self) -> Result<()> {
        const SETTING: &str = "notify-keyspace-events";
        let get = self.live.back.call_at(&self.server, |client| async move {
            client.config_get::<Vec<String>, _>(SETTING).await
        });
        let answer = get.await??;
        let flags = answer.get(1).cloned().unwrap_or_default();
        if !(flags.contains('E') && (flags.contains('x') || flags.contains('A'))) {
            let set = self.live.back.call_at(&self.server, |client| {
                let flags = format!("{flags}Ex");
                async move { client.config_set(SETTING, flags).await }
            });
            set.await??;
        }
        Ok(())
    }

    /// The next event.
    pub async fn next(&mut self) -> Event {
        loop {
            tokio::select! {
                biased;
                reconnection = self.reconnections.recv() => match reconnection {
                    Ok(_) | Err(RecvError::Lagged(_)) => return Event::Reconnected,
                    Err(RecvError::Closed) => std::future::pending().await,
                },
                event = self.events.recv() => match event {
                    Ok(event) => {
                        if let Some((shard, user)) = event
                            .key
                            .as_str()
                            .and_then(|key| Keys::parse_user(&self.live.options.prefix, key))
                            && self.live.shards().contains(&shard)
                        {
                            return Event::Expired { shard, user };
                        }
                    }
                    Err(RecvError::Lagged(_)) => return Event::Missed,
                    Err(RecvError::Closed) => std::future::pending().await,
                },
            }
        }
    }
}

impl Drop for ExpiryEvents {
    fn drop(&mut self) {
        self.keeper.abort();
        let subscriber = self.subscriber.clone();
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move { subscriber.quit().await });
        }
    }
}
