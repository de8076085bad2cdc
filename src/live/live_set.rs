//! The live set: who is present, by whose word, until when.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::Duration;

use fred::interfaces::KeysInterface;
use fred::types::{SetOptions, Value};
use fred::util::redis_keyslot;

use super::keys::Keys;
use super::link::Link;
use super::node::Timeouts;
use super::scripts::named;
use super::topology::Topology;
use super::{LiveError, Options, Result};
use crate::model::{
    HeartbeatWord, Millis, OnlineStatus, Page, Presence, SessionId, SessionKey, UserId, account::pick,
};

/// Between two attempts to learn whether Redis is the right one.
const ASK_AGAIN: Duration = Duration::from_millis(250);
/// How many users one call of a reading script takes: some 2 ms of Redis's time.
const READ_CHUNK: usize = 1_000;

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
    /// By shard, the latest instant at which Redis is known to have taken heartbeats, ms: what it must still know of
    /// after a restart.
    heard: Arc<[AtomicI64]>,
}

/// One heartbeat of a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Heartbeat {
    /// Whose.
    pub who: SessionKey,
    /// What it says.
    pub word: HeartbeatWord,
}

/// What a heartbeat came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HeartbeatOutcome {
    /// It counts; the user's status after it.
    Present(OnlineStatus),
    /// The account may not be present.
    Blocked,
    /// The session has ended.
    SessionEnded,
    /// Redis has lost its data and the fence is not rebuilt yet; nobody may come online until it is.
    Unfenced,
}

/// What setting a status came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StatusOutcome {
    /// It is set.
    Done,
    /// The account may not be present.
    Blocked,
    /// As [`HeartbeatOutcome::Unfenced`].
    Unfenced,
}

/// A page of the live set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OnlinePage {
    /// How many users are present in all.
    pub count: i64,
    /// Users on the page, the latest deadline first.
    pub users: Vec<UserId>,
}

impl LiveSet {
    /// Starts connecting to Redis; does not wait for it.
    ///
    /// # Errors
    /// [`LiveError::Url`].
    pub fn open(options: Options) -> Result<Self> {
        let gate = Arc::default();
        let topology = Topology::open(&options.url)?;
        let link = |extra| {
            Link::open(&topology, Timeouts { command: options.command_timeout, extra }, &gate)
        };
        Ok(Self {
            front: link(Duration::ZERO),
            back: link(Duration::ZERO),
            blocking: (!topology.is_cluster()).then(|| link(super::stream::BLOCK)),
            topology,
            gate,
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
                    self.gate.store(true, Ordering::Relaxed);
                    return Ok(());
                }
                Ok(found) => return Err(LiveError::Shards { asked: self.options.shards, found }),
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
            let key = Keys::shards();
            let get = self.front.call_before_ready(&key, |client| async move {
                client.get::<Option<u32>, _>(Keys::shards()).await
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

    /// Notes with how many shards this Redis is used; returns with how many it was before.
    async fn settle_shards(&self) -> Result<u32> {
        let (ours, key) = (i64::from(self.options.shards), Keys::shards());
        let set = self.front.call_before_ready(&key, |client| async move {
            client.set::<(), _, _>(Keys::shards(), ours, None, Some(SetOptions::NX), false).await
        });
        set.await??;
        let get = self
            .front
            .call_before_ready(&key, |client| async move { client.get::<u32, _>(Keys::shards()).await });
        Ok(get.await??)
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
        let server = |shard: u32| map.of(redis_keyslot(Keys::of(shard).live().as_bytes()));
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

    /// Records a batch of one shard's heartbeats (`lua/heartbeat.lua`): the instant of the batch, and one outcome each,
    /// in order.
    pub async fn heartbeat(
        &self,
        shard: u32,
        batch: &[Heartbeat],
    ) -> Result<(Millis, Vec<HeartbeatOutcome>)> {
        let keys = Keys::of(shard);
        let reply: Vec<i64> = named::heartbeat
            .run(&self.front, || {
                let mut names = vec![
                    keys.live(),
                    keys.transitions(),
                    keys.blocked(),
                    keys.fence(),
                    keys.hold(),
                    keys.heard(),
                ];
                let mut args: Vec<Value> = vec![self.ttl_ms().into()];
                for beat in batch {
                    let sid = beat.who.sid.as_ref();
                    names.extend([keys.user(beat.who.user), keys.ended(sid)]);
                    args.extend([
                        beat.who.user.into(),
                        Value::from(sid.map_or("", SessionId::as_str)),
                        Value::from_static_str(beat.word.as_str()),
                    ]);
                }
                (names, args)
            })
            .await?;
        let (now, rest) = split_now(&reply, "heartbeat")?;
        let (heard, codes) = split_now(rest, "heartbeat")?;
        self.has_heard(shard, heard);
        let outcomes = codes.iter().map(|code| match code {
            1 => Ok(HeartbeatOutcome::Present(OnlineStatus::Online)),
            2 => Ok(HeartbeatOutcome::Present(OnlineStatus::Away)),
            -1 => Ok(HeartbeatOutcome::Blocked),
            -2 => Ok(HeartbeatOutcome::SessionEnded),
            -3 => Ok(HeartbeatOutcome::Unfenced),
            other => Err(unexpected("heartbeat", other)),
        });
        let outcomes: Vec<_> = outcomes.collect::<Result<_>>()?;
        if outcomes.len() == batch.len() {
            Ok((now, outcomes))
        } else {
            Err(unexpected("heartbeat", "its length"))
        }
    }

    /// Notes that this shard's Redis knew of heartbeats at that instant.
    pub(super) fn has_heard(&self, shard: u32, at: Millis) {
        let heard = &self.heard[shard as usize];
        // Written only where it changes: a few times a second.
        if heard.load(Ordering::Relaxed) < at.0 {
            heard.fetch_max(at.0, Ordering::Relaxed);
        }
    }

    /// The latest instant of which [`Self::has_heard`] was told.
    pub(super) fn heard(&self, shard: u32) -> Millis {
        Millis(self.heard[shard as usize].load(Ordering::Relaxed))
    }

    /// Ends one session (`lua/leave.lua`).
    ///
    /// Its tokens are refused for as long as an access token lives, and at least until `expires_at`: one minted elsewhere, or
    /// under a former setting, may live longer.
    pub async fn leave(&self, user: UserId, sid: &SessionId, expires_at: Millis) -> Result<()> {
        self.leave_by(&self.front, user, sid, expires_at).await
    }

    pub(super) async fn leave_by(
        &self,
        link: &Link,
        user: UserId,
        sid: &SessionId,
        expires_at: Millis,
    ) -> Result<()> {
        let keys = Keys::of(self.shard_of(user));
        let ended_ttl_ms = i64::try_from(self.options.ended_ttl.as_millis()).unwrap_or(i64::MAX);
        let _: i64 = named::leave
            .run(link, || {
                let names = vec![keys.live(), keys.transitions(), keys.user(user), keys.ended(Some(sid))];
                let args = vec![
                    user.into(),
                    sid.as_str().into(),
                    self.ttl_ms().into(),
                    ended_ttl_ms.into(),
                    expires_at.0.into(),
                ];
                (names, args)
            })
            .await?;
        Ok(())
    }

    /// Sets a user's status for an administrator (`lua/set_status.lua`).
    pub async fn set_status(&self, user: UserId, to: OnlineStatus) -> Result<StatusOutcome> {
        let keys = Keys::of(self.shard_of(user));
        let reply: i64 = named::set_status
            .run(&self.front, || {
                let names =
                    vec![keys.live(), keys.transitions(), keys.blocked(), keys.fence(), keys.user(user)];
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

    /// The presence of each user, in their order.
    pub async fn read(&self, users: &[UserId]) -> Result<Vec<Option<Presence>>> {
        let found = self.read_what_answers(users).await?;
        found.into_iter().collect::<Option<_>>().ok_or(LiveError::Down)
    }

    /// The presence of each user (`lua/read.lua`), in their order; `None` for those of shards that cannot be asked.
    ///
    /// # Errors
    /// Where none of them can be asked.
    pub async fn read_what_answers(&self, users: &[UserId]) -> Result<Vec<Option<Option<Presence>>>> {
        let mut found = vec![None; users.len()];
        let mut by_shard: Vec<Vec<usize>> = vec![Vec::new(); self.options.shards as usize];
        for (index, user) in users.iter().enumerate() {
            by_shard[self.shard_of(*user) as usize].push(index);
        }
        let calls = by_shard.iter().zip(self.shards()).flat_map(|(indices, shard)| {
            indices.chunks(READ_CHUNK).map(move |chunk| async move {
                let keys = Keys::of(shard);
                let reply: Vec<i64> = named::read
                    .run(&self.front, || {
                        (chunk.iter().map(|index| keys.user(users[*index])).collect(), vec![])
                    })
                    .await?;
                let (_, pairs) = split_now(&reply, "read")?;
                let presences = pairs.chunks_exact(2).map(|pair| match pair[0] {
                    0 => Ok(None),
                    1 => Ok(Some(Presence { status: OnlineStatus::Online, last_seen: Millis(pair[1]) })),
                    2 => Ok(Some(Presence { status: OnlineStatus::Away, last_seen: Millis(pair[1]) })),
                    other => Err(unexpected("read", other)),
                });
                Ok::<_, LiveError>((chunk, presences.collect::<Result<Vec<_>>>()?))
            })
        });
        let (mut answered, mut failed) = (false, None);
        for answer in futures_util::future::join_all(calls).await {
            match answer {
                Ok((chunk, presences)) => {
                    answered = true;
                    for (index, presence) in chunk.iter().zip(presences) {
                        found[*index] = Some(presence);
                    }
                }
                Err(error) => failed = Some(error),
            }
        }
        failed.filter(|_| !answered).map_or(Ok(found), Err)
    }

    /// A page of who is present, most recently seen first (`lua/online.lua`). With several shards each gives its own
    /// beginning up to the page's end, and the page is cut from them merged.
    pub async fn online(&self, page: Page) -> Result<OnlinePage> {
        let one = self.options.shards == 1;
        if !one && page.number > 1 {
            // Each shard would be asked for all up to the page's end: not for one past the end.
            let count = self.online_count().await?;
            if page.offset() >= count {
                return Ok(OnlinePage { count, users: vec![] });
            }
        }
        let (offset, count) = if one {
            (page.offset(), i64::from(page.size))
        } else {
            (0, page.offset().saturating_add(i64::from(page.size)))
        };
        let (total, mut entries) = self.online_range(offset, count).await?;
        entries.sort_unstable_by(|a, b| b.1.cmp(&a.1).then(b.0.cmp(&a.0)));
        let skip = if one { 0 } else { usize::try_from(page.offset()).unwrap_or(usize::MAX) };
        let users = entries.into_iter().skip(skip).take(page.size as usize).map(|(user, _)| user).collect();
        Ok(OnlinePage { count: total, users })
    }

    /// How many users are present: O(log n) in Redis.
    pub async fn online_count(&self) -> Result<i64> {
        Ok(self.online_range(0, 0).await?.0)
    }

    async fn online_range(&self, offset: i64, count: i64) -> Result<(i64, Vec<(UserId, i64)>)> {
        let calls = self.shards().map(|shard| async move {
            named::online
                .run::<Vec<i64>>(&self.front, || {
                    (vec![Keys::of(shard).live()], vec![offset.into(), count.into()])
                })
                .await
        });
        let (mut total, mut entries) = (0, Vec::new());
        for reply in futures_util::future::try_join_all(calls).await? {
            let (in_shard, pairs) = reply.split_first().ok_or_else(|| unexpected("online", "nothing"))?;
            total += in_shard;
            entries.extend(pairs.chunks_exact(2).filter(|pair| pair[0] > 0).map(|pair| (pair[0], pair[1])));
        }
        Ok((total, entries))
    }

    /// The users of whom SQL's mirror may not know the latest yet, each once (`lua/unsettled.lua`), `most` of each
    /// kind and shard.
    pub async fn unsettled(&self, most: u32) -> Result<Vec<(UserId, OnlineStatus)>> {
        let calls = self.shards().map(|shard| async move {
            let keys = Keys::of(shard);
            named::unsettled
                .run::<Vec<String>>(&self.front, || {
                    (vec![keys.live(), keys.transitions()], vec![i64::from(most).into()])
                })
                .await
        });
        let mut latest = std::collections::HashMap::new();
        for reply in futures_util::future::try_join_all(calls).await? {
            for pair in reply.chunks_exact(2) {
                let status = pick(&pair[1], &OnlineStatus::ALL, OnlineStatus::as_str);
                if let (Ok(user), Ok(status)) = (pair[0].parse::<UserId>(), status) {
                    latest.insert(user, status);
                }
            }
        }
        Ok(latest.into_iter().collect())
    }
}

/// See [`LiveSet::reconnections`].
pub struct Reconnections(tokio::sync::broadcast::Receiver<()>);

impl Reconnections {
    /// The next (re)connection; many at once count as one.
    pub async fn next(&mut self) {
        use tokio::sync::broadcast::error::RecvError;
        match self.0.recv().await {
            Ok(_) | Err(RecvError::Lagged(_)) => {}
            Err(RecvError::Closed) => std::future::pending().await,
        }
    }
}

fn split_now<'a>(reply: &'a [i64], script: &str) -> Result<(Millis, &'a [i64])> {
    let (now, rest) = reply.split_first().ok_or_else(|| unexpected(script, "nothing"))?;
    Ok((Millis(*now), rest))
}

pub(super) fn unexpected(script: &str, what: impl std::fmt::Display) -> LiveError {
    LiveError::Redis(format!("lua/{script}.lua answered {what}, which this version does not know"))
}
