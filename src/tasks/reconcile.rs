//! The reconciler: what a Redis that was away, restarted, or lost its data leaves to put right.
//!
//! At the start and after each reconnection it makes sure of the fence: a server that began a new life (the epoch) has it
//! taken over or built anew at once. When that server has been heard for a whole TTL, those whom SQL still calls present and
//! who have not come back are declared offline, no earlier (invariant 9). A Redis that only hung has lost nothing, but what it
//! was told meanwhile may not have arrived: the fence is brought up to date, with the sessions that ended.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use tokio::time::{Instant, sleep, sleep_until};

use super::Context;
use crate::model::{Millis, UserId};
use crate::presence::{PresenceError, Trouble};

const CHUNK: u32 = 1_000;
const RETRY: Duration = Duration::from_millis(100);
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
    /// How long Redis must still be heard before anybody can be missed; nothing was declared then.
    pub too_early: Option<Duration>,
}

pub(super) async fn run(context: &Context) {
    static TROUBLE: Trouble = Trouble::new("the reconciler must wait for Redis or SQL");
    let mut reconnections = context.live.reconnections();
    // Shards whose new life began under our eyes and whose users have not been looked at yet: kept over every attempt.
    let mut doubtful = BTreeSet::new();
    loop {
        context.live.connected().await;
        let next = match settle(context, &mut doubtful).await {
            Ok(next) => {
                TROUBLE.over();
                next
            }
            Err(error) => {
                TROUBLE.note(&error);
                sleep(RETRY).await;
                continue;
            }
        };
        let due = Instant::now() + next;
        loop {
            tokio::select! {
                () = reconnections.next() => break,
                () = context.presence.loss_noticed() => break,
                () = sleep_until(due) => break,
                () = context.presence.answers_again() => {}
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

/// Returns when to look again.
async fn settle(context: &Context, doubtful: &mut BTreeSet<u32>) -> Result<Duration, PresenceError> {
    for shard in context.live.shards() {
        // From now on this server is being heard.
        if context.live.epoch(shard).await?.is_new {
            doubtful.insert(shard);
        }
    }
    context.presence.restore_fence().await?;
    for shard in context.live.shards() {
        // Done by whoever began the epoch, and by everyone where data are known to be lost.
        if doubtful.contains(&shard) || !context.live.due(shard, 1).await?.held.is_zero() {
            affirm(context, shard).await?;
            doubtful.remove(&shard);
        }
    }
    context.live.forget_the_gone().await?;
    let reconciled = reconcile_once(context).await?;
    if let Some(wait) = reconciled.too_early {
        return Ok(wait);
    }
    if reconciled.declared > 0 {
        tracing::warn!(count = reconciled.declared, "users whom Redis no longer knew were declared offline");
    }
    Ok(ROUND)
}

/// One pass over those who are present: a server that came back with older data may call someone online who has left
/// since, as SQL knows, and who stays online by a heartbeat that changes nothing. SQL is told again.
async fn affirm(context: &Context, shard: u32) -> Result<(), PresenceError> {
    let mut place = None;
    loop {
        let (present, next) = context.live.seen(shard, place, CHUNK).await?;
        let ids: Vec<UserId> = present.into_iter().map(|(user, _)| user).collect();
        let accounts = context.store.accounts(&ids).await?;
        let offline = accounts.iter().filter(|account| !account.mirror.is_online()).map(|account| account.id);
        let unknown_to_sql: Vec<UserId> = offline.collect();
        if !unknown_to_sql.is_empty() {
            context.live.affirm(shard, &unknown_to_sql).await?;
        }
        if next.is_none() {
            return Ok(());
        }
        place = next;
    }
}

/// One pass over those whom SQL calls present.
pub async fn reconcile_once(context: &Context) -> Result<Reconciled, PresenceError> {
    let mut reconciled = Reconciled::default();
    for shard in context.live.shards() {
        let epoch = context.live.epoch(shard).await?;
        // A millisecond more: a heartbeat on the epoch's very first one still counts on the last.
        let heard_enough = context.live.ttl() + Duration::from_millis(2);
        if let Some(wait) = heard_enough.checked_sub(epoch.age).filter(|wait| !wait.is_zero()) {
            reconciled.too_early = reconciled.too_early.max(Some(wait));
        }
    }
    let mut after = 0;
    loop {
        let page = context.store.present_in_mirror_after(after, CHUNK).await?;
        let Some(last) = page.last() else { break };
        after = last.user;
        reconciled.present_in_sql += page.len() as u64;
        if reconciled.too_early.is_some() {
            continue;
        }
        let mut shards: HashMap<u32, Vec<(UserId, Option<Millis>)>> = HashMap::new();
        for row in page {
            shards.entry(context.live.shard_of(row.user)).or_default().push((row.user, row.last_seen));
        }
        for (shard, users) in shards {
            match context.live.reconcile(shard, &users).await? {
                Some(declared) => reconciled.declared += declared,
                // The server began yet another life meanwhile.
                None => reconciled.too_early = Some(context.live.ttl()),
            }
        }
    }
    Ok(reconciled)
}
