//! What is found: disagreements about users, about shards, about histories.

use std::time::Duration;

use crate::model::audit::{Break, Disagreement, InSql};
use crate::model::{Millis, SessionId, StreamId, UserId};
use crate::store::NameClash;

/// One thing that is not as it must be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Finding {
    /// About one user.
    User {
        /// Who.
        user: UserId,
        /// What.
        what: Disagreement,
        /// What SQL holds, where it knows the user.
        sql: Option<InSql>,
    },
    /// A member of the live set that is no user of the shard.
    Stray {
        /// Where.
        shard: u32,
        /// What.
        member: String,
    },
    /// A session that has ended by SQL, and is in the user's presence key.
    Session {
        /// Whose.
        user: UserId,
        /// Its name.
        sid: SessionId,
    },
    /// A history that does not chain.
    Break(Break),
    /// About a shard.
    Shard(ShardTrouble),
    /// About login names.
    Names(NameTrouble),
}

/// What is wrong with login names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum NameTrouble {
    /// Two accounts share one.
    Clash(NameClash),
    /// The keys are not those of the names.
    Keys {
        /// Whose.
        user: UserId,
        /// Its name.
        username: String,
    },
}

/// What is wrong with a shard as a whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum ShardTrouble {
    /// There is no fence.
    Unfenced {
        /// Where.
        shard: u32,
    },
    /// A key is of another type than it must be.
    OddKey {
        /// Where.
        shard: u32,
        /// Its name.
        key: String,
        /// Its type.
        kind: String,
    },
    /// Deadlines passed more than a second ago, and nobody has claimed them.
    Unclaimed {
        /// Where.
        shard: u32,
        /// Whose, as many as were looked at.
        users: Vec<(UserId, Millis)>,
    },
    /// Transitions wait for SQL, and it does not get ahead.
    Waiting {
        /// Where.
        shard: u32,
        /// The oldest of them; `None` where only the group believes that there are any.
        oldest: Option<StreamId>,
        /// How many.
        count: u64,
        /// For how long the oldest has waited.
        since: Duration,
        /// Why.
        why: WhyWaiting,
    },
    /// Entries that are no transitions.
    Unreadable {
        /// Where.
        shard: u32,
        /// Their ids.
        ids: Vec<String>,
    },
    /// Transitions in a shard beyond those in use.
    Abandoned {
        /// Which.
        shard: u32,
        /// How many entries.
        count: u64,
    },
}

/// Why transitions wait.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum WhyWaiting {
    /// There is no consumer group: no persister has ever been here.
    NoGroup,
    /// A persister took them and has not been heard since.
    Held {
        /// Its name.
        by: String,
        /// For how long.
        silent: Duration,
    },
    /// A persister takes them again and again, and SQL does not have them.
    InHand {
        /// Its name.
        by: String,
    },
    /// Nobody has taken them.
    NotTaken,
}

impl ShardTrouble {
    /// Which shard.
    pub(super) const fn shard(&self) -> u32 {
        match self {
            Self::Unfenced { shard }
            | Self::OddKey { shard, .. }
            | Self::Unclaimed { shard, .. }
            | Self::Waiting { shard, .. }
            | Self::Unreadable { shard, .. }
            | Self::Abandoned { shard, .. } => *shard,
        }
    }

    /// What of this is still so in `again`, a later look at the same shard; `None` where nothing is.
    pub(super) fn persists(&self, again: &[Self]) -> Option<Self> {
        again.iter().find_map(|later| match (self, later) {
            (Self::Unclaimed { shard, users }, Self::Unclaimed { users: later, .. }) => {
                let users: Vec<_> = users.iter().filter(|user| later.contains(user)).copied().collect();
                (!users.is_empty()).then_some(Self::Unclaimed { shard: *shard, users })
            }
            (Self::Waiting { oldest, .. }, Self::Waiting { oldest: still, .. }) => {
                (oldest == still).then(|| later.clone())
            }
            (Self::Unreadable { shard, ids }, Self::Unreadable { ids: later, .. }) => {
                let ids: Vec<_> = ids.iter().filter(|id| later.contains(id)).cloned().collect();
                (!ids.is_empty()).then_some(Self::Unreadable { shard: *shard, ids })
            }
            (Self::Abandoned { shard, .. }, Self::Abandoned { shard: same, .. }) => {
                (shard == same).then(|| later.clone())
            }
            _ => (self == later).then(|| later.clone()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waiting(ms: u64, count: u64) -> ShardTrouble {
        let oldest = Some(StreamId { ms, seq: 0 });
        let since = Duration::from_secs(9);
        ShardTrouble::Waiting { shard: 0, oldest, count, since, why: WhyWaiting::NotTaken }
    }

    #[test]
    fn a_queue_that_moves_is_no_trouble() {
        assert_eq!(waiting(5, 10).persists(&[waiting(6, 90)]), None);
        assert_eq!(waiting(5, 10).persists(&[waiting(5, 90)]), Some(waiting(5, 90)));
        assert_eq!(waiting(5, 10).persists(&[]), None);
    }

    #[test]
    fn only_the_deadlines_that_nobody_claimed_meanwhile_are_left() {
        let unclaimed = |users: &[i64]| ShardTrouble::Unclaimed {
            shard: 0,
            users: users.iter().map(|user| (*user, Millis(7))).collect(),
        };
        assert_eq!(unclaimed(&[1, 2]).persists(&[unclaimed(&[2, 3])]), Some(unclaimed(&[2])));
        assert_eq!(unclaimed(&[1]).persists(&[unclaimed(&[2])]), None);
        let later = ShardTrouble::Unclaimed { shard: 0, users: vec![(1, Millis(8))] };
        assert_eq!(unclaimed(&[1]).persists(&[later]), None, "another life, another deadline");
    }
}
