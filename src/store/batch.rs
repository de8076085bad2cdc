//! What a batch of transitions comes to: the part of `record` that both databases share, without a statement.

use std::collections::{BTreeSet, HashMap, HashSet};

use crate::model::history::{HistoryRow, Recorded, chain};
use crate::model::{Millis, StreamId, Transition, UserId};

/// How far an instant of Redis that a call brings along may lie behind Redis's clock when SQL is written, ms: a batch waits
/// for the one before it and for its connection. Values that lie further ahead come from no heartbeat.
const CLOCK_SLACK_MS: i64 = 30_000;

/// The latest instant that `users.last_seen` can hold, if Redis's clock was at `now` when the call was made.
pub fn latest_possible(now: Millis) -> Millis {
    now.plus(CLOCK_SLACK_MS)
}

/// What is to be written.
#[derive(Debug, Default)]
pub struct Plan<'a> {
    /// Rows of the history with their users, in stream order.
    pub history: Vec<(UserId, HistoryRow)>,
    /// Users whose history moved on, ascending, and where it has got to.
    pub moved: Vec<(UserId, Recorded)>,
    /// Transitions of users whom SQL does not know, in stream order.
    pub set_aside: Vec<&'a Transition>,
    /// Those users, ascending.
    pub unknown: Vec<UserId>,
    /// Users whose row another transaction holds, ascending: of these nothing is written.
    pub locked: Vec<UserId>,
}

/// The newest entry of a batch.
pub fn newest_of(batch: &[Transition]) -> StreamId {
    batch.iter().map(|transition| transition.id).max().unwrap_or(StreamId { ms: 0, seq: 0 })
}

/// The users of a batch, ascending.
pub fn users_of(batch: &[Transition]) -> Vec<UserId> {
    batch.iter().map(|transition| transition.user).collect::<BTreeSet<_>>().into_iter().collect()
}

/// Chains each user's transitions to what SQL holds of the user; leaves out those of the users in `locked`.
pub fn plan<'a>(
    users: &[UserId],
    recorded: &HashMap<UserId, Recorded>,
    locked: &HashSet<UserId>,
    batch: &'a [Transition],
) -> Plan<'a> {
    let mut by_user: HashMap<UserId, Vec<&Transition>> = HashMap::with_capacity(users.len());
    let mut plan = Plan::default();
    for transition in batch {
        if recorded.contains_key(&transition.user) {
            by_user.entry(transition.user).or_default().push(transition);
        } else if !locked.contains(&transition.user) {
            plan.set_aside.push(transition);
        }
    }
    for user in users {
        let (Some(before), Some(transitions)) = (recorded.get(user), by_user.remove(user)) else {
            let lacking = if locked.contains(user) { &mut plan.locked } else { &mut plan.unknown };
            lacking.push(*user);
            continue;
        };
        let mut after = *before;
        let rows = chain(&mut after, transitions);
        plan.history.extend(rows.into_iter().map(|row| (*user, row)));
        if after != *before {
            plan.moved.push((*user, after));
        }
    }
    plan.history.sort_by_key(|(_, row)| row.id);
    plan
}

/// The newest entry of each shard in the history, by its name: the first name of each shard leads to the first of the next.
pub const NEWEST_OF_EACH_SHARD: &str = "WITH RECURSIVE first (id) AS (SELECT min(stream_id) FROM presence_transitions \
    UNION SELECT (SELECT min(t.stream_id) FROM presence_transitions t \
    WHERE t.stream_id >= substr(first.id, 1, length(first.id) - length(ltrim(first.id, '0123456789'))) || '0') \
    FROM first WHERE first.id IS NOT NULL) \
    SELECT (SELECT max(t.stream_id) FROM presence_transitions t WHERE t.stream_id >= first.id AND t.stream_id < \
    substr(first.id, 1, length(first.id) - length(ltrim(first.id, '0123456789'))) || '0') \
    FROM first WHERE first.id IS NOT NULL";

/// An entry that is no older than any that SQL has taken. Within one millisecond names do not sort as numbers do; so where
/// the history is ahead of the positions (these may have been left out of a dump) it is the millisecond after.
pub fn newest_position(
    taken: impl Iterator<Item = StreamId>,
    recorded: impl Iterator<Item = StreamId>,
) -> Option<StreamId> {
    let (taken, recorded) = (taken.max(), recorded.max());
    match recorded {
        Some(recorded) if taken.is_none_or(|taken| taken.ms < recorded.ms) => {
            Some(StreamId { ms: recorded.ms.saturating_add(1), seq: 0 })
        }
        _ => taken,
    }
}

/// Each user once, with the latest instant, ascending.
pub fn latest(seen: &[(UserId, Millis)]) -> Vec<(UserId, Millis)> {
    let mut seen = seen.to_vec();
    seen.sort_unstable_by_key(|(user, at)| (*user, std::cmp::Reverse(*at)));
    seen.dedup_by_key(|(user, _)| *user);
    seen
}
