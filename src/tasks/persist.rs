//! The persister: brings transitions from the stream into SQL, each exactly once (invariants 3 and 5).
//!
//! A turn: take a prefix of what SQL lacks, commit it, let go of it. Killed at any point it is done again by whoever comes
//! next, and SQL leaves out what it has. SQL away: the entries wait in the stream. A row of SQL that another application
//! holds: the entries of that user wait there, and the others go on (`deferral`).

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use futures_util::{StreamExt, stream};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

use super::Context;
use super::deferral::{Deferral, Tried};
use crate::live::{LiveError, Turn, Work};
use crate::model::{StreamId, UserId};
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

/// Rows that are held for longer than this are worth a line in the log.
const LONG_HELD: Duration = Duration::from_secs(3);

static REDIS_TROUBLE: Trouble = Trouble::new("the persister cannot reach Redis; transitions wait there");
static SQL_TROUBLE: Trouble = Trouble::new("the persister cannot write to SQL; transitions wait in Redis");

static HELD_TROUBLE: Trouble = Trouble::new(
    "another transaction in the database holds rows of users: their transitions wait in Redis, all others are written",
);

/// What a drain wrote.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Drained {
    /// Transitions taken out of the stream.
    pub transitions: u64,
    /// History rows added.
    pub recorded: u64,
    /// Whether another persister has work in hand that was left to it.
    pub others_at_it: bool,
    /// Users whose transitions wait because another transaction in the database holds their row.
    pub users_held: u64,
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

/// The shards where something waits for a row in SQL.
type Deferrals = HashMap<u32, Deferral>;

pub(super) async fn run(context: &Context, mut stopping: Stopping) {
    tokio::select! {
        () = context.live.verified() => {}
        // Nothing of this process's database has reached Redis.
        _ = stopping.wait_for(Option::is_some) => return,
    }
    // Shards whose turn is another persister's, or whose Redis failed: when each is tried again.
    let mut resting: HashMap<u32, Instant> = HashMap::new();
    let mut deferrals = Deferrals::new();
    while stopping.borrow().is_none() {
        let shards = tokio::select! {
            shards = wait(context, &deferrals) => shards,
            _ = stopping.wait_for(Option::is_some) => break,
        };
        resting.retain(|_, until| *until > Instant::now());
        let ours: Vec<u32> = shards.iter().copied().filter(|shard| !resting.contains_key(shard)).collect();
        match drain(context, &ours, &mut deferrals, &stopping).await {
            Ok(drained) => {
                let now = Instant::now();
                resting.extend(drained.theirs.into_iter().map(|shard| (shard, now + ASK_AGAIN)));
                match &drained.trouble {
                    Some(error) => REDIS_TROUBLE.note(error),
                    None if !ours.is_empty() => REDIS_TROUBLE.over(),
                    None => {}
                }
                resting.extend(drained.away.into_iter().map(|shard| (shard, now + RETRY)));
                SQL_TROUBLE.over();
                tell_of(&deferrals);
            }
            Err(error) => {
                SQL_TROUBLE.note(&error);
                // Only when SQL answers is another turn taken: meanwhile another instance may have it.
                while context.store.ping().await.is_err() && stopping.borrow().is_none() {
                    let _ = timeout(RETRY, stopping.wait_for(Option::is_some)).await;
                }
                let _ = timeout(RETRY, stopping.wait_for(Option::is_some)).await;
            }
        }
        // What waits in a shard that rests is there at once when it is waited for: not in a tight loop.
        if !resting.is_empty() {
            let _ = timeout(OTHERS_AT_IT, stopping.wait_for(Option::is_some)).await;
        }
    }
    let all: Vec<u32> = context.live.shards().collect();
    // What the last requests brought about. What is left after it waits in the stream for whoever comes next.
    let failure = match drain(context, &all, &mut deferrals, &stopping).await {
        Ok(drained) => drained.trouble.map(Failure::Live),
        Err(error) => Some(error.into()),
    };
    if let Some(failure) = failure {
        tracing::warn!(%failure, "the last transitions wait in Redis for the next instance");
    }
}

/// Waits for new entries, or for the time at which something that waits for a row is tried again.
async fn wait(context: &Context, deferrals: &Deferrals) -> Vec<u32> {
    let passed = deferrals.iter().map(|(shard, deferral)| (*shard, deferral.taken())).collect();
    let due = deferrals.values().map(Deferral::due).min();
    let most = due.map_or(Duration::MAX, |due| due.saturating_duration_since(Instant::now()));
    let shards = if let Ok(shards) = context.live.wait_for_transitions(&passed, most).await {
        shards
    } else {
        sleep(RETRY).await;
        context.live.shards().collect()
    };
    sleep(GATHER).await;
    let due = deferrals.iter().filter(|(_, deferral)| deferral.due() <= Instant::now());
    let mut shards: HashSet<u32> = shards.into_iter().collect();
    shards.extend(due.map(|(shard, _)| *shard));
    shards.into_iter().collect()
}

/// One line when rows have been held for long, and one when they are not any more.
fn tell_of(deferrals: &Deferrals) {
    let now = Instant::now();
    match deferrals.values().filter(|deferral| deferral.age(now) > LONG_HELD).max_by_key(|one| one.age(now)) {
        Some(deferral) => {
            let (count, first) = (deferral.users().len(), deferral.users().iter().min().copied());
            HELD_TROUBLE.note(&format!("{count} user(s), the first is {}", first.unwrap_or_default()));
        }
        None => HELD_TROUBLE.over(),
    }
}

/// Writes all that SQL lacks; for the command line. Another persister's turn is waited for, as it may be that of a process
/// that was killed: it counts for 3 s, and no more turns are waited out than fit into twice that.
pub async fn drain_all(context: &Context) -> anyhow::Result<Drained> {
    let (_never, going_on) = watch::channel(None);
    let mut shards: Vec<u32> = context.live.shards().collect();
    let (mut all, mut deferrals) = (Drained::default(), Deferrals::new());
    for turn in 0..7 {
        if turn > 0 {
            sleep(ASK_AGAIN).await;
        }
        let more = drain(context, &shards, &mut deferrals, &going_on).await?;
        if let Some(error) = more.trouble {
            return Err(error.into());
        }
        all.transitions += more.transitions;
        all.recorded += more.recorded;
        all.others_at_it = !more.theirs.is_empty();
        all.users_held = deferrals.values().map(|deferral| deferral.users().len() as u64).sum();
        shards = more.theirs;
        shards.extend(deferrals.keys());
        if shards.is_empty() {
            break;
        }
    }
    Ok(all)
}

/// How a batch ended.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    /// It is full.
    Full,
    /// Nothing lies behind it.
    OfStream,
    /// It is another persister's turn now.
    OfTurn,
}

/// A batch of one turn, slice by slice, so that heartbeats get through between them. Where the turn ends in its midst, what
/// is in hand is a prefix all the same; written twice it is recorded once.
async fn take_batch(
    context: &Context,
    shard: u32,
    after: Option<StreamId>,
) -> Result<(Work, End), LiveError> {
    let mut batch = Work::default();
    loop {
        // What was taken and not heard of is pending, and comes again.
        let take = context.live.take_after(shard, batch.last().or(after), SLICE);
        match context.live.promptly(take).await? {
            Turn::Mine(slice) => {
                let is_last = slice.len() < SLICE as usize;
                batch.extend(slice);
                if is_last {
                    return Ok((batch, End::OfStream));
                }
                if batch.len() >= BATCH {
                    return Ok((batch, End::Full));
                }
            }
            Turn::Others(_) => return Ok((batch, End::OfTurn)),
        }
    }
}

/// What became of some shards' streams.
#[derive(Default)]
struct Outcome {
    transitions: u64,
    recorded: u64,
    /// Shards whose turn is another persister's.
    theirs: Vec<u32>,
    /// Shards whose Redis failed, and the last failure.
    away: Vec<u32>,
    trouble: Option<LiveError>,
}

/// Drains these shards, some at a time. One whose Redis is away keeps no other waiting. What waits for a row is taken out of
/// `deferrals` and, unless something failed or the turn was lost, put back.
async fn drain(
    context: &Context,
    shards: &[u32],
    deferrals: &mut Deferrals,
    stopping: &Stopping,
) -> Result<Outcome, StoreError> {
    let mut streams =
        stream::iter(shards.iter().map(|shard| (*shard, deferrals.remove(shard))).collect::<Vec<_>>())
            .map(async |(shard, deferral)| {
                (shard, Box::pin(ShardDrain::run(context, shard, deferral, stopping)).await)
            })
            .buffer_unordered(AT_ONCE);
    let mut all = Outcome::default();
    while let Some((shard, drained)) = streams.next().await {
        match drained {
            Ok(drained) => {
                all.transitions += drained.outcome.transitions;
                all.recorded += drained.outcome.recorded;
                all.theirs.extend(drained.outcome.theirs);
                deferrals.extend(drained.deferral.map(|deferral| (shard, deferral)));
            }
            Err(Failure::Store(error)) => return Err(error),
            Err(Failure::Live(error)) => {
                all.away.push(shard);
                all.trouble = Some(error);
            }
        }
    }
    Ok(all)
}

/// The drain of one shard.
struct ShardDrain<'a> {
    context: &'a Context,
    shard: u32,
    outcome: Outcome,
    deferral: Option<Deferral>,
}

impl<'a> ShardDrain<'a> {
    /// Turn after turn until SQL lacks nothing of the shard but what waits for a row, or there is no time for another.
    async fn run(
        context: &'a Context,
        shard: u32,
        deferral: Option<Deferral>,
        stopping: &Stopping,
    ) -> Result<Self, Failure> {
        let mut drain = Self { context, shard, outcome: Outcome::default(), deferral };
        let mut ahead = None;
        while stopping.borrow().is_none_or(|until| Instant::now() < until) {
            if drain.deferral.as_ref().is_some_and(|deferral| deferral.due() <= Instant::now()) {
                // What was taken ahead is pending, and comes again.
                ahead = None;
                if !drain.try_again().await? {
                    break;
                }
            }
            let (work, end) = match ahead.take() {
                Some(taken) => taken,
                None => take_batch(context, shard, drain.deferral.as_ref().map(Deferral::taken)).await?,
            };
            let is_all = work.is_empty();
            ahead = drain.write_new(work, end).await?;
            let is_due = |deferral: &Deferral| deferral.due() <= Instant::now();
            if !drain.note_turn(end) || (is_all && !drain.deferral.as_ref().is_some_and(is_due)) {
                break;
            }
        }
        Ok(drain)
    }

    /// Whether it is this persister's turn still. Where it is not, the next one begins with all that is pending.
    fn note_turn(&mut self, end: End) -> bool {
        if end == End::OfTurn {
            self.outcome.theirs = vec![self.shard];
            self.deferral = None;
        }
        end != End::OfTurn
    }

    /// One batch of the pass over what waits. Whether it is this persister's turn still.
    async fn try_again(&mut self) -> Result<bool, Failure> {
        let Some(mut deferral) = self.deferral.take() else { return Ok(true) };
        let began = Instant::now();
        let (after, without) = deferral.pass();
        let (work, end) = take_batch(self.context, self.shard, after).await?;
        let taken = work.last();
        let written = self.write(work, without).await?;
        if end == End::OfTurn {
            self.note_turn(end);
            return Ok(false);
        }
        let tried = Tried {
            taken,
            at_end: end == End::OfStream,
            held: written.held,
            got_through: written.transitions > 0,
        };
        if deferral.tried(tried, began, Instant::now()) {
            self.deferral = Some(deferral);
        }
        Ok(true)
    }

    /// Writes a batch of new entries. While SQL writes a full batch the next is taken, in order after it; should the
    /// writing fail, both are pending and come again.
    async fn write_new(&mut self, work: Work, end: End) -> Result<Option<(Work, End)>, Failure> {
        let Some(last) = work.last() else { return Ok(None) };
        let (context, shard) = (self.context, self.shard);
        let next = async {
            if end == End::Full { take_batch(context, shard, Some(last)).await.map(Some) } else { Ok(None) }
        };
        let deferral = self.deferral.take();
        let no_users = HashSet::new();
        let without = deferral.as_ref().map_or(&no_users, Deferral::users);
        let (written, next) = tokio::join!(self.write(work, without), next);
        let (held, next) = (written?.held, next?);
        self.deferral = match deferral {
            Some(mut deferral) => {
                deferral.went_on(last, held);
                Some(deferral)
            }
            None if held.is_empty() => None,
            None => Some(Deferral::begin(held, last, Instant::now())),
        };
        Ok(next)
    }

    /// Writes a batch, without the transitions of some users, and lets go of what SQL has.
    async fn write(&mut self, work: Work, without: &HashSet<UserId>) -> Result<Written, Failure> {
        let (context, shard) = (self.context, self.shard);
        let mut done = work;
        done.transitions.retain(|transition| !without.contains(&transition.user));
        let outcome = context.store.record(shard, &done.transitions, done.now).await?;
        if !outcome.locked.is_empty() {
            let held: HashSet<UserId> = outcome.locked.iter().copied().collect();
            done.transitions.retain(|transition| !held.contains(&transition.user));
        }
        if !done.is_empty() {
            context.live.ack(shard, &done).await?;
        }
        context.counts.persisted(&done.transitions, outcome.recorded as u64);
        self.outcome.transitions += done.len() as u64;
        self.outcome.recorded += outcome.recorded as u64;
        if !done.unreadable.is_empty() {
            tracing::warn!(count = done.unreadable.len(), "the stream held entries that are no transitions");
        }
        fence_off(context, &outcome.unknown).await;
        Ok(Written { transitions: done.len(), held: outcome.locked })
    }
}

/// What became of a batch.
struct Written {
    /// How many entries left the stream.
    transitions: usize,
    /// Users whose row another transaction holds.
    held: Vec<UserId>,
}

/// Sees to it that users of whom SQL knows nothing are present no more.
async fn fence_off(context: &Context, unknown: &[UserId]) {
    let Some(first) = unknown.first() else { return };
    tracing::warn!(
        count = unknown.len(),
        first,
        "users of whom SQL knows nothing were present; their transitions are set aside, and they are fenced off"
    );
    if let Err(error) = context.presence.account_changed(unknown).await {
        tracing::warn!(%error, "unknown users could not be fenced off");
    }
}
