//! The persister: brings transitions from the stream into SQL, each exactly once (invariants 3 and 5).
//!
//! A turn: take a prefix of what SQL lacks, commit it, let go of it. Killed at any point it is done again by whoever comes
//! next, and SQL leaves out what it has. SQL away: the entries wait in the stream.

use std::time::Duration;

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
    while stopping.borrow().is_none() {
        tokio::select! {
            () = wait(context) => {}
            _ = stopping.wait_for(Option::is_some) => break,
        }
        match drain(context, &stopping).await {
            Ok(Drained { others_at_it: true, .. }) => {
                let _ = timeout(ASK_AGAIN, stopping.wait_for(Option::is_some)).await;
            }
            Ok(_) => {
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
    }
    // What the last requests brought about. What is left after it waits in the stream for whoever comes next.
    if let Err(failure) = drain(context, &stopping).await {
        tracing::warn!(%failure, "the last transitions wait in Redis for whoever comes next");
    }
}

async fn wait(context: &Context) {
    if context.live.wait_for_transitions().await.is_err() {
        sleep(RETRY).await;
    }
    sleep(GATHER).await;
}

/// Writes all that SQL lacks; for the command line. Another persister's turn is waited for, as it may be that of a process
/// that was killed: it counts for 3 s, and no more turns are waited out than fit into twice that.
pub async fn drain_all(context: &Context) -> anyhow::Result<Drained> {
    let (_never, going_on) = watch::channel(None);
    let mut all = drain(context, &going_on).await?;
    for _ in 0..6 {
        if !all.others_at_it {
            break;
        }
        sleep(ASK_AGAIN).await;
        let more = drain(context, &going_on).await?;
        all.transitions += more.transitions;
        all.recorded += more.recorded;
        all.others_at_it = more.others_at_it;
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

/// Turn after turn until SQL lacks nothing, or there is no time for another.
async fn drain(context: &Context, stopping: &Stopping) -> Result<Drained, Failure> {
    let mut drained = Drained::default();
    for shard in context.live.shards() {
        let mut ahead = None;
        while stopping.borrow().is_none_or(|until| Instant::now() < until) {
            let taken = match ahead.take() {
                Some(taken) => taken,
                None => take_batch(context, shard, None).await?,
            };
            let Some(work) = taken else {
                drained.others_at_it = true;
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
                tracing::warn!(
                    count = work.unreadable.len(),
                    "the stream held entries that are no transitions"
                );
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
    }
    Ok(drained)
}
