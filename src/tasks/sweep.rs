//! The sweeper: makes offline punctual (invariant 4).
//!
//! Redis publishes an expiry when it gets round to deleting the key, which with a hundred thousand others may be minutes
//! later. The live set knows each deadline; the sweeper sleeps until the next one, and claims what has passed.

use std::time::Duration;

use tokio::time::{Instant, timeout};

use super::clock_watch::ClockWatch;
use super::{Context, SweepNow};
use crate::live::{LiveError, LiveSet};
use crate::model::Millis;
use crate::presence::Trouble;

/// Deadlines claimed in one call: some 5 ms of Redis's time.
const CHUNK: u32 = 500;
/// Between two looks, so that a busy second costs twenty-five calls and not thousands; half of it is the median wait.
const PAUSE: Duration = Duration::from_millis(40);
/// The longest sleep: a deadline can come nearer without a word, where a session ends and leaves an older one.
const NAP: Duration = Duration::from_millis(500);

/// What a sweep found and did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Swept {
    /// Deadlines that had passed.
    pub passed: u64,
    /// Those that this sweep claimed; the others went to another one.
    pub claimed: u64,
    /// Members of the live set that were no user ids, and were dropped.
    pub strays: u64,
    /// Redis's time of the last look.
    pub now: Millis,
    /// Whether some deadline is later than a heartbeat of now could make it.
    pub ahead: bool,
    /// Whether a shard's fence does not stand: Redis was restarted or has lost its data, and nothing was claimed.
    pub unfenced: bool,
}

pub(super) async fn run(context: &Context, shard: u32, now: &SweepNow) {
    static TROUBLE: Trouble = Trouble::new("the sweeper cannot reach Redis; deadlines wait");
    let mut trouble = TROUBLE.share();
    let mut clock = ClockWatch::new();
    // Many users may have to be brought back; deadlines do not wait for it.
    let mut bringing_back = None;
    loop {
        let sent = Instant::now();
        let sleep = match look(&context.live, shard).await {
            Ok((swept, next)) => {
                trouble.over();
                clock.note(swept.now, sent, Instant::now());
                if swept.unfenced {
                    clock.suspect();
                    // Redis has forgotten something, whether or not the connection told of it.
                    context.presence.redis_has_forgotten();
                } else if swept.ahead && bringing_back.is_none() && clock.take() {
                    bringing_back = Some(Box::pin(bring_back(&context.live, shard, swept.now)));
                }
                context.counts.claimed_by_sweeper(swept.claimed);
                next
            }
            Err(error) => {
                trouble.note(&error);
                NAP
            }
        };
        let brought_back = async {
            match bringing_back.as_mut() {
                Some(walk) => walk.await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = timeout(sleep, now.notified()) => {}
            is_done = brought_back => {
                bringing_back = None;
                if !is_done {
                    clock.suspect();
                }
            }
        }
    }
}

/// Brings users back whose heartbeats lie ahead of Redis's clock, which was ahead for a while and has been set right. Whether
/// all of them were looked at.
async fn bring_back(live: &LiveSet, shard: u32, now: Millis) -> bool {
    match live.bring_back_from_ahead(shard, now).await {
        Ok(users) => {
            if users > 0 {
                tracing::warn!(
                    users,
                    shard,
                    "Redis's clock was set back: heartbeats from ahead count as of now"
                );
            }
            true
        }
        Err(error) => {
            tracing::debug!(%error, "deadlines that lie ahead could not be brought back");
            false
        }
    }
}

/// Claims all that has passed in every shard.
pub async fn sweep_once(live: &LiveSet) -> Result<Swept, LiveError> {
    let mut swept = Swept::default();
    for shard in live.shards() {
        loop {
            let (found, next) = look(live, shard).await?;
            swept.passed += found.passed;
            swept.claimed += found.claimed;
            swept.strays += found.strays;
            swept.unfenced |= found.unfenced;
            if !next.is_zero() {
                break;
            }
        }
    }
    Ok(swept)
}

/// Claims what has passed, a chunk at most; returns how long to sleep then, zero where there is more.
async fn look(live: &LiveSet, shard: u32) -> Result<(Swept, Duration), LiveError> {
    let due = live.due(shard, CHUNK).await?;
    let mut swept = Swept {
        passed: due.passed.len() as u64,
        unfenced: !due.fenced,
        now: due.now,
        ahead: due.is_ahead,
        ..Swept::default()
    };
    if !due.strays.is_empty() {
        tracing::warn!(
            count = due.strays.len(),
            first = due.strays[0],
            "the live set held members that are no user ids"
        );
        live.drop_strays(shard, &due.strays).await?;
        swept.strays = due.strays.len() as u64;
    }
    if !due.fenced || !due.held.is_zero() {
        // What has passed may have been overtaken by heartbeats that Redis has lost.
        return Ok((swept, if due.fenced { due.held.clamp(PAUSE, NAP) } else { NAP }));
    }
    if !due.passed.is_empty() {
        let users: Vec<_> = due.passed.iter().map(|(user, _)| *user).collect();
        swept.claimed = live.claim(shard, &users).await?;
    }
    let sleep = match due.next_in {
        Some(more) if more.is_zero() => more,
        Some(next) => next.saturating_add(Duration::from_millis(1)).clamp(PAUSE, NAP),
        None => NAP,
    };
    Ok((swept, sleep))
}
