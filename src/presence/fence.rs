//! The upkeep of the fence (invariant 6): SQL's account rule and ended sessions, brought to where heartbeats meet them.
//!
//! SQL is asked, Redis is told, and `lua/block.lua` refuses to be told what someone else has overtaken. So any number of
//! instances may do this at once, and a slow one undoes nothing.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex as SyncMutex, PoisonError};
use std::time::Duration;

use tokio::sync::{Mutex, Notify};
use tokio::time::{Instant, timeout};

use super::PresenceError;
use crate::live::{LiveSet, Verdict};
use crate::model::{Millis, UserId};
use crate::store::{ChangeCursor, Standing, Store};

type Result<T> = std::result::Result<T, PresenceError>;

/// Accounts in one call.
const CHUNK: u32 = 1_000;
/// Sessions ended again between two renewals of a building.
const ENDED_AT_ONCE: usize = 500;
/// Between two looks at a fence that somebody else builds.
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// By how much the clocks of Redis, of SQL and of whoever dated the end of a session may differ, ms.
const LATELY_MS: i64 = 60_000;
/// How long SQL may take to say what has changed lately.
const SQL_PATIENCE: Duration = Duration::from_millis(500);
/// How often an answer that was overtaken is fetched anew before giving up; each time somebody else got through.
const ATTEMPTS: usize = 50;

/// Between two renewals of a building that is under way; it lapses after some seconds.
const RENEW: Duration = Duration::from_millis(500);

/// A building that is under way.
struct Site {
    token: String,
    renewed: Instant,
}

/// Keeps the fence; clones share one inside.
#[derive(Clone)]
pub(super) struct FenceKeeper {
    live: LiveSet,
    store: Arc<dyn Store>,
    /// How long after its end a session's access tokens can still be presented.
    ended_ttl: Duration,
    /// One rebuild at a time in this process.
    building: Arc<Mutex<()>>,
    /// The token of the one that is under way.
    under: Arc<SyncMutex<Option<String>>>,
    /// Told when a fence was found missing: Redis has lost more than that.
    missed: Arc<Notify>,
}

impl FenceKeeper {
    pub(super) fn new(live: LiveSet, store: Arc<dyn Store>, ended_ttl: Duration) -> Self {
        Self {
            live,
            store,
            ended_ttl,
            building: Arc::default(),
            under: Arc::default(),
            missed: Arc::default(),
        }
    }

    /// Returns when a fence has been found missing since the last call.
    pub(super) async fn missed(&self) {
        self.missed.notified().await;
    }

    /// Says that a fence was found missing.
    pub(super) fn miss(&self) {
        self.missed.notify_one();
    }

    /// Makes sure that a shard's fence stands: takes over that of a former life of the server where its data are whole,
    /// and builds all fences anew otherwise.
    pub(super) async fn stand(&self, shard: u32) -> Result<()> {
        if self.live.fence(shard).await?.cursor.is_some() {
            return Ok(());
        }
        let _one = self.building.lock().await;
        let fence = self.live.fence(shard).await?;
        if fence.cursor.is_some() {
            return Ok(());
        }
        if let Some(former) = fence.former.filter(|former| former.is_whole) {
            // The last moments may be missing all the same, and SQL knows who was blocked or logged out in them. Where it
            // does not say so soon it must do without: heartbeats do not wait for SQL.
            let lately = Box::pin(self.tell_lately(&former.cursor, fence.newest));
            match timeout(SQL_PATIENCE, lately).await {
                Ok(Err(error)) if !matches!(error, PresenceError::Store(_)) => return Err(error),
                _ => {}
            }
            if self.live.adopt_fence(shard, &former).await? {
                tracing::info!(shard, "Redis was restarted and has kept its data");
                return Ok(());
            }
            // Someone else was faster, or the data are gone once more.
            if self.live.fence(shard).await?.cursor.is_some() {
                return Ok(());
            }
        }
        Box::pin(self.build()).await
    }

    /// Tells Redis which accounts have changed since a cursor, and which sessions ended lately.
    async fn tell_lately(&self, cursor: &str, newest: Millis) -> Result<()> {
        let ended = self.store.sessions_ended_since(newest.plus(-LATELY_MS)).await?;
        self.live.end_again(&ended).await?;
        let changes = self.store.account_changes(&ChangeCursor(cursor.to_owned())).await?;
        self.tell(&changes.users).await?;
        Ok(())
    }

    async fn build(&self) -> Result<()> {
        for _ in 0..ATTEMPTS {
            if self.try_build().await? {
                self.miss();
                return Ok(());
            }
        }
        Err(overtaken())
    }

    /// The cursor is noted before the first row is read, and what changed since is applied after the last; so whatever
    /// happens meanwhile is seen here or by [`Self::follow`]. `false` where Redis lost its data while it was at it.
    async fn try_build(&self) -> Result<bool> {
        let token = super::random_token();
        if !self.live.begin_fence(&token).await? {
            // Somebody else is at it; theirs serves as well.
            return self.wait_for_fence().await;
        }
        *self.under.lock().unwrap_or_else(PoisonError::into_inner) = Some(token.clone());
        let built = Box::pin(self.build_under(token)).await;
        let given_up = self.give_up().await;
        let built = built?;
        given_up?;
        Ok(built)
    }

    /// Gives up what this process builds, if it does.
    pub(super) async fn give_up(&self) -> Result<()> {
        let token = self.under.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(token) = token {
            self.live.end_fence(&token).await?;
        }
        Ok(())
    }

    async fn build_under(&self, token: String) -> Result<bool> {
        let mut site = Site { token, renewed: Instant::now() };
        let (former, hold) = self.what_was_there().await?;
        let cursor = self.store.change_cursor().await?;
        let (mut blocked, mut after) = (0, 0);
        loop {
            let page = self.store.blocked_after(after, CHUNK).await?;
            let Some(last) = page.last() else { break };
            after = *last;
            blocked += page.len();
            self.tell(&page).await?;
            if !self.keep(&mut site).await? {
                return Ok(false);
            }
        }
        // Accounts that are gone are on no page; the log since the former fence names them.
        for former in former {
            let changes = self.store.account_changes(&ChangeCursor(former)).await?;
            self.tell(&changes.users).await?;
        }
        for shard in self.live.shards() {
            if !self.tell_of_the_allowed(shard, &mut site).await? {
                return Ok(false);
            }
        }
        // Thousands may have ended; done in one go, the building would lapse meanwhile, and never come to its end.
        let ended = self.store.sessions_ended_since(self.tokens_may_live_since()).await?;
        for chunk in ended.chunks(ENDED_AT_ONCE) {
            self.live.end_again(chunk).await?;
            if !self.keep(&mut site).await? {
                return Ok(false);
            }
        }
        let changes = self.store.account_changes(&cursor).await?;
        self.tell(&changes.users).await?;
        for shard in self.live.shards() {
            if !self.live.raise_fence(shard, &changes.cursor.0, &site.token, hold).await? {
                return Ok(false);
            }
        }
        tracing::info!(blocked, "the fence stands");
        if !hold.is_zero() {
            tracing::warn!(
                seconds = hold.as_secs_f32(),
                "Redis has lost data that it had taken: nobody's time ends before everybody had the time to be heard again"
            );
        }
        Ok(true)
    }

    /// Looks through a shard's fence for those who are not blocked in SQL any more, a page at a time: of ten million
    /// accounts a million may be in it. `false` where the building is ours no more.
    async fn tell_of_the_allowed(&self, shard: u32, site: &mut Site) -> Result<bool> {
        let mut place = None;
        loop {
            let (members, next) = self.live.blocked_members(shard, place, CHUNK).await?;
            let verdicts = self.verdicts(&members).await?;
            let doubtful = verdicts.into_iter().filter(|(_, verdict)| *verdict != Verdict::Block);
            self.tell(&doubtful.map(|(user, _)| user).collect::<Vec<_>>()).await?;
            if !self.keep(site).await? {
                return Ok(false);
            }
            if next.is_none() {
                return Ok(true);
            }
            place = next;
        }
    }

    /// Goes on building, every now and then in Redis too: a call for each shard, of which there may be many. `false` where
    /// Redis has lost data or another has taken it over; raising the fence asks that again, of each shard.
    async fn keep(&self, site: &mut Site) -> Result<bool> {
        if site.renewed.elapsed() < RENEW {
            return Ok(true);
        }
        site.renewed = Instant::now();
        Ok(self.live.renew_fence(&site.token).await?)
    }

    /// Where the shards' fences stand or stood, each place once; and for how long no deadline may be claimed: for a TTL
    /// where Redis is known to have held later data than it does now.
    async fn what_was_there(&self) -> Result<(HashSet<String>, Duration)> {
        let (mut cursors, mut lost) = (HashSet::new(), false);
        for shard in self.live.shards() {
            let fence = self.live.fence(shard).await?;
            lost |= self.live.knows_of_later_data(shard, &fence);
            lost |= self.store.newest_transition(shard).await?.is_some_and(|at| at > fence.newest);
            cursors.extend(fence.cursor.or(fence.former.map(|former| former.cursor)));
        }
        Ok((cursors, if lost { self.live.ttl() } else { Duration::ZERO }))
    }

    /// Waits until nobody builds any more; whether every shard has a fence then.
    async fn wait_for_fence(&self) -> Result<bool> {
        while self.live.fence_is_being_built().await? {
            tokio::time::sleep(LOOK_AGAIN).await;
        }
        for shard in self.live.shards() {
            if self.live.fence(shard).await?.cursor.is_none() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Ends in Redis what has ended in SQL as long as tokens of it may still come: Redis may have been away, or have
    /// forgotten.
    pub(super) async fn end_sessions_again(&self) -> Result<()> {
        let ended = self.store.sessions_ended_since(self.tokens_may_live_since()).await?;
        self.live.end_again(&ended).await?;
        Ok(())
    }

    /// Brings these accounts in line now. Returns how many users were taken offline.
    pub(super) async fn apply(&self, users: &[UserId]) -> Result<u64> {
        for shard in self.by_shard(users).keys() {
            self.stand(*shard).await?;
        }
        self.tell_with_sessions(users).await
    }

    /// Follows the log of account changes to its end. Returns how many users were taken offline.
    pub(super) async fn follow(&self) -> Result<u64> {
        let mut evicted = 0;
        for _ in 0..ATTEMPTS {
            let mut places: HashMap<String, Vec<u32>> = HashMap::new();
            for shard in self.live.shards() {
                match self.live.fence(shard).await?.cursor {
                    Some(cursor) => places.entry(cursor).or_default().push(shard),
                    // Once it stands, the log is followed from there.
                    None => self.stand(shard).await?,
                }
            }
            let mut arrived = places.values().map(Vec::len).sum::<usize>() == self.live.shards().len();
            for (cursor, shards) in places {
                let changes = self.store.account_changes(&ChangeCursor(cursor.clone())).await?;
                if changes.users.is_empty() {
                    continue;
                }
                let theirs: Vec<_> = changes
                    .users
                    .into_iter()
                    .filter(|user| shards.contains(&self.live.shard_of(*user)))
                    .collect();
                evicted += self.tell_with_sessions(&theirs).await?;
                for shard in shards {
                    // Someone else has moved it, or it is gone: look again.
                    arrived &= self.live.move_fence(shard, &cursor, &changes.cursor.0).await?;
                }
            }
            if arrived {
                return Ok(evicted);
            }
        }
        Err(overtaken())
    }

    /// As [`Self::tell`], and ends in Redis the sessions that a block or a new password has ended in SQL. First the
    /// account, so that who is blocked leaves by that name.
    async fn tell_with_sessions(&self, users: &[UserId]) -> Result<u64> {
        let evicted = self.tell(users).await?;
        for chunk in users.chunks(CHUNK as usize) {
            let ended = self.store.sessions_ended_of(chunk, self.tokens_may_live_since()).await?;
            self.live.end_again(&ended).await?;
        }
        Ok(evicted)
    }

    /// A session that ended before has no access token left that is good.
    fn tokens_may_live_since(&self) -> Millis {
        let span_ms = i64::try_from(self.ended_ttl.as_millis()).unwrap_or(i64::MAX);
        Millis::from_utc(chrono::Utc::now()).plus(-span_ms.saturating_add(LATELY_MS))
    }

    /// Tells Redis what SQL says of these accounts, asking SQL again as often as somebody else told Redis anything
    /// between question and answer.
    async fn tell(&self, users: &[UserId]) -> Result<u64> {
        let mut evicted = 0;
        for (shard, users) in self.by_shard(users) {
            for chunk in users.chunks(CHUNK as usize) {
                evicted += self.tell_shard(shard, chunk).await?;
            }
        }
        Ok(evicted)
    }

    async fn tell_shard(&self, shard: u32, users: &[UserId]) -> Result<u64> {
        for _ in 0..ATTEMPTS {
            let moves = self.live.fence(shard).await?.moves;
            let verdicts = self.verdicts(users).await?;
            if let Some(evicted) = self.live.block(shard, &moves, &verdicts).await? {
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
