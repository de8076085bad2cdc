//! The group commit: what heartbeats wait while a call is under way go out together in the next one.
//!
//! One queue a shard, one call in flight a queue: an idle service adds no wait, a busy one shares its round trips. A queue
//! is bounded; beyond it a heartbeat is refused, never piled up. Keeps invariant 2: no SQL here.

use std::sync::Arc;

use tokio::sync::{Semaphore, mpsc, oneshot};

use super::fence::FenceKeeper;
use super::{Beat, PresenceError};
use crate::live::{Heartbeat, HeartbeatOutcome, LiveSet};
use crate::metrics::Histogram;
use crate::model::Millis;

/// Heartbeats in one call: about 1 ms of Redis's time.
const MAX_BATCH: usize = 256;
/// Heartbeats that may wait for one shard: about 150 ms of work.
const QUEUE: usize = 32_768;
/// Batches that may wait for a fence at once; beyond that the answer is 503.
const BEHIND_A_FENCE: usize = 64;

type Answer = Result<Beat, PresenceError>;

struct Waiting {
    beat: Heartbeat,
    answer: oneshot::Sender<Answer>,
}

/// The queues; dropping the last clone lets the workers finish what waits and end.
pub(super) struct Batcher {
    live: LiveSet,
    queues: Vec<mpsc::Sender<Waiting>>,
}

impl Batcher {
    pub(super) fn start(live: &LiveSet, fence: &FenceKeeper, batch_sizes: &Histogram) -> Self {
        let queues = live.shards().map(|shard| {
            let (queue, waiting) = mpsc::channel(QUEUE);
            tokio::spawn(work(shard, live.clone(), fence.clone(), waiting, batch_sizes.clone()));
            queue
        });
        Self { live: live.clone(), queues: queues.collect() }
    }

    /// Returns when a worker has died: its end of the queue is gone.
    pub(super) async fn worker_died(&self) {
        futures_util::future::select_all(self.queues.iter().map(|queue| Box::pin(queue.closed()))).await;
    }

    /// How many heartbeats wait for their turn.
    pub(super) fn waiting(&self) -> usize {
        self.queues.iter().map(|queue| queue.max_capacity() - queue.capacity()).sum()
    }

    /// Hands a heartbeat in and waits for its outcome.
    pub(super) async fn submit(&self, beat: Heartbeat) -> Answer {
        let queue = &self.queues[self.live.shard_of(beat.who.user) as usize];
        let (answer, outcome) = oneshot::channel();
        queue.try_send(Waiting { beat, answer }).map_err(|_| PresenceError::Overloaded)?;
        // Dropped unanswered where too many wait for a fence, or the service ends.
        outcome.await.unwrap_or(Err(PresenceError::Overloaded))
    }
}

async fn work(
    shard: u32,
    live: LiveSet,
    fence: FenceKeeper,
    mut waiting: mpsc::Receiver<Waiting>,
    batch_sizes: Histogram,
) {
    let places = Arc::new(Semaphore::new(BEHIND_A_FENCE));
    let (mut beats, mut answers) = (Vec::with_capacity(MAX_BATCH), Vec::with_capacity(MAX_BATCH));
    let mut arrived = Vec::with_capacity(MAX_BATCH);
    while waiting.recv_many(&mut arrived, MAX_BATCH).await > 0 {
        super::drill::drill("group_commit");
        for Waiting { beat, answer } in arrived.drain(..) {
            // A client that has given up needs no call.
            if !answer.is_closed() {
                beats.push(beat);
                answers.push(answer);
            }
        }
        if beats.is_empty() {
            continue;
        }
        batch_sizes.observe(f64::from(u16::try_from(beats.len()).unwrap_or(u16::MAX)));
        let reply = live.heartbeat(shard, &beats).await;
        match reply {
            Ok((now, outcomes)) => {
                let mut unfenced = Vec::new();
                for ((beat, answer), outcome) in beats.drain(..).zip(answers.drain(..)).zip(outcomes) {
                    if outcome == HeartbeatOutcome::Unfenced {
                        unfenced.push((beat, answer));
                    } else {
                        let _ = answer.send(settle(now, outcome));
                    }
                }
                if !unfenced.is_empty()
                    && let Ok(place) = places.clone().try_acquire_owned()
                {
                    let again =
                        Box::pin(try_again_behind_a_fence(shard, live.clone(), fence.clone(), unfenced));
                    tokio::spawn(async move {
                        again.await;
                        drop(place);
                    });
                }
            }
            Err(error) => {
                beats.clear();
                for answer in answers.drain(..) {
                    let _ = answer.send(Err(PresenceError::from(&error)));
                }
            }
        }
    }
}

/// Redis has lost its data: nobody comes online before the fence stands again. These wait for it, and no others.
async fn try_again_behind_a_fence(
    shard: u32,
    live: LiveSet,
    fence: FenceKeeper,
    unfenced: Vec<(Heartbeat, oneshot::Sender<Answer>)>,
) {
    let stands = fence.stand(shard).await;
    let still_there = unfenced.into_iter().filter(|(_, answer)| !answer.is_closed());
    let (beats, answers): (Vec<_>, Vec<_>) = still_there.unzip();
    let reply = match stands {
        Ok(()) if beats.is_empty() => return,
        Ok(()) => live.heartbeat(shard, &beats).await.map_err(PresenceError::from),
        Err(error) => Err(error),
    };
    match reply {
        Ok((now, outcomes)) => {
            for (answer, outcome) in answers.into_iter().zip(outcomes) {
                let _ = answer.send(settle(now, outcome));
            }
        }
        Err(error) => {
            for answer in answers {
                let _ = answer.send(Err(match &error {
                    PresenceError::RedisRefuses(reason) => PresenceError::RedisRefuses(reason.clone()),
                    other => PresenceError::RedisUnavailable(other.to_string()),
                }));
            }
        }
    }
}

fn settle(now: Millis, outcome: HeartbeatOutcome) -> Answer {
    match outcome {
        HeartbeatOutcome::Present(status) => Ok(Beat { status, last_seen: now }),
        HeartbeatOutcome::Blocked => Err(PresenceError::Blocked),
        HeartbeatOutcome::SessionEnded => Err(PresenceError::SessionEnded),
        HeartbeatOutcome::Unfenced => {
            Err(PresenceError::RedisUnavailable("it has lost its data and is being prepared".into()))
        }
    }
}
