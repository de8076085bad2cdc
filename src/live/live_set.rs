//! The live set: who is present, by whose word, until when.

use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use fred::interfaces::KeysInterface;
use fred::types::{SetOptions, Value};
use fred::util::redis_keyslot;
use tokio::sync::watch;

use super::keys::Keys;
use super::link::Link;
use super::node::Timeouts;
use super::scripts::named;
use super::topology::Topology;
use super::{LiveError, Options, Result};
use crate::model::{Millis, OnlineStatus, SessionId, UserId};

/// Between two attempts to learn whether Redis is the right one.
pub(super) const ASK_AGAIN: Duration = Duration::from_millis(250);

/// The live set in Redis; clones share connections.
///
/// Two of them, so that a heartbeat never queues behind a sweep: `front` for what a client waits for, `back` for the
/// loops.
#[derive(Clone)]
pub struct LiveSet {
    pub(super) front: Link,
    pub(super) back: Link,
    /// For commands that wait for something. None on a cluster, where the streams lie apart.
    pub(super) blocking: Option<Link>,
    pub(super) topology: Topology,
    pub(super) options: Options,
    gate: Arc<AtomicBool>,
    /// The id of the installation, as SQL has it.
    pub(super) installation: Arc<OnceLock<String>>,
    /// Whether Redis is known to hold the same.
    pub(super) verified: Arc<watch::Sender<bool>>,
    /// The policy by which Redis may evict keys, if it does.
    pub(super) evicts: Arc<watch::Sender<Option<String>>>,
    /// By shard, the latest instant at which Redis is known to have taken heartbeats, ms: what it must still know of
    /// after a restart.
    pub(super) heard: Arc<[AtomicI64]>,
}

/// What setting a status came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StatusOutcome {
    /// It is set.
    Done,
    /// The account may not be present.
    Blocked,
    /// As [`super::HeartbeatOutcome::Unfenced`].
    Unfenced,
}

impl LiveSet {
    /// Starts connecting to Redis; does not wait for it.
    ///
    /// # Errors
    /// [`LiveError::Url`].
    pub fn open(options: Options) -> Result<Self> {
        let gate = Arc::default();
        let topology = Topology::open(&options.url)?;
        let link = |extra| Link::open(&topology, Timeouts { command: options.command_timeout, extra }, &gate);
        Ok(Self {
            front: link(Duration::ZERO),
            back: link(Duration::ZERO),
            blocking: (!topology.is_cluster()).then(|| link(super::stream::BLOCK)),
            topology,
            gate,
            installation: Arc::default(),
            verified: Arc::new(watch::Sender::new(false)),
            evicts: Arc::new(watch::Sender::new(None)),
            heard: (0..options.shards).map(|_| AtomicI64::new(0)).collect(),
            options,
        })
    }

    /// Waits until Redis is connected: of several primaries one will do.
    pub async fn connected(&self) {
        self.front.connected().await;
        self.back.connected().await;
        if let Some(blocking) = &self.blocking {
            blocking.connected().await;
        }
    }

    /// Told at each (re)connection to Redis: what was known of it may be wrong from then on.
    pub fn reconnections(&self) -> Reconnections {
        Reconnections(self.back.reconnections())
    }

    /// Returns when a connection is not looked after any more, which only its closing should bring about, and says so.
    pub async fn failed(&self) -> String {
        let blocking = async {
            match &self.blocking {
                Some(blocking) => blocking.abandoned().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = self.front.abandoned() => {}
            () = self.back.abandoned() => {}
            () = blocking => {}
        }
        "a connection to Redis is not looked after any more".to_string()
    }

    /// Closes the connections; the blocking one goes with the process, for it hears nothing while it waits.
    pub async fn close(&self) {
        tokio::join!(self.front.close(), self.back.close());
    }

    /// Waits until Redis is there and known to be used with this number of shards; until then every call finds it away.
    ///
    /// # Errors
    /// [`LiveError::Shards`] where it was used with another number: everyone would be looked for in the wrong place.
    pub async fn ready(&self) -> Result<()> {
        loop {
            self.connected().await;
            match self.settle_shards().await {
                Ok(found) if found == self.options.shards => {
                    self.look_for_eviction().await;
                    self.gate.store(true, Ordering::Relaxed);
                    return Ok(());
                }
                Ok(found) => {
                    let prefix = self.options.prefix.clone();
                    return Err(LiveError::Shards { asked: self.options.shards, found, prefix });
                }
                Err(LiveError::Down | LiveError::Timeout | LiveError::Refused(_)) => {
                    tokio::time::sleep(ASK_AGAIN).await;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// As [`Self::ready`], for somebody who only looks: notes nothing. Returns with how many shards this Redis is used,
    /// `None` where it has never been.
    pub async fn visit(&self) -> Result<Option<u32>> {
        loop {
            self.connected().await;
            let key = self.keys(0).shards();
            let get = self.front.call_before_ready(&key, |client| {
                let key = key.clone();
                async move { client.get::<Option<u32>, _>(key).await }
            });
            match get.await {
                Ok(Ok(found)) => {
                    self.gate
                        .store(found.is_none_or(|found| found == self.options.shards), Ordering::Relaxed);
                    return Ok(found);
                }
                Ok(Err(error)) => match LiveError::from(error) {
                    LiveError::Down | LiveError::Timeout | LiveError::Refused(_) => {}
                    error => return Err(error),
                },
                Err(LiveError::Down | LiveError::Timeout | LiveError::Refused(_)) => {}
                Err(error) => return Err(error),
            }
            tokio::time::sleep(ASK_AGAIN).await;
        }
    }

    /// From now on every call finds Redis away.
    pub(super) fn close_gate(&self) {
        self.gate.store(false, Ordering::Relaxed);
    }

    /// Notes with how many shards this Redis is used; returns with how many it was before.
    async fn settle_shards(&self) -> Result<u32> {
        let (ours, key) = (i64::from(self.options.shards), self.keys(0).shards());
        let set = self.front.call_before_ready(&key, |client| {
            let key = key.clone();
            async move { client.set::<(), _, _>(key, ours, None, Some(SetOptions::NX), false).await }
        });
        set.await??;
        let get = self.front.call_before_ready(&key, |client| {
            let key = key.clone();
            async move { client.get::<u32, _>(key).await }
        });
        Ok(get.await??)
    }

    /// The names of a shard's keys.
    pub(super) fn keys(&self, shard: u32) -> Keys<'_> {
        Keys::new(&self.options.prefix, shard)
    }

    /// The shard that holds a user.
    pub fn shard_of(&self, user: UserId) -> u32 {
        u32::try_from(user.unsigned_abs() % u64::from(self.options.shards)).unwrap_or(0)
    }

    /// Whether all shards lie at one server at any time.
    pub fn is_on_one_server(&self) -> bool {
        !self.topology.is_cluster()
    }

    /// The shards that lie at the same server as this one, as far as is known: what befalls one befalls all. In order.
    pub fn neighbours(&self, shard: u32) -> Vec<u32> {
        let map = self.topology.map();
        let server = |shard: u32| map.of(redis_keyslot(self.keys(shard).live().as_bytes()));
        let here = server(shard);
        self.shards().filter(|other| *other == shard || (here.is_some() && server(*other) == here)).collect()
    }

    /// All shards.
    pub fn shards(&self) -> std::ops::Range<u32> {
        0..self.options.shards
    }

    /// How long a user stays present after the last heartbeat.
    pub fn ttl(&self) -> Duration {
        self.options.ttl
    }

    /// How long a user stays present after the last heartbeat, ms.
    pub fn ttl_ms(&self) -> i64 {
        i64::try_from(self.options.ttl.as_millis()).unwrap_or(i64::MAX)
    }

    /// Ends one session (`lua/leave.lua`).
    ///
    /// Its tokens are refused for as long as an access token lives, and at least until `expires_at`: one minted elsewhere, or
    /// under a former setting, may live longer.
    pub async fn leave(&self, user: UserId, sid: &SessionId, expires_at: Millis) -> Result<()> {
        let session = (user, sid.clone());
        self.leave_by(&self.front, self.shard_of(user), std::slice::from_ref(&session), expires_at).await
    }

    /// Ends sessions of one shard.
    pub(super) async fn leave_by(
        &self,
        link: &Link,
        shard: u32,
        sessions: &[(UserId, SessionId)],
        expires_at: Millis,
    ) -> Result<()> {
        let keys = self.keys(shard);
        let ended_ttl_ms = i64::try_from(self.options.ended_ttl.as_millis()).unwrap_or(i64::MAX);
        let _: Vec<i64> = named::leave
            .run(link, || {
                let mut names = vec![keys.live(), keys.transitions(), keys.ended()];
                names.extend([keys.lent(), keys.hold(), keys.lost()]);
                let mut args: Vec<Value> = vec![self.ttl_ms().into(), ended_ttl_ms.into()];
                for (user, sid) in sessions {
                    names.push(keys.user(*user));
                    args.extend([(*user).into(), sid.as_str().into(), expires_at.0.into()]);
                }
                (names, args)
            })
            .await?;
        Ok(())
    }

    /// Sets a user's status for an administrator (`lua/set_status.lua`).
    pub async fn set_status(&self, user: UserId, to: OnlineStatus) -> Result<StatusOutcome> {
        let keys = self.keys(self.shard_of(user));
        let reply: i64 = named::set_status
            .run(&self.front, || {
                let mut names = keys.of_a_fence().to_vec();
                names.extend([keys.lent(), keys.hold(), keys.lost(), keys.user(user)]);
                (names, vec![user.into(), Value::from_static_str(to.as_str()), self.ttl_ms().into()])
            })
            .await?;
        match reply {
            1 => Ok(StatusOutcome::Done),
            -1 => Ok(StatusOutcome::Blocked),
            -3 => Ok(StatusOutcome::Unfenced),
            other => Err(unexpected("set_status", other)),
        }
    }
}

/// See [`LiveSet::reconnections`].
pub struct Reconnections(tokio::sync::broadcast::Receiver<()>);

impl Reconnections {
    /// The next (re)connection; many at once count as one.
    pub async fn next(&mut self) {
        use tokio::sync::broadcast::error::RecvError;
        match self.0.recv().await {
            Ok(()) | Err(RecvError::Lagged(_)) => {}
            Err(RecvError::Closed) => std::future::pending().await,
        }
    }
}

pub(super) fn split_now<'a>(reply: &'a [i64], script: &str) -> Result<(Millis, &'a [i64])> {
    let (now, rest) = reply.split_first().ok_or_else(|| unexpected(script, "nothing"))?;
    Ok((Millis(*now), rest))
}

pub(super) fn unexpected(script: &str, what: impl std::fmt::Display) -> LiveError {
    LiveError::Redis(format!("lua/{script}.lua answered {what}, which this version does not know"))
}
