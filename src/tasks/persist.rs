//! The persister: brings transitions from the stream into SQL, each exactly once (invariants 3 and 5).
//!
//! A turn: take a prefix of what SQL lacks, commit it, let go of it. Killed at any point it is done again by whoever comes
//! next, and SQL leaves out what it has. SQL away: the entries wait in the stream.

use std::collections::HashMap;
use std::time::Duration;

use futures_util::{StreamExt, stream};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

use super::Context;
use crate::live::{LiveError, Turn, Work};
use crate::model::StreamId;
use crate::presence::Trouble;
use crate::store::StoreError;

/// Transitions in one SQL transaction, at the most: what a transaction costs beside its rows is shared by as many.
const BATCH: usize = 4_000;
/// Transitions in one call to Redis: some 5 ms of its time.
const SLICE: u32 = 500;
/// How long the first transition of a batch waits for others.
const GATHER: Duration = Duration::from_millis(20);
const RETRY: Duration = Duration::from_millis(500);
/// A turn of somebody else is looked at again after this long at the latest.
const ASK_AGAIN: Duration = Duration::from_secs(1);

/// Between two looks while somebody else has a turn, so that other shards' transitions do not wait for that one.
const OTHERS_AT_IT: Duration = Duration::from_millis(100);
/// Shards whose transitions are written at the same time.
const AT_ONCE: usize = 4;

static REDIS_TROUBLE: Trouble = Trouble::new("the persister cannot reach Redis; transitions wait there");
static SQL_TROUBLE: Trouble = Trouble::new("the persister cannot write to SQL; transitions wait in Redis");

/// What a drain wrote.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Drained {
    /// Transitions taken out of the stream.
    pub transitions: u64,
    /// History rows added.
    pub recorded: u64,
    /// Whether another persister has work in hand that was left to it.
    pub others_at_it: bool,
}

#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Live(#[from] LiveError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Until when turns are taken: for ever, or, where the process ends, until that instant.
type Stopping = watch::Receiver<Option<Instant>>;

pub(super) async fn run(context: &Context, mut stopping: Stopping) {
    tokio::select! {
        () = context.live.verified() => {}
        // Nothing of this process's database has reached Redis.
        _ = stopping.wait_for(Option::is_some) => return,
    }
    // Shards whose turn is somebody else's, until when.
    let mut theirs: HashMap<u32, Instant> = HashMap::new();
    while stopping.borrow().is_none() {
        let shards = tokio::select! {
            shards = wait(context) => shards,
            _ = stopping.wait_for(Option::is_some) => break,
        };
        theirs.retain(|_, until| *until > Instant::now());
        let ours: Vec<u32> = shards.iter().copied().filter(|shard| !theirs.contains_key(shard)).collect();
        match drain(context, &ours, &stopping).await {
            Ok(drained) => {
                let until = Instant::now() + ASK_AGAIN;
                theirs.extend(drained.theirs.into_iter().map(|shard| (shard, until)));
                REDIS_TROUBLE.over();
                SQL_TROUBLE.over();
            }
            Err(failure) => {
                match failure {
                    Failure::Live(error) => REDIS_TROUBLE.note(&error),
                    Failure::Store(error) => {
                        SQL_TROUBLE.note(&error);
                        // Only when SQL answers is another turn taken: meanwhile someone better placed can have it.
                        while context.store.ping().await.is_err() && stopping.borrow().is_none() {
                            let _ = timeout(RETRY, stopping.wait_for(Option::is_some)).await;
                        }
                    }
                }
                let _ = timeout(RETRY, stopping.wait_for(Option::is_some)).await;
            }
        }
        // What waits for somebody else's turn is there at once when it is waited for: not in a tight loop.
        if !theirs.is_empty() {
            let _ = timeout(OTHERS_AT_IT, stopping.wait_for(Option::is_some)).await;
        }
    }
    let all: Vec<u32> = context.live.shards().collect();
    // What the last requests brought about. What is left after it waits in the stream for whoever comes next.
    if let Err(failure) = drain(context, &all, &stopping).await {
        tracing::warn!(%failure, "the last transitions wait in Redis for whoever comes next");
    }
}

async fn wait(context: &Context) -> Vec<u32> {
    let shards = if let Ok(shards) = context.live.wait_for_transitions().await {
        shards
    } else {
        sleep(RETRY).await;
        context.live.shards().collect()
    };
    sleep(GATHER).await;
    shards
}

/// Writes all that SQL lacks; for the command line. Another persister's turn is waited for, as it may be that of a process
/// that was killed: it counts for 3 s, and no more turns are waited out than fit into twice that.
pub async fn drain_all(context: &Context) -> anyhow::Result<Drained> {
    let (_never, going_on) = watch::channel(None);
    let mut shards: Vec<u32> = context.live.shards().collect();
    let mut all = Drained::default();
    for turn in 0..7 {
        if turn > 0 {
            sleep(ASK_AGAIN).await;
        }
        let more = drain(context, &shards, &going_on).await?;
        all.transitions += more.transitions;
        all.recorded += more.recorded;
        all.others_at_it = !more.theirs.is_empty();
        shards = more.theirs;
        if shards.is_empty() {
            break;
        }
    }
    Ok(all)
}

/// A batch of one turn, slice by slice, so that heartbeats get through between them; `None` where it is somebody else's
/// turn.
async fn take_batch(
    context: &Context,
    shard: u32,
    after: Option<StreamId>,
) -> Result<Option<Work>, LiveError> {
    let mut batch = Work::default();
    loop {
        match context.live.take_after(shard, batch.last().or(after), SLICE).await? {
            Turn::Mine(slice) => {
                let is_last = slice.len() < SLICE as usize;
                batch.extend(slice);
                if is_last || batch.len() >= BATCH {
                    return Ok(Some(batch));
                }
            }
            // What is in hand already is a prefix all the same; written twice it is recorded once.
            Turn::Others(_) => return Ok(Some(batch).filter(|batch| !batch.is_empty())),
        }
    }
}

/// What became of some shards' streams.
#[derive(Default)]
struct Outcome {
    transitions: u64,
    recorded: u64,
    /// Shards whose turn is somebody else's.
    theirs: Vec<u32>,
}

/// Drains these shards, some at a time. One whose Redis is away keeps no other waiting: its failure is told when all are
/// done.
async fn drain(context: &Context, shards: &[u32], stopping: &Stopping) -> Result<Outcome, Failure> {
    let mut streams = stream::iter(shards.to_vec())
        .map(|shard| Box::pin(drain_shard(context, shard, stopping)))
        .buffer_unordered(AT_ONCE);
    let (mut all, mut failed) = (Outcome::default(), None);
    while let Some(outcome) = streams.next().await {
        match outcome {
            Ok(outcome) => {
                all.transitions += outcome.transitions;
                all.recorded += outcome.recorded;
                all.theirs.extend(outcome.theirs);
            }
            Err(failure @ Failure::Store(_)) => return Err(failure),
            Err(failure) => failed = Some(failure),
        }
    }
    failed.map_or(Ok(all), Err)
}

/// Turn after turn until SQL lacks nothing of a shard, or there is no time for another.
async fn drain_shard(context: &Context, shard: u32, stopping: &Stopping) -> Result<Outcome, Failure> {
    let mut drained = Outcome::default();
    let mut ahead = None;
    while stopping.borrow().is_none_or(|until| Instant::now() < until) {
        let taken = match ahead.take() {
            Some(taken) => taken,
            None => take_batch(context, shard, None).await?,
        };
        let Some(work) = taken else {
            drained.theirs.push(shard);
            break;
        };
        if work.is_empty() {
            break;
        }
        // While SQL writes a full batch the next is taken, in order after it. Should the writing fail, both are
        // pending and come again.
        let next = async {
            match work.last().filter(|_| work.len() >= BATCH) {
                Some(last) => take_batch(context, shard, Some(last)).await.map(Some),
                None => Ok(None),
            }
        };
        let (outcome, next) = tokio::join!(context.store.record(shard, &work.transitions), next);
        let outcome = outcome?;
        context.live.ack(shard, &work).await?;
        ahead = next?;
        context.counts.persisted(&work.transitions);
        drained.transitions += work.len() as u64;
        drained.recorded += outcome.recorded as u64;
        if !work.unreadable.is_empty() {
            tracing::warn!(count = work.unreadable.len(), "the stream held entries that are no transitions");
        }
        if !outcome.unknown.is_empty() {
            tracing::warn!(
                count = outcome.unknown.len(),
                first = outcome.unknown[0],
                "users of whom SQL knows nothing were present; their transitions are set aside, and they are fenced off"
            );
            if let Err(error) = context.presence.account_changed(&outcome.unknown).await {
                tracing::warn!(%error, "unknown users could not be fenced off");
            }
        }
    }
    Ok(drained)
}
