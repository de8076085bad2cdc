//! The upkeep of the fence (invariant 6): SQL's account rule and ended sessions, brought to where heartbeats meet them.
//!
//! SQL is asked, Redis is told, and `lua/block.lua` refuses to be told what someone else has overtaken. So any number of
//! instances may do this at once, and a slow one undoes nothing.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Mutex;

use super::PresenceError;
use crate::live::{Fence, LiveSet, Verdict};
use crate::model::{Millis, UserId};
use crate::store::{Standing, Store};

type Result<T> = std::result::Result<T, PresenceError>;

/// Accounts in one call.
const CHUNK: u32 = 1_000;
/// How often an answer that was overtaken is fetched anew before giving up; each time somebody else got through.
const ATTEMPTS: usize = 50;

/// Keeps the fence; clones share one inside.
#[derive(Clone)]
pub(super) struct FenceKeeper {
    live: LiveSet,
    store: Arc<dyn Store>,
    /// How long after its end a session's access tokens can still be presented.
    ended_ttl: Duration,
    /// One rebuild at a time in this process.
    rebuilding: Arc<Mutex<()>>,
}

impl FenceKeeper {
    pub(super) fn new(live: LiveSet, store: Arc<dyn Store>, ended_ttl: Duration) -> Self {
        Self { live, store, ended_ttl, rebuilding: Arc::default() }
    }

    /// Makes sure that a shard has a fence; builds all of them where it has none.
    pub(super) async fn stand(&self, shard: u32) -> Result<()> {
        if self.live.fence(shard).await?.is_some() {
            return Ok(());
        }
        let _one = self.rebuilding.lock().await;
        if self.live.fence(shard).await?.is_some() {
            return Ok(());
        }
        self.build().await
    }

    /// Builds every shard's fence anew from SQL, whatever stands.
    pub(super) async fn rebuild(&self) -> Result<()> {
        let _one = self.rebuilding.lock().await;
        self.build().await
    }

    /// The cursor is noted before the first row is read and set after the last, so that whatever changes meanwhile is
    /// applied again by [`Self::follow`].
    async fn build(&self) -> Result<()> {
        let cursor = self.store.change_cursor().await?;
        let mut blocked = HashSet::new();
        let mut after = 0;
        loop {
            let page = self.store.blocked_after(after, CHUNK).await?;
            let Some(last) = page.last() else { break };
            after = *last;
            for (shard, users) in self.by_shard(page.iter().copied()) {
                let verdicts: Vec<_> = users.into_iter().map(|user| (user, Verdict::Block)).collect();
                self.live.block(shard, None, None, &verdicts).await?;
            }
            blocked.extend(page);
        }
        for shard in self.live.shards() {
            let members = self.live.blocked_members(shard).await?;
            let doubtful: Vec<_> = members.into_iter().filter(|user| !blocked.contains(user)).collect();
            for chunk in doubtful.chunks(CHUNK as usize) {
                let verdicts = self.verdicts(chunk).await?;
                self.live.block(shard, None, None, &verdicts).await?;
            }
        }
        self.end_sessions_again().await?;
        for shard in self.live.shards() {
            // A count that no former life of this fence can have reached by moving one by one.
            let moves = u64::try_from(chrono::Utc::now().timestamp_micros()).unwrap_or_default();
            self.live.block(shard, None, Some(&Fence { cursor: cursor.0.clone(), moves }), &[]).await?;
        }
        tracing::info!(blocked = blocked.len(), "the fence stands");
        Ok(())
    }

    /// Ends in Redis what has ended in SQL as long as tokens of it may still come: Redis may have been away, or have
    /// forgotten.
    pub(super) async fn end_sessions_again(&self) -> Result<()> {
        let span_ms = i64::try_from(self.ended_ttl.as_millis()).unwrap_or(i64::MAX);
        let since = Millis::from_utc(chrono::Utc::now()).plus(-span_ms);
        let ended = self.store.sessions_ended_since(since).await?;
        self.live.mark_ended(&ended).await?;
        Ok(())
    }

    /// Brings these accounts in line now.
    pub(super) async fn apply(&self, users: &[UserId]) -> Result<u64> {
        let mut evicted = 0;
        for (shard, users) in self.by_shard(users.iter().copied()) {
            evicted += self.apply_in_shard(shard, &users).await?;
        }
        Ok(evicted)
    }

    async fn apply_in_shard(&self, shard: u32, users: &[UserId]) -> Result<u64> {
        for _ in 0..ATTEMPTS {
            let Some(fence) = self.live.fence(shard).await? else {
                self.stand(shard).await?;
                continue;
            };
            let verdicts = self.verdicts(users).await?;
            let moved = fence.moved_to(&fence.cursor);
            if let Some(evicted) = self.live.block(shard, Some(&fence), Some(&moved), &verdicts).await? {
                return Ok(evicted);
            }
        }
        Err(overtaken())
    }

    /// Follows the log of account changes to its end. Returns how many users were taken offline.
    pub(super) async fn follow(&self) -> Result<u64> {
        let mut evicted = 0;
        for _ in 0..ATTEMPTS {
            let mut fences: HashMap<String, Vec<(u32, Fence)>> = HashMap::new();
            for shard in self.live.shards() {
                match self.live.fence(shard).await? {
                    Some(fence) => fences.entry(fence.cursor.clone()).or_default().push((shard, fence)),
                    None => self.stand(shard).await?,
                }
            }
            let mut overtaken = false;
            for (cursor, shards) in fences {
                let changes = self.store.account_changes(&crate::store::ChangeCursor(cursor)).await?;
                if changes.users.is_empty() {
                    continue;
                }
                let mut users = self.by_shard(changes.users.iter().copied());
                for (shard, fence) in shards {
                    let users = users.remove(&shard).unwrap_or_default();
                    match self.advance(shard, fence, &users, &changes.cursor.0).await? {
                        Some(gone) => evicted += gone,
                        None => overtaken = true,
                    }
                }
            }
            if !overtaken {
                return Ok(evicted);
            }
        }
        Err(self::overtaken())
    }

    /// Moves a shard's fence to `cursor` over these changes, some at a time; only the last step claims the cursor.
    /// `None` where someone else moved it meanwhile.
    async fn advance(&self, shard: u32, from: Fence, users: &[UserId], cursor: &str) -> Result<Option<u64>> {
        let (mut fence, mut evicted) = (from, 0);
        for chunk in users.chunks(CHUNK as usize) {
            let verdicts = self.verdicts(chunk).await?;
            let moved = fence.moved_to(&fence.cursor);
            match self.live.block(shard, Some(&fence), Some(&moved), &verdicts).await? {
                Some(gone) => evicted += gone,
                None => return Ok(None),
            }
            fence = moved;
        }
        let arrived = self.live.block(shard, Some(&fence), Some(&fence.moved_to(cursor)), &[]).await?;
        Ok(arrived.map(|_| evicted))
    }

    async fn verdicts(&self, users: &[UserId]) -> Result<Vec<(UserId, Verdict)>> {
        if users.is_empty() {
            return Ok(vec![]);
        }
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

    fn by_shard(&self, users: impl Iterator<Item = UserId>) -> HashMap<u32, Vec<UserId>> {
        let mut shards: HashMap<u32, Vec<UserId>> = HashMap::new();
        for user in users {
            shards.entry(self.live.shard_of(user)).or_default().push(user);
        }
        shards
    }
}

fn overtaken() -> PresenceError {
    PresenceError::RedisUnavailable("the fence is being moved all the time".into())
}
