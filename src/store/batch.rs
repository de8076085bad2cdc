//! What a batch of transitions comes to: the part of `record` that both databases share, without a statement.

use std::collections::{BTreeSet, HashMap};

use crate::model::history::{HistoryRow, Recorded, chain};
use crate::model::{Millis, Transition, UserId};

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
}

/// The users of a batch, ascending: the order in which every transaction locks them, so that none waits in a circle.
pub fn users_of(batch: &[Transition]) -> Vec<UserId> {
    batch.iter().map(|transition| transition.user).collect::<BTreeSet<_>>().into_iter().collect()
}

/// Chains each user's transitions to what SQL holds of the user.
pub fn plan<'a>(users: &[UserId], recorded: &HashMap<UserId, Recorded>, batch: &'a [Transition]) -> Plan<'a> {
    let mut by_user: HashMap<UserId, Vec<&Transition>> = HashMap::with_capacity(users.len());
    let mut plan = Plan::default();
    for transition in batch {
        if recorded.contains_key(&transition.user) {
            by_user.entry(transition.user).or_default().push(transition);
        } else {
            plan.set_aside.push(transition);
        }
    }
    for user in users {
        let (Some(before), Some(transitions)) = (recorded.get(user), by_user.remove(user)) else {
            plan.unknown.push(*user);
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

/// Each user once, with the latest instant, ascending.
pub fn latest(seen: &[(UserId, Millis)]) -> Vec<(UserId, Millis)> {
    let mut seen = seen.to_vec();
    seen.sort_unstable_by_key(|(user, at)| (*user, std::cmp::Reverse(*at)));
    seen.dedup_by_key(|(user, _)| *user);
    seen
}
