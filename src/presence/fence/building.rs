//! The building of fences from SQL: for shards whose server has lost what it had, or never had one.

use std::collections::{BTreeSet, HashSet};
use std::sync::PoisonError;
use std::time::Duration;

use tokio::time::Instant;

use super::{CHUNK, FenceKeeper, Result};
use crate::live::Verdict;
use crate::presence::random_token;
use crate::store::ChangeCursor;

/// Sessions ended again between two renewals of a building.
const ENDED_AT_ONCE: usize = 4_096;
/// Between two looks at a fence that somebody else builds.
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// Between two renewals of a building that is under way; it lapses after some seconds.
const RENEW: Duration = Duration::from_millis(500);

/// A building that is under way.
struct Site {
    token: String,
    renewed: Instant,
    shards: BTreeSet<u32>,
}

impl FenceKeeper {
    /// The cursor is noted before the first row is read, and what changed since is applied after the last; so whatever
    /// happens meanwhile is seen here or by [`Self::follow`]. `false` where Redis lost its data while it was at it, or
    /// somebody else is at some of them.
    pub(super) async fn try_build(&self, lacking: BTreeSet<u32>) -> Result<bool> {
        let token = random_token();
        self.under.lock().unwrap_or_else(PoisonError::into_inner).insert(token.clone());
        let built = Box::pin(self.begin_and_build(lacking, &token)).await;
        let given_up = self.give_up_under(&token).await;
        let built = built?;
        given_up?;
        Ok(built)
    }

    async fn begin_and_build(&self, lacking: BTreeSet<u32>, token: &str) -> Result<bool> {
        let (mut ours, mut theirs) = (BTreeSet::new(), Vec::new());
        for shard in lacking {
            if self.live.begin_fence(shard, token).await? {
                ours.insert(shard);
            } else {
                theirs.push(shard);
            }
        }
        let site = Site { token: token.to_owned(), renewed: Instant::now(), shards: ours };
        if !site.shards.is_empty() {
            if !Box::pin(self.build_under(site)).await? {
                return Ok(false);
            }
            self.miss();
        }
        // What somebody else builds serves as well.
        self.wait_for_fences(&theirs).await
    }

    async fn build_under(&self, mut site: Site) -> Result<bool> {
        let shards = site.shards.clone();
        let (former, hold) = self.what_was_there(&shards).await?;
        let cursor = self.store.change_cursor().await?;
        let (mut blocked, mut after) = (0, 0);
        loop {
            let page = self.store.blocked_after(after, CHUNK).await?;
            let Some(last) = page.last() else { break };
            after = *last;
            let page = self.within(page, &shards);
            blocked += page.len();
            self.tell(&page).await?;
            if !self.keep(&mut site).await? {
                return Ok(false);
            }
        }
        // Accounts that are gone are on no page; the log since the former fence names them.
        for former in former {
            let changes = self.store.account_changes(&ChangeCursor(former)).await?;
            self.tell(&self.within(changes.users, &shards)).await?;
        }
        for shard in &shards {
            if !self.tell_of_the_allowed(*shard, &mut site).await? {
                return Ok(false);
            }
        }
        // Thousands may have ended; done in one go, the building would lapse meanwhile, and never come to its end.
        let ended = self.store.sessions_ended_since(self.tokens_may_live_since(&shards).await?).await?;
        for chunk in self.sessions_within(ended, &shards).chunks(ENDED_AT_ONCE) {
            self.live.end_again(chunk).await?;
            if !self.keep(&mut site).await? {
                return Ok(false);
            }
        }
        let changes = self.store.account_changes(&cursor).await?;
        self.tell(&self.within(changes.users, &shards)).await?;
        for shard in &shards {
            if !self.live.raise_fence(*shard, &changes.cursor.0, &site.token, hold).await? {
                return Ok(false);
            }
        }
        tracing::info!(blocked, shards = shards.len(), "the fence stands");
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
        let shards: Vec<u32> = site.shards.iter().copied().collect();
        Ok(self.live.renew_fence(&shards, &site.token).await?)
    }

    /// Where these shards' fences stand or stood, each place once; and for how long no deadline may be claimed: for a TTL
    /// where Redis is known to have held later data than it does now.
    async fn what_was_there(&self, shards: &BTreeSet<u32>) -> Result<(HashSet<String>, Duration)> {
        let (mut cursors, mut lost) = (HashSet::new(), false);
        for shard in shards {
            let fence = self.live.fence(*shard).await?;
            lost |= self.live.knows_of_later_data(*shard, &fence);
            lost |= self.store.newest_transition(*shard).await?.is_some_and(|at| at > fence.newest);
            cursors.extend(fence.cursor.or(fence.former.map(|former| former.cursor)));
        }
        Ok((cursors, if lost { self.live.ttl() } else { Duration::ZERO }))
    }

    /// Waits until nobody builds these any more; whether each has a fence then.
    async fn wait_for_fences(&self, shards: &[u32]) -> Result<bool> {
        for shard in shards {
            while self.live.fence_is_being_built(*shard).await? {
                tokio::time::sleep(LOOK_AGAIN).await;
            }
            if self.live.fence(*shard).await?.cursor.is_none() {
                return Ok(false);
            }
        }
        Ok(true)
    }
}
