//! The upkeep of the fence (invariant 6): SQL's account rule and ended sessions, brought to where heartbeats meet them.
//!
//! SQL is asked, Redis is told, and `lua/block.lua` refuses to be told what someone else has overtaken. So any number of
//! instances may do this at once, and a slow one undoes nothing.

mod building;
mod comparing;
mod ends;
mod following;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::{Arc, Mutex as SyncMutex, PoisonError};
use std::time::Duration;

use tokio::sync::{Mutex, Notify};
use tokio::time::timeout;

use super::PresenceError;
use crate::live::{LiveSet, Verdict};
use crate::model::{SessionId, UserId};
use crate::store::{Standing, Store};

type Result<T> = std::result::Result<T, PresenceError>;

/// Accounts in one call.
const CHUNK: u32 = 1_000;
/// How long SQL may take to say what has changed lately.
const SQL_PATIENCE: Duration = Duration::from_millis(500);
/// How often an answer that was overtaken is fetched anew before giving up; each time somebody else got through.
const ATTEMPTS: usize = 50;

/// Keeps the fence; clones share one inside.
#[derive(Clone)]
pub(super) struct FenceKeeper {
    live: LiveSet,
    store: Arc<dyn Store>,
    /// How long after its end a session's access tokens can still be presented.
    ended_ttl: Duration,
    /// One at a time in this process at each server: the lock of the first shard that lies there.
    building: Arc<[Mutex<()>]>,
    /// The tokens of those that are under way.
    under: Arc<SyncMutex<HashSet<String>>>,
    /// Told when a fence was found missing: Redis has lost more than that.
    missed: Arc<Notify>,
    /// Shards that had lost data when their fence was raised, and whose users have not been compared with SQL yet.
    damaged: Arc<SyncMutex<BTreeSet<u32>>>,
    /// Told when SQL may have been replaced.
    doubted: Arc<Notify>,
    /// Held while the log of account changes is followed: two at once in a process would only repeat each other.
    following: Arc<Mutex<()>>,
    /// Notified when sessions may have ended of which Redis is not told.
    untold: Arc<Notify>,
}

impl FenceKeeper {
    pub(super) fn new(live: LiveSet, store: Arc<dyn Store>, ended_ttl: Duration) -> Self {
        Self {
            building: live.shards().map(|_| Mutex::default()).collect(),
            live,
            store,
            ended_ttl,
            under: Arc::default(),
            missed: Arc::default(),
            damaged: Arc::default(),
            doubted: Arc::default(),
            following: Arc::default(),
            untold: Arc::default(),
        }
    }

    /// See [`super::PresenceService::take_damaged`].
    pub(super) fn take_damaged(&self) -> BTreeSet<u32> {
        std::mem::take(&mut self.damaged.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Says that SQL may have been replaced.
    pub(super) fn doubt(&self) {
        self.doubted.notify_one();
    }

    /// Returns when [`Self::doubt`] has been called.
    pub(super) async fn doubtful(&self) {
        self.doubted.notified().await;
    }

    /// Returns when a fence has been found missing since the last call.
    pub(super) async fn missed(&self) {
        self.missed.notified().await;
    }

    /// Says that a fence was found missing.
    pub(super) fn miss(&self) {
        self.missed.notify_one();
    }

    /// Makes sure that a shard's fence stands, and those of the shards that lie at the same server: takes over what is
    /// of a former life of the server where the data are whole, and builds anew the others.
    pub(super) async fn stand(&self, shard: u32) -> Result<()> {
        if self.live.fence(shard).await?.cursor.is_some() {
            return Ok(());
        }
        if !self.live.is_verified() {
            return Err(PresenceError::RedisUnavailable(
                "it is not known yet to belong to the installation of this database".into(),
            ));
        }
        // What befell a server has befallen all shards there, and no others.
        let there = self.live.neighbours(shard);
        let first = there.first().map_or(shard, |first| *first);
        let _one = self.building[first as usize].lock().await;
        for _ in 0..ATTEMPTS {
            let lacking = self.take_over(&there).await?;
            if lacking.is_empty() || Box::pin(self.try_build(lacking)).await? {
                return Ok(());
            }
        }
        Err(overtaken())
    }

    /// [`Self::stand`] for every shard; those that can be asked are done whatever becomes of the others.
    pub(super) async fn stand_everywhere(&self) -> Result<()> {
        self.each_shard(|shard| self.stand(shard)).await
    }

    /// Does something for every shard at once; returns the first error when all are done.
    async fn each_shard<F>(&self, act: impl Fn(u32) -> F) -> Result<()>
    where
        F: Future<Output = Result<()>>,
    {
        let all = self.live.shards().map(|shard| Box::pin(act(shard)));
        futures_util::future::join_all(all).await.into_iter().collect()
    }

    /// Takes over the fences of a former life of these shards' server that are whole; returns the shards that lack one
    /// still.
    async fn take_over(&self, shards: &[u32]) -> Result<BTreeSet<u32>> {
        let asked = shards.iter().map(|shard| self.live.fence(*shard));
        let fences = futures_util::future::try_join_all(asked).await?;
        let (mut lacking, mut whole) = (BTreeSet::new(), Vec::new());
        for (shard, fence) in shards.iter().copied().zip(fences) {
            match (fence.cursor, fence.former) {
                (Some(_), _) => {}
                (None, Some(former)) if former.is_whole => whole.push((shard, former, fence.heard)),
                (None, _) => drop(lacking.insert(shard)),
            }
        }
        let Some(since) = whole.iter().map(|(_, _, heard)| *heard).min() else { return Ok(lacking) };
        // The last moments may be missing all the same, and SQL knows who was blocked or logged out in them. Where it
        // does not say so soon it must do without: heartbeats do not wait for SQL.
        let cursors: BTreeSet<&str> = whole.iter().map(|(_, former, _)| former.cursor.as_str()).collect();
        let within = whole.iter().map(|(shard, ..)| *shard).collect();
        match timeout(SQL_PATIENCE, Box::pin(self.tell_lately(&cursors, since, &within))).await {
            Ok(Err(error)) if !matches!(error, PresenceError::Store(_)) => return Err(error),
            _ => {}
        }
        let mut taken_over = 0_u32;
        for (shard, former, _) in &whole {
            // Where someone else was faster it stands; or the data are gone once more.
            if self.live.adopt_fence(*shard, former).await? {
                taken_over += 1;
            } else if self.live.fence(*shard).await?.cursor.is_none() {
                lacking.insert(*shard);
            }
        }
        if taken_over > 0 {
            tracing::info!(
                shards = taken_over,
                "Redis was restarted, or another server serves in its place, and has kept its data"
            );
        }
        Ok(lacking)
    }

    fn within(&self, mut users: Vec<UserId>, shards: &BTreeSet<u32>) -> Vec<UserId> {
        users.retain(|user| shards.contains(&self.live.shard_of(*user)));
        users
    }

    fn sessions_within(
        &self,
        mut sessions: Vec<(UserId, SessionId)>,
        shards: &BTreeSet<u32>,
    ) -> Vec<(UserId, SessionId)> {
        sessions.retain(|(user, _)| shards.contains(&self.live.shard_of(*user)));
        sessions
    }

    /// Gives up what this process builds, if it does.
    pub(super) async fn give_up(&self) -> Result<()> {
        let tokens: Vec<_> =
            self.under.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect();
        for token in tokens {
            self.give_up_under(&token).await?;
        }
        Ok(())
    }

    async fn give_up_under(&self, token: &str) -> Result<()> {
        if self.under.lock().unwrap_or_else(PoisonError::into_inner).remove(token) {
            self.live.end_fence(token).await?;
        }
        Ok(())
    }

    /// Brings these accounts in line now. Returns how many users were taken offline.
    pub(super) async fn apply(&self, users: &[UserId]) -> Result<u64> {
        let shards = self.by_shard(users);
        let stands = futures_util::future::join_all(shards.keys().map(|shard| Box::pin(self.stand(*shard))));
        let stands: Result<()> = stands.await.into_iter().collect();
        let evicted = self.tell_with_sessions(users).await?;
        stands?;
        Ok(evicted)
    }

    /// Tells Redis what SQL says of these accounts, asking SQL again as often as somebody else told Redis anything
    /// between question and answer. Each shard is told whatever becomes of the others.
    async fn tell(&self, users: &[UserId]) -> Result<u64> {
        let shards = self.by_shard(users);
        let told = futures_util::future::join_all(shards.iter().map(|(shard, users)| {
            Box::pin(async move {
                let mut evicted = 0;
                for chunk in users.chunks(CHUNK as usize) {
                    evicted += self.tell_shard(*shard, chunk).await?;
                }
                Ok(evicted)
            })
        }));
        told.await.into_iter().sum()
    }

    async fn tell_shard(&self, shard: u32, users: &[UserId]) -> Result<u64> {
        for _ in 0..ATTEMPTS {
            let moves = self.live.fence(shard).await?.moves;
            let verdicts = self.verdicts(users).await?;
            if let Some(evicted) = self.live.block(shard, &moves, &verdicts).await? {
                // An id that SQL knows: should a restored dump forget it, no other account may get it.
                let known = verdicts.iter().filter(|(_, verdict)| *verdict != Verdict::Gone);
                if let Some(largest) = known.map(|(user, _)| *user).max() {
                    self.live.note_user_id(largest).await?;
                }
                return Ok(evicted);
            }
        }
        Err(overtaken())
    }

    async fn verdicts(&self, users: &[UserId]) -> Result<Vec<(UserId, Verdict)>> {
        let standings = self.store.standings(users).await?;
        Ok(standings
            .into_iter()
            .map(|(user, standing)| match standing {
                Standing::MayBePresent => (user, Verdict::Allow),
                Standing::Blocked => (user, Verdict::Block),
                Standing::Gone => (user, Verdict::Gone),
            })
            .collect())
    }

    fn by_shard(&self, users: &[UserId]) -> HashMap<u32, Vec<UserId>> {
        let mut shards: HashMap<u32, Vec<UserId>> = HashMap::new();
        for user in users {
            shards.entry(self.live.shard_of(*user)).or_default().push(*user);
        }
        shards
    }
}

fn overtaken() -> PresenceError {
    PresenceError::RedisUnavailable("the fence is being moved all the time".into())
}
