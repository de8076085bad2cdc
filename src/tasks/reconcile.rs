//! The reconciler: what a Redis that was away, restarted, or lost its data leaves to put right.
//!
//! At the start and after each reconnection it makes sure of the fence: a server that began a new life (the epoch) has it
//! taken over or built anew at once. When that server has been heard for a whole TTL, those whom SQL still calls present and
//! who have not come back are declared offline, no earlier (invariant 9). A Redis that only hung has lost nothing, but what it
//! was told meanwhile may not have arrived: the fence is brought up to date, with the sessions that ended.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::Context;
use crate::live::Mend;
use crate::model::{Millis, OnlineStatus, Presence, UserId};
use crate::presence::{PresenceError, Trouble};

const CHUNK: u32 = 1_000;
/// Between two attempts while something is away: the first, and the longest.
const RETRY: Duration = Duration::from_millis(100);
const RETRY_AT_LAST: Duration = Duration::from_secs(2);
const PAUSE: Duration = Duration::from_secs(1);
/// A look for its own sake, should anything ever go unnoticed.
const ROUND: Duration = Duration::from_hours(1);

/// What a reconciliation found and did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Reconciled {
    /// Users whom SQL calls present.
    pub present_in_sql: u64,
    /// Those of whom the live set knew nothing, now declared offline.
    pub declared: u64,
    /// How long some shard's Redis must still be heard before anybody of it can be missed; of that shard nothing was declared.
    pub too_early: Option<Duration>,
}

pub(super) async fn run(context: &Context) {
    static TROUBLE: Trouble = Trouble::new("the reconciler must wait for Redis or SQL");
    let mut reconnections = context.live.reconnections();
    // Shards whose users have not been compared with SQL since either may have lost something: kept over every attempt. At
    // the start it is all of them, for SQL may have been restored from a dump.
    let mut doubtful: BTreeSet<u32> = context.live.shards().collect();
    let mut retry = RETRY;
    loop {
        context.live.connected().await;
        let next = match settle(context, &mut doubtful).await {
            Ok(next) => {
                TROUBLE.over();
                retry = RETRY;
                next
            }
            Err(error) => {
                TROUBLE.note(&error);
                sleep(RETRY).await;
                // One primary of several may be away for long; its return is news.
                if timeout(retry, reconnections.next()).await.is_ok() {
                    retry = RETRY;
                } else {
                    retry = (retry * 2).min(RETRY_AT_LAST);
                }
                continue;
            }
        };
        let due = Instant::now() + next;
        loop {
            tokio::select! {
                () = reconnections.next() => break,
                () = context.presence.loss_noticed() => break,
                () = sleep_until(due) => {
                    if next >= ROUND {
                        doubtful.extend(context.live.shards());
                    }
                    break;
                }
                () = context.presence.answers_again() => {}
                () = context.presence.sql_may_be_replaced() => {
                    doubtful.extend(context.live.shards());
                    break;
                }
            }
            if let Err(error) = context.presence.restore_fence().await {
                TROUBLE.note(&error);
                break;
            }
            // Not more often than this, however often Redis comes and goes.
            sleep(PAUSE).await;
        }
    }
}

/// Returns when to look again. Shards that cannot be asked hold up no other; that there are some is told when all others are
/// done.
async fn settle(context: &Context, doubtful: &mut BTreeSet<u32>) -> Result<Duration, PresenceError> {
    context.live.confirm_installation().await?;
    context.live.look_for_eviction().await;
    context.presence.keep_ids_from_coming_again().await?;
    let mut outcome = Ok(());
    let epochs = context.live.shards().map(|shard| context.live.epoch(shard));
    for (shard, epoch) in context.live.shards().zip(join_all(epochs).await) {
        // From now on this server is being heard.
        match epoch {
            Ok(epoch) if epoch.is_new => drop(doubtful.insert(shard)),
            Ok(_) => {}
            Err(error) => outcome = Err(error.into()),
        }
    }
    outcome = outcome.and(context.presence.restore_fence().await);
    let damaged = context.presence.take_damaged();
    if !damaged.is_empty() {
        doubtful.extend(&damaged);
        outcome = outcome.and(restore(context, &damaged).await);
    }
    let held = join_all(context.live.shards().map(|shard| context.live.due(shard, 1))).await;
    for (shard, due) in context.live.shards().zip(held) {
        // Every instance does it where data are known to be lost.
        let done = match due {
            Ok(due) if doubtful.contains(&shard) || !due.held.is_zero() => affirm(context, shard).await,
            Ok(_) => continue,
            Err(error) => Err(error.into()),
        };
        if done.is_ok() {
            doubtful.remove(&shard);
        }
        outcome = outcome.and(done);
    }
    compare_blocklist(context).await;
    outcome = outcome.and(context.live.forget_the_gone().await.map_err(PresenceError::from));
    let reconciled = reconcile_once(context).await;
    outcome?;
    let reconciled = reconciled?;
    if reconciled.declared > 0 {
        tracing::warn!(count = reconciled.declared, "users whom Redis no longer knew were declared offline");
    }
    Ok(reconciled.too_early.unwrap_or(ROUND))
}

/// Compares the blocklist with SQL; where that fails the log of account changes is followed all the same, and the next round
/// compares again.
async fn compare_blocklist(context: &Context) {
    if let Err(error) = context.presence.keep_ids_from_coming_again().await {
        tracing::debug!(%error, "the largest account id could not be compared");
    }
    match context.presence.compare_blocklist().await {
        Ok(0) => {}
        Ok(accounts) => {
            tracing::warn!(accounts, "the blocklist in Redis differed from SQL and was corrected");
        }
        Err(error) => tracing::debug!(%error, "the blocklist could not be compared with SQL"),
    }
}

/// One pass over those who are present. A Redis that came back with older data may call a user online who has left or gone
/// away since, as SQL knows, and who stays online by a heartbeat that changes nothing; a SQL that was restored from a dump may
/// not know of the user's return. SQL is told again. What is on its way to SQL meanwhile is told twice, and recorded once.
async fn affirm(context: &Context, shard: u32) -> Result<(), PresenceError> {
    let mut place = None;
    loop {
        let page = context.live.seen(shard, place, CHUNK).await?;
        let ids = page.present();
        let accounts = context.store.accounts(&ids).await?;
        let accounts: HashMap<UserId, OnlineStatus> =
            accounts.into_iter().map(|account| (account.id, account.mirror)).collect();
        let presences = context.live.read(&ids).await?;
        let differs = |user: &UserId, presence: Option<Presence>| match (accounts.get(user), presence) {
            (Some(mirror), Some(presence)) => *mirror != presence.status,
            _ => false,
        };
        let other_in_sql: Vec<UserId> = ids
            .into_iter()
            .zip(presences)
            .filter(|(user, presence)| differs(user, *presence))
            .map(|(user, _)| user)
            .collect();
        if !other_in_sql.is_empty() {
            context.live.affirm(shard, &other_in_sql).await?;
        }
        if page.next.is_none() {
            return Ok(());
        }
        place = page.next;
    }
}

/// One pass over those whom SQL calls present, for shards that lost single keys: a presence key whose user is not in the live set
/// puts the user back, and a user of the live set whose key is gone has it made anew.
async fn restore(context: &Context, shards: &BTreeSet<u32>) -> Result<(), PresenceError> {
    let mut after = 0;
    loop {
        let page = context.store.present_in_mirror_after(after, CHUNK).await?;
        let Some(last) = page.last() else { return Ok(()) };
        after = last.user;
        let mut by_shard: HashMap<u32, Vec<Mend>> = HashMap::new();
        for row in page {
            let shard = context.live.shard_of(row.user);
            if shards.contains(&shard) {
                let mend = Mend { user: row.user, fallback: row.status, tell: false };
                by_shard.entry(shard).or_default().push(mend);
            }
        }
        for (shard, users) in by_shard {
            context.live.mend(shard, &users).await?;
        }
    }
}

/// One pass over those whom SQL calls present. Those of shards that cannot be asked, or have not been heard for long enough,
/// are left out.
///
/// # Errors
/// Where a shard could not be asked, when all others are done.
pub async fn reconcile_once(context: &Context) -> Result<Reconciled, PresenceError> {
    let mut reconciled = Reconciled::default();
    let (mut heard, mut outcome) = (BTreeSet::new(), Ok(()));
    let epochs = context.live.shards().map(|shard| context.live.epoch(shard));
    for (shard, epoch) in context.live.shards().zip(join_all(epochs).await) {
        // A millisecond more: a heartbeat on the epoch's very first one still counts on the last.
        let heard_enough = context.live.ttl() + Duration::from_millis(2);
        match epoch.map(|epoch| heard_enough.saturating_sub(epoch.age)) {
            Ok(Duration::ZERO) => drop(heard.insert(shard)),
            Ok(wait) => reconciled.too_early = reconciled.too_early.max(Some(wait)),
            Err(error) => outcome = Err(error.into()),
        }
    }
    let mut after = 0;
    loop {
        let page = context.store.present_in_mirror_after(after, CHUNK).await?;
        let Some(last) = page.last() else { break };
        after = last.user;
        reconciled.present_in_sql += page.len() as u64;
        let mut shards: HashMap<u32, Vec<(UserId, Option<Millis>)>> = HashMap::new();
        for row in page {
            shards.entry(context.live.shard_of(row.user)).or_default().push((row.user, row.last_seen));
        }
        shards.retain(|shard, _| heard.contains(shard));
        for (shard, users) in shards {
            match context.live.reconcile(shard, &users).await {
                Ok(Some(declared)) => reconciled.declared += declared,
                // The server began yet another life meanwhile.
                Ok(None) => reconciled.too_early = Some(context.live.ttl()),
                Err(error) => outcome = Err(error.into()),
            }
        }
    }
    outcome.map(|()| reconciled)
}
