//! The building of fences from SQL: for shards whose server has lost what it had, or never had one.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::PoisonError;
use std::time::Duration;

use tokio::time::Instant;

use super::{CHUNK, FenceKeeper, Result};
use crate::live::{Loss, Verdict};
use crate::model::Millis;
use crate::presence::random_token;
use crate::store::ChangeCursor;

/// Sessions ended again between two renewals of a building.
const ENDED_AT_ONCE: usize = 4_096;
/// Between two looks at a fence that somebody else builds.
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// Between two renewals of a building that is under way; it lapses after some seconds.
const RENEW: Duration = Duration::from_millis(500);

/// How much later than the last instant that an instance knows Redis may have served, ms: the instant is renewed every 100 ms,
/// and another instance learns of it within half a second.
const SERVED_MARGIN_MS: i64 = 600;

/// What shards held before they are built anew.
#[derive(Default)]
struct Before {
    /// Where their fences stand or stood in the log of account changes.
    cursors: HashSet<String>,
    /// What each has lost.
    losses: BTreeMap<u32, Loss>,
    /// Those whose users are to be compared with SQL: which have lost data, or their live set or their stream alone.
    damaged: BTreeSet<u32>,
}

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
        let before = self.what_was_there(&shards).await?;
        // What is told to Redis below makes its data look newer than they were.
        for (shard, loss) in before.losses.iter().filter(|(_, loss)| !loss.hold.is_zero()) {
            if !self.live.note_loss(*shard, &site.token, loss).await? {
                return Ok(false);
            }
        }
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
        for former in before.cursors {
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
        for (shard, loss) in &before.losses {
            if !self.live.raise_fence(*shard, &changes.cursor.0, &site.token, loss).await? {
                return Ok(false);
            }
        }
        tracing::info!(blocked, shards = shards.len(), "the fence stands");
        if !before.damaged.is_empty() {
            self.damaged.lock().unwrap_or_else(PoisonError::into_inner).extend(&before.damaged);
        }
        if let Some(loss) = before.losses.values().find(|loss| !loss.hold.is_zero()) {
            tracing::warn!(
                seconds = loss.hold.as_secs_f32(),
                "Redis has lost data: no user is declared offline before all users had time to send a heartbeat"
            );
        } else if !before.damaged.is_empty() {
            tracing::warn!(
                shards = before.damaged.len(),
                "Redis has lost single keys (evicted, or deleted by hand): present users are compared with SQL"
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

    /// What these shards held before. What befell a server has befallen all of its shards: where one is known to have held
    /// later data than it does now, deadlines of all wait for a TTL.
    async fn what_was_there(&self, shards: &BTreeSet<u32>) -> Result<Before> {
        let mut before = Before::default();
        let mut lost = false;
        let newest_in_sql = self.store.newest_transition_id().await?;
        for shard in shards {
            let fence = self.live.fence(*shard).await?;
            let in_sql = self.store.newest_transition(*shard).await?;
            lost |= self.live.knows_of_later_data(*shard, &fence);
            lost |= in_sql.is_some_and(|at| at > fence.heard.max(fence.newest_entry));
            // Another builder found the loss and did not finish.
            lost |= fence.is_on_hold;
            if fence.is_damaged {
                before.damaged.insert(*shard);
            }
            let known = self.live.last_heard(*shard).max(fence.heard).max(in_sql.unwrap_or(Millis(0)));
            let before_it =
                Loss { hold: Duration::ZERO, served_until: known.plus(SERVED_MARGIN_MS), newest_in_sql };
            before.losses.insert(*shard, before_it);
            before.cursors.extend(fence.cursor.or(fence.former.map(|former| former.cursor)));
        }
        for (shard, loss) in &mut before.losses {
            if lost {
                loss.hold = self.live.ttl();
                before.damaged.insert(*shard);
            } else if !before.damaged.contains(shard) {
                loss.served_until = Millis(0);
            }
        }
        Ok(before)
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
