//! Compares presence keys with the live set, at a steady pace: a key that was deleted by hand, or evicted, is made anew, so that
//! reads agree with the live set, which says that its user is present. The user's own next heartbeat does the same.
//!
//! One process of many does it at a time. A pass over 100,000 users takes some 10 s.

use std::collections::HashSet;
use std::time::Duration;

use tokio::time::sleep;

use super::Context;
use crate::live::{LiveError, Mend, Mended};
use crate::model::{OnlineStatus, UserId};
use crate::presence::Trouble;

/// Users compared in one call.
const CHUNK: u32 = 1_000;
/// Between two calls of one pass.
const PACE: Duration = Duration::from_millis(100);
/// Between two passes.
const ROUND: Duration = Duration::from_secs(2);
/// How long a turn lasts; then any process may have the next.
const TURN: Duration = Duration::from_secs(5);

pub(super) async fn run(context: &Context) {
    static TROUBLE: Trouble = Trouble::new("presence keys cannot be compared with the live set for now");
    loop {
        for shard in context.live.shards() {
            match pass(context, shard).await {
                Ok(()) => TROUBLE.over(),
                Err(error) => TROUBLE.note(&error),
            }
        }
        sleep(ROUND).await;
    }
}

/// Makes the presence keys anew that are missing, with the status that SQL's mirror has; returns how many.
async fn make_anew(context: &Context, shard: u32, users: &[UserId]) -> Result<usize, LiveError> {
    // Without SQL a user counts as online until the next heartbeat.
    let accounts = context.store.accounts(users).await.unwrap_or_default();
    let away: HashSet<UserId> = accounts
        .into_iter()
        .filter(|account| account.mirror == OnlineStatus::Away)
        .map(|account| account.id)
        .collect();
    let fallback = |user| if away.contains(&user) { OnlineStatus::Away } else { OnlineStatus::Online };
    let mends: Vec<_> =
        users.iter().map(|user| Mend { user: *user, fallback: fallback(*user), tell: false }).collect();
    let outcomes = context.live.mend(shard, &mends).await?;
    Ok(outcomes.iter().filter(|outcome| **outcome == Mended::KeyMade).count())
}

/// One pass over a shard, as long as this process has the turn.
async fn pass(context: &Context, shard: u32) -> Result<(), LiveError> {
    let mut place = None;
    while context.live.verify_turn(shard, TURN).await? {
        let page = context.live.seen(shard, place, CHUNK).await?;
        let users = page.present();
        if !context.live.all_have_keys(shard, &users).await? {
            let made = make_anew(context, shard, &users).await?;
            if made > 0 {
                tracing::warn!(
                    made,
                    shard,
                    "presence keys were missing (deleted by hand, or evicted) and were made anew"
                );
            }
        }
        if page.next.is_none() {
            return Ok(());
        }
        place = page.next;
        sleep(PACE).await;
    }
    Ok(())
}
