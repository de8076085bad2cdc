//! What may happen, in any order: a few users, sessions and persisters, so that they get in each other's way.

use presenced::live::Verdict;
use presenced::model::{HeartbeatWord, OnlineStatus, UserId};
use proptest::prelude::*;

use super::whole::Part;

/// Whether a call is made once more, as a client does that lost its connection before the answer came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resend {
    No,
    AtOnce,
    /// After the next op.
    Later,
}

/// What becomes of a batch that a persister has taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// Committed, and acknowledged.
    Done,
    /// Committed; the persister died before it acknowledged.
    Unacknowledged,
    /// The persister died before the commit.
    Dropped,
    /// The persister is slow; see [`Op::Finish`].
    Held,
}

/// A session of a user: 0 for a token without `sid`.
pub type Sid = u8;

#[derive(Debug, Clone)]
pub enum Op {
    /// Those of the first one's shard are one batch.
    Beat(Vec<(UserId, Sid, HeartbeatWord)>, Resend),
    /// A session that says online, one that says away, and so many ms after the death of the first.
    Outlive(UserId, [Sid; 2], i64),
    Leave(UserId, Sid, bool, Resend),
    SetStatus(UserId, OnlineStatus, Resend),
    /// Of all users, or as the sweeper does of those who are due.
    Claim {
        sweep: bool,
        resend: Resend,
    },
    /// `stale`: an answer of SQL that somebody else has overtaken.
    Tell {
        verdicts: Vec<(UserId, Verdict)>,
        stale: bool,
        resend: Resend,
    },
    Rebuild {
        held: bool,
        lose_midway: bool,
    },
    MoveFence {
        right: bool,
        resend: Resend,
    },
    /// The server restarts with its data; then somebody may have looked.
    Restart {
        adopt: bool,
    },
    /// The server loses its data.
    Lose {
        rebuild: bool,
    },
    /// A shard loses a key of those that belong together: evicted, or deleted by hand. Then its fence may be raised again, and what
    /// contradicts itself be put right.
    Evict {
        shard: u32,
        part: Part,
        rebuild: bool,
    },
    Mend(Resend),
    /// A session that says away and online by turns, so often.
    Waver(UserId, Sid, u8),
    Take {
        consumer: usize,
        most: u32,
        fate: Fate,
        resend: Resend,
    },
    /// What a slow persister has taken is committed and acknowledged after all.
    Finish(usize),
    Reconcile(Resend),
    Read,
    Step(i64),
    /// To so many ms after a boundary.
    StepTo(Boundary, i64),
}

/// An instant at which something happens by itself: the one of that number among those ahead.
#[derive(Debug, Clone, Copy)]
pub enum Boundary {
    Any(usize),
    /// The end of a session that its user outlives.
    Death(usize),
}

// Mostly the same few, or each would be alone.
fn user() -> impl Strategy<Value = UserId> {
    prop_oneof![6 => Just(1), 4 => Just(2), 1 => Just(3), 1 => Just(4)]
}

fn named() -> impl Strategy<Value = Sid> {
    prop_oneof![4 => Just(1), 4 => Just(2), 2 => Just(3), 1 => Just(4)]
}

fn sid() -> impl Strategy<Value = Sid> {
    prop_oneof![1 => Just(0), 9 => named()]
}

fn word() -> impl Strategy<Value = HeartbeatWord> {
    prop_oneof![
        3 => Just(HeartbeatWord::Online),
        4 => Just(HeartbeatWord::Away),
        3 => Just(HeartbeatWord::Touch),
        1 => Just(HeartbeatWord::Login),
    ]
}

fn resend() -> impl Strategy<Value = Resend> {
    prop_oneof![6 => Just(Resend::No), 1 => Just(Resend::AtOnce), 1 => Just(Resend::Later)]
}

fn status() -> impl Strategy<Value = OnlineStatus> {
    prop::sample::select(OnlineStatus::ALL.to_vec())
}

fn verdict() -> impl Strategy<Value = Verdict> {
    prop_oneof![3 => Just(Verdict::Block), 4 => Just(Verdict::Allow), 1 => Just(Verdict::Gone)]
}

fn fate() -> impl Strategy<Value = Fate> {
    prop_oneof![
        3 => Just(Fate::Done),
        1 => Just(Fate::Unacknowledged),
        1 => Just(Fate::Dropped),
        1 => Just(Fate::Held),
    ]
}

fn part() -> impl Strategy<Value = Part> {
    prop::sample::select(vec![Part::Live, Part::Stream, Part::Blocked, Part::Ended, Part::Fence])
}

fn op() -> impl Strategy<Value = Op> {
    let beats = prop::collection::vec((user(), sid(), word()), 1..4);
    // SQL says of each account one thing.
    let verdicts = prop::collection::btree_map(user(), verdict(), 1..3).prop_map(Vec::from_iter);
    // Around a boundary to the millisecond; and well after it, where what was to happen has not.
    let near = prop_oneof![4 => -3..=3i64, 1 => Just(-200), 1 => Just(10_000)];
    let boundary = prop_oneof![
        3 => (0..12usize).prop_map(Boundary::Any),
        2 => (0..3usize).prop_map(Boundary::Death),
    ];
    prop_oneof![
        18 => (beats, resend()).prop_map(|(beats, resend)| Op::Beat(beats, resend)),
        2 => (user(), sid(), sid(), -2..=3i64).prop_map(|(user, a, b, after)| Op::Outlive(user, [a, b], after)),
        8 => (user(), named(), any::<bool>(), resend()).prop_map(|(u, s, long, r)| Op::Leave(u, s, long, r)),
        5 => (user(), status(), resend()).prop_map(|(user, to, resend)| Op::SetStatus(user, to, resend)),
        5 => (any::<bool>(), resend()).prop_map(|(sweep, resend)| Op::Claim { sweep, resend }),
        4 => (verdicts, prop::bool::weighted(0.2), resend())
            .prop_map(|(verdicts, stale, resend)| Op::Tell { verdicts, stale, resend }),
        1 => (prop::bool::weighted(0.3), prop::bool::weighted(0.2))
            .prop_map(|(held, lose_midway)| Op::Rebuild { held, lose_midway }),
        1 => (any::<bool>(), resend()).prop_map(|(right, resend)| Op::MoveFence { right, resend }),
        1 => any::<bool>().prop_map(|adopt| Op::Restart { adopt }),
        1 => prop::bool::weighted(0.8).prop_map(|rebuild| Op::Lose { rebuild }),
        3 => (0..2u32, part(), prop::bool::weighted(0.7))
            .prop_map(|(shard, part, rebuild)| Op::Evict { shard, part, rebuild }),
        1 => resend().prop_map(Op::Mend),
        1 => (user(), sid(), 8..=14u8).prop_map(|(user, sid, times)| Op::Waver(user, sid, times)),
        8 => (0..3usize, 1..=6u32, fate(), resend())
            .prop_map(|(consumer, most, fate, resend)| Op::Take { consumer, most, fate, resend }),
        2 => (0..3usize).prop_map(Op::Finish),
        2 => resend().prop_map(Op::Reconcile),
        3 => Just(Op::Read),
        5 => (1..=60_000i64).prop_map(Op::Step),
        12 => (boundary, near).prop_map(|(which, after)| Op::StepTo(which, after)),
    ]
}

/// A number of shards, and what happens in them.
pub fn case() -> impl Strategy<Value = (u32, Vec<Op>)> {
    (1..=2u32, prop::collection::vec(op(), 1..40))
}
