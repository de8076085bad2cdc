//! Transitions of one shard that wait in its stream because another application holds the row of their user in SQL
//! (invariant 12).
//!
//! They stay pending, in their order, and everything behind them goes on. A user with one that waits is left out until all of
//! the user's transitions have been tried again from the first on, so each user's order holds. They are tried again from
//! the beginning of the stream, a batch at a time, with pauses that grow while nothing gets through.

use std::collections::HashSet;
use std::time::Duration;

use tokio::time::Instant;

use crate::model::{StreamId, UserId};

/// The pause after the first attempt in vain: most rows are held for milliseconds.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
/// The longest pause. A persister that is silent for longer than 3 s loses its turn.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// A pause is at least so many times as long as the attempt before it took, so that a large number of waiting transitions
/// costs Redis and SQL a tenth of their time at most.
const SHARE: u32 = 10;

/// What waits in one shard. It is worth something only while this process has the turn; one that lost its turn begins anew.
#[derive(Debug)]
pub struct Deferral {
    /// Users with a transition that waits.
    users: HashSet<UserId>,
    /// How far the stream was taken: behind this are new entries.
    taken: StreamId,
    /// The pass that tries again: how far it has come, and whose rows it found held.
    pass: Pass,
    /// When the next batch of the pass is tried.
    due: Instant,
    pause: Duration,
    since: Instant,
}

#[derive(Debug, Default)]
struct Pass {
    taken: Option<StreamId>,
    users: HashSet<UserId>,
}

impl Deferral {
    /// Begins with a batch that ended at `taken`, in which these users' rows were held.
    pub fn begin(users: Vec<UserId>, taken: StreamId, now: Instant) -> Self {
        Self {
            users: users.into_iter().collect(),
            taken,
            pass: Pass::default(),
            due: now + FIRST_PAUSE,
            pause: FIRST_PAUSE,
            since: now,
        }
    }

    /// The users whose transitions wait.
    pub const fn users(&self) -> &HashSet<UserId> {
        &self.users
    }

    /// Where new entries begin.
    pub const fn taken(&self) -> StreamId {
        self.taken
    }

    /// When something is to be tried again.
    pub const fn due(&self) -> Instant {
        self.due
    }

    /// For how long something has been waiting.
    pub fn age(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.since)
    }

    /// Notes a batch of new entries that ended at `taken`, and whose rows were held in it.
    pub fn went_on(&mut self, taken: StreamId, held: Vec<UserId>) {
        self.taken = self.taken.max(taken);
        self.users.extend(held);
    }

    /// Where the pass goes on, and whose transitions it leaves out.
    pub const fn pass(&self) -> (Option<StreamId>, &HashSet<UserId>) {
        (self.pass.taken, &self.pass.users)
    }

    /// Notes a batch of the pass: where it ended (`None` for an empty one), whether it reached the end of the stream, whose
    /// rows were held, and whether anything got through. Whether anything waits still.
    pub fn tried(&mut self, batch: Tried, began: Instant, now: Instant) -> bool {
        self.pass.users.extend(batch.held);
        self.pass.taken = batch.taken.or(self.pass.taken);
        if batch.at_end || self.pass.taken.is_some_and(|taken| taken >= self.taken) {
            // Every entry up to here belongs to a user of this pass, or is in SQL.
            let Pass { taken, users } = std::mem::take(&mut self.pass);
            self.users = users;
            self.taken = self.taken.max(taken.unwrap_or(self.taken));
        }
        if batch.got_through {
            (self.pause, self.due) = (FIRST_PAUSE, now);
        } else {
            let took = now.saturating_duration_since(began);
            self.due = now + self.pause.max(took * SHARE).min(LONGEST_PAUSE);
            self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        }
        !self.users.is_empty()
    }
}

/// A batch of the pass that tries again.
#[derive(Debug, Default)]
pub struct Tried {
    /// Its last entry.
    pub taken: Option<StreamId>,
    /// Whether nothing lay behind it.
    pub at_end: bool,
    /// Users whose rows were held.
    pub held: Vec<UserId>,
    /// Whether SQL has more than before.
    pub got_through: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(ms: u64) -> StreamId {
        StreamId { ms, seq: 0 }
    }

    fn users(deferral: &Deferral) -> Vec<UserId> {
        let mut users: Vec<UserId> = deferral.users().iter().copied().collect();
        users.sort_unstable();
        users
    }

    fn tried(ms: u64, held: &[UserId], got_through: bool) -> Tried {
        Tried { taken: Some(id(ms)), at_end: false, held: held.to_vec(), got_through }
    }

    #[tokio::test]
    async fn a_user_is_left_out_until_the_whole_pass_is_done() {
        let now = Instant::now();
        let mut deferral = Deferral::begin(vec![1, 2], id(10), now);
        deferral.went_on(id(20), vec![3]);
        assert_eq!((users(&deferral), deferral.taken()), (vec![1, 2, 3], id(20)));
        // The first half of the pass: user 1 got through, and may have more in the second.
        assert!(deferral.tried(tried(10, &[2], true), now, now));
        assert_eq!(users(&deferral), [1, 2, 3]);
        assert_eq!(deferral.pass().0, Some(id(10)));
        assert!(deferral.pass().1.contains(&2));
        // New entries meanwhile move the end of the pass.
        deferral.went_on(id(30), vec![]);
        assert!(deferral.tried(tried(20, &[], true), now, now));
        assert_eq!(users(&deferral), [1, 2, 3]);
        assert!(deferral.tried(tried(30, &[], true), now, now));
        assert_eq!((users(&deferral), deferral.pass().0), (vec![2], None), "another pass begins");
        assert!(!deferral.tried(tried(30, &[], true), now, now));
    }

    #[tokio::test]
    async fn a_pass_that_finds_the_end_of_the_stream_is_done() {
        let now = Instant::now();
        let mut deferral = Deferral::begin(vec![1], id(10), now);
        assert!(!deferral.tried(Tried { at_end: true, ..Tried::default() }, now, now));
        let mut deferral = Deferral::begin(vec![1], id(10), now);
        let beyond = Tried { at_end: true, ..tried(50, &[4], true) };
        assert!(deferral.tried(beyond, now, now));
        assert_eq!((users(&deferral), deferral.taken()), (vec![4], id(50)));
    }

    #[tokio::test]
    async fn pauses_grow_while_nothing_gets_through_and_end_when_something_does() {
        let mut now = Instant::now();
        let mut deferral = Deferral::begin(vec![1], id(10), now);
        let mut pauses = Vec::new();
        for _ in 0..8 {
            now = deferral.due();
            deferral.tried(tried(10, &[1], false), now, now);
            pauses.push((deferral.due() - now).as_millis());
        }
        assert_eq!(pauses, [20, 40, 80, 160, 320, 640, 1_000, 1_000]);
        deferral.tried(tried(10, &[1], true), now, now);
        assert_eq!(deferral.due(), now);
        // An attempt that took long is not repeated at once.
        let later = now + Duration::from_millis(50);
        deferral.tried(tried(10, &[1], false), now, later);
        assert_eq!(deferral.due() - later, Duration::from_millis(500));
    }
}
