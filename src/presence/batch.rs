//! The group commit: what heartbeats wait while a call is under way go out together in the next one.
//!
//! One queue a shard, one call in flight a queue: an idle service adds no wait, a busy one shares its round trips, and lets
//! whoever is about to come along come along. A queue is bounded; beyond it a heartbeat is refused, never piled up. Keeps
//! invariant 2: no SQL here.

use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::{Instant, timeout_at};

use super::fence::FenceKeeper;
use super::{Beat, HEARTBEAT_PATIENCE, PresenceError};
use crate::live::{Heartbeat, HeartbeatOutcome, LiveSet};
use crate::metrics::Histogram;
use crate::model::Millis;

/// Heartbeats in one call: some 1.5 ms of Redis's time.
const MAX_BATCH: usize = 256;
/// For how long a batch may grow once there is something in it. It stops as soon as nobody comes along, which in an idle
/// service is at once.
const GROWS: Duration = Duration::from_millis(1);
/// Heartbeats that may wait for one shard: some 200 ms of work.
const QUEUE: usize = 32_768;
/// Whoever has waited so long behind a slow call gets 503 instead of another: a call may take 1.5 s, and API.md allows 2 s in
/// all. So no heartbeat needs a timer of its own.
const MAX_WAIT: Duration = Duration::from_millis(500);
/// Batches that may wait for a fence at once; beyond that the answer is 503.
const BEHIND_A_FENCE: usize = 64;

type Answer = Result<Beat, PresenceError>;

struct Waiting {
    beat: Heartbeat,
    answer: oneshot::Sender<Answer>,
    since: Instant,
}

/// A batch and who waits for it, in the same order.
#[derive(Default)]
struct Batch {
    beats: Vec<Heartbeat>,
    answers: Vec<oneshot::Sender<Answer>>,
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
        queue
            .try_send(Waiting { beat, answer, since: Instant::now() })
            .map_err(|_| PresenceError::Overloaded)?;
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
    let mut arrived = Vec::with_capacity(MAX_BATCH);
    let mut settled = Settled::default();
    loop {
        // The fewer wait, the more the next call should be shared by those who are answered now.
        if waiting.len() < MAX_BATCH {
            settled.answer();
        }
        if waiting.recv_many(&mut arrived, MAX_BATCH).await == 0 {
            return;
        }
        grow(&mut arrived, &mut waiting).await;
        super::drill::drill("group_commit");
        let batch = Batch::of(arrived.drain(..));
        if batch.beats.is_empty() {
            continue;
        }
        batch_sizes.observe(f64::from(u16::try_from(batch.beats.len()).unwrap_or(u16::MAX)));
        let unfenced = batch.commit(shard, &live, &mut settled).await;
        if !unfenced.beats.is_empty()
            && let Ok(place) = places.clone().try_acquire_owned()
        {
            let again = Box::pin(unfenced.commit_behind_a_fence(shard, live.clone(), fence.clone()));
            tokio::spawn(async move {
                again.await;
                drop(place);
            });
        }
    }
}

/// A call costs Redis and this process the same however little it holds, so those who are at the door are waited for: the
/// other tasks that are ready have their turn, some of which read a heartbeat, for as long as that makes the batch larger.
/// Without it small batches keep themselves small: they are answered soon, and the next call leaves with who came meanwhile.
async fn grow(arrived: &mut Vec<Waiting>, waiting: &mut mpsc::Receiver<Waiting>) {
    let until = Instant::now() + GROWS;
    while arrived.len() < MAX_BATCH {
        tokio::task::yield_now().await;
        let before = arrived.len();
        while arrived.len() < MAX_BATCH
            && let Ok(one) = waiting.try_recv()
        {
            arrived.push(one);
        }
        if arrived.len() == before || Instant::now() >= until {
            return;
        }
    }
}

/// Answers that are there and have not been given. Where a whole batch waits already, Redis gets it first: to wake a client's
/// task and write to its socket takes longer than Redis needs for a heartbeat, and it would be idle for as long as that takes
/// for a whole batch.
#[derive(Default)]
struct Settled(Vec<(oneshot::Sender<Answer>, Answer)>);

impl Settled {
    fn add(&mut self, to: oneshot::Sender<Answer>, answer: Answer) {
        self.0.push((to, answer));
    }

    fn answer(&mut self) {
        for (to, answer) in self.0.drain(..) {
            let _ = to.send(answer);
        }
    }

    /// Begins a call, which sends it off, and gives the answers while it is under way.
    async fn answer_during<T>(&mut self, call: impl Future<Output = T>) -> T {
        let mut call = std::pin::pin!(call);
        let begun = futures_util::poll!(&mut call);
        self.answer();
        match begun {
            Poll::Ready(reply) => reply,
            Poll::Pending => call.await,
        }
    }
}

impl Batch {
    /// Those of whom an answer is still expected, and in time.
    fn of(arrived: impl ExactSizeIterator<Item = Waiting>) -> Self {
        let now = Instant::now();
        let mut batch = Self::with_capacity(arrived.len());
        for Waiting { beat, answer, since } in arrived {
            if now.duration_since(since) > MAX_WAIT {
                let _ = answer.send(Err(too_late()));
            } else if !answer.is_closed() {
                // A client that has given up needs no call.
                batch.push(beat, answer);
            }
        }
        batch
    }

    fn with_capacity(most: usize) -> Self {
        Self { beats: Vec::with_capacity(most), answers: Vec::with_capacity(most) }
    }

    fn push(&mut self, beat: Heartbeat, answer: oneshot::Sender<Answer>) {
        self.beats.push(beat);
        self.answers.push(answer);
    }

    fn into_parts(self) -> impl Iterator<Item = (Heartbeat, oneshot::Sender<Answer>)> {
        self.beats.into_iter().zip(self.answers)
    }

    /// Has the batch recorded and its answers settled; returns those for whom the fence must stand first. Whoever merely
    /// stays present is answered before the others are looked at.
    async fn commit(self, shard: u32, live: &LiveSet, settled: &mut Settled) -> Self {
        let mut arriving = Self::default();
        match settled.answer_during(live.heartbeat(shard, &self.beats)).await {
            Ok((at, renewed)) => {
                for ((beat, answer), renewed) in self.into_parts().zip(renewed) {
                    match renewed {
                        Some(status) => settled.add(answer, Ok(Beat { status, last_seen: at })),
                        None => arriving.push(beat, answer),
                    }
                }
            }
            Err(error) => self.fail(|| PresenceError::from(&error)),
        }
        if arriving.beats.is_empty() { arriving } else { arriving.arrive(shard, live, settled).await }
    }

    /// The second half of [`Self::commit`].
    async fn arrive(self, shard: u32, live: &LiveSet, settled: &mut Settled) -> Self {
        let mut unfenced = Self::default();
        match settled.answer_during(live.arrive(shard, &self.beats)).await {
            Ok((at, outcomes)) => {
                for ((beat, answer), outcome) in self.into_parts().zip(outcomes) {
                    match settle(at, outcome) {
                        Some(outcome) => settled.add(answer, outcome),
                        None => unfenced.push(beat, answer),
                    }
                }
            }
            Err(error) => self.fail(|| PresenceError::from(&error)),
        }
        unfenced
    }

    /// Redis has lost its data: nobody comes online before the fence stands again. These wait for it, and no others.
    async fn commit_behind_a_fence(self, shard: u32, live: LiveSet, fence: FenceKeeper) {
        let late = Instant::now() + HEARTBEAT_PATIENCE;
        let stands = timeout_at(late, fence.stand(shard)).await.unwrap_or_else(|_| Err(too_late()));
        if let Err(error) = stands {
            return self.fail(|| match &error {
                PresenceError::RedisRefuses(reason) => PresenceError::RedisRefuses(reason.clone()),
                other => PresenceError::RedisUnavailable(other.to_string()),
            });
        }
        let mut still_there = Self::default();
        for (beat, answer) in self.into_parts().filter(|(_, answer)| !answer.is_closed()) {
            still_there.push(beat, answer);
        }
        if still_there.beats.is_empty() {
            return;
        }
        let mut settled = Settled::default();
        // Where time runs out in here, the answers are dropped, and that is an answer too.
        if let Ok(unfenced) = timeout_at(late, still_there.arrive(shard, &live, &mut settled)).await {
            unfenced.fail(|| {
                PresenceError::RedisUnavailable("it has lost its data and is being prepared".into())
            });
        }
        settled.answer();
    }

    fn fail(self, error: impl Fn() -> PresenceError) {
        for answer in self.answers {
            let _ = answer.send(Err(error()));
        }
    }
}

/// What is answered; `None` where the fence must stand first.
fn settle(at: Millis, outcome: HeartbeatOutcome) -> Option<Answer> {
    match outcome {
        HeartbeatOutcome::Present(status) => Some(Ok(Beat { status, last_seen: at })),
        HeartbeatOutcome::Blocked => Some(Err(PresenceError::Blocked)),
        HeartbeatOutcome::SessionEnded => Some(Err(PresenceError::SessionEnded)),
        HeartbeatOutcome::Unfenced => None,
    }
}

fn too_late() -> PresenceError {
    PresenceError::RedisUnavailable("it did not answer in time".into())
}
