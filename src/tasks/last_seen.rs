//! Write-behind of `last_seen`: those who stay online, in batches, at a steady pace, by one process at a time.
//!
//! The live set holds every last heartbeat already (the deadline less the TTL), so nothing is kept in memory for it.

use std::time::Duration;

use tokio::time::sleep;

use super::Context;
use crate::presence::{PresenceError, Trouble};

const CHUNK: u32 = 1_000;

pub(super) async fn run(context: &Context) {
    static TROUBLE: Trouble =
        Trouble::new("last_seen cannot be written behind for now; it is caught up later");
    loop {
        sleep(context.last_seen_flush).await;
        let mut all_done = true;
        for shard in context.live.shards() {
            if let Err(error) = flush(context, shard).await {
                TROUBLE.note(&error);
                all_done = false;
            }
        }
        if all_done {
            TROUBLE.over();
        }
    }
}

async fn flush(context: &Context, shard: u32) -> Result<(), PresenceError> {
    // A little less than the pace, so that whoever had the last turn finds it free again.
    let turn = context.last_seen_flush.mul_f64(0.9).max(Duration::from_millis(1));
    if !context.live.flush_turn(shard, turn).await? {
        return Ok(());
    }
    let mut place = None;
    loop {
        let page = context.live.seen(shard, place, CHUNK).await?;
        if !page.users.is_empty() {
            context.store.touch_last_seen(&page.users, page.now).await?;
        }
        if page.next.is_none() {
            return Ok(());
        }
        place = page.next;
    }
}
