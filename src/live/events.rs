//! Expiry events: `__keyevent@<db>__:expired`, on a connection of their own.
//!
//! Events are a wake-up and nothing more: they come when Redis deletes a key, not when its TTL ends, and are lost with the
//! connection. Whoever hears one re-checks the deadline in `lua/claim.lua`; whoever hears none has the sweeper.

use std::time::Duration;

use fred::clients::SubscriberClient;
use fred::interfaces::{ClientLike, ConfigInterface, EventInterface, KeysInterface, PubsubInterface};
use fred::types::config::Server;
use fred::types::{Expiration, KeyspaceEvent};
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;

use super::Result;
use super::keys::Keys;
use super::link;
use super::live_set::LiveSet;
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
    subscriber: SubscriberClient,
    channel: String,
    events: Receiver<KeyspaceEvent>,
    reconnections: Receiver<Server>,
    canary: String,
    keeper: tokio::task::JoinHandle<()>,
}

impl ExpiryEvents {
    /// Opens the connection and subscribes as soon as Redis is there.
    pub async fn subscribe(live: &LiveSet) -> Result<Self> {
        let database = link::database(&live.options.url)?;
        let subscriber = link::subscriber(&live.options)?;
        let events = subscriber.keyspace_event_rx();
        let keeper = subscriber.manage_subscriptions();
        subscriber.connect();
        subscriber.wait_for_connect().await?;
        // From here on: the first connection is none to tell of.
        let reconnections = subscriber.reconnect_rx();
        let channel = format!("__keyevent@{database}__:expired");
        subscriber.subscribe(channel.as_str()).await?;
        Ok(Self {
            canary: format!("presence:canary:{}", live.options.instance),
            live: live.clone(),
            subscriber,
            channel,
            events,
            reconnections,
            keeper,
        })
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
        let client = self.live.back.client();
        let expire = Some(Expiration::PX(CANARY_TTL_MS));
        self.live.back.run(client.set::<(), _, _>(self.canary.as_str(), "", expire, None, false)).await??;
        tokio::time::sleep(Duration::from_millis(CANARY_TTL_MS.unsigned_abs() + 5)).await;
        // The touch that makes Redis notice.
        let _: bool = self.live.back.run(client.exists(self.canary.as_str())).await??;
        let heard = tokio::time::timeout(CANARY_PATIENCE, async {
            loop {
                match self.events.recv().await {
                    Ok(event) if event.key.as_str() == Some(&self.canary) => return true,
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
        let client = self.live.back.client();
        let answer: Vec<String> = self.live.back.run(client.config_get(SETTING)).await??;
        let flags = answer.get(1).cloned().unwrap_or_default();
        if !(flags.contains('E') && (flags.contains('x') || flags.contains('A'))) {
            self.live.back.run(client.config_set(SETTING, format!("{flags}Ex"))).await??;
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
                        if let Some((shard, user)) = event.key.as_str().and_then(Keys::parse_user)
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
