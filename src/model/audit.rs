//! The comparison: what Redis holds of a user beside what SQL holds, and wherein they contradict each other or themselves.
//!
//! Only what cannot be by any order of events counts, so that a look beside running instances raises no false alarm: what
//! is on its way is left to [`Doubt`], and whoever compares says what that is.

use super::{Millis, OnlineStatus, UserId};

/// The longest TTL that can be set: a deadline further ahead than this was set by no heartbeat.
pub const LONGEST_TTL_MS: i64 = 3_600_000;

/// What stands where a user's presence key belongs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Key {
    /// Nothing.
    None,
    /// A hash.
    Hash {
        /// When it expires; `None` for never.
        expires: Option<Millis>,
        /// Its status; `None` where it holds none, or a word that is none.
        status: Option<OnlineStatus>,
        /// What its live sessions come to; `None` where it holds none that is alive.
        alive: Option<OnlineStatus>,
        /// Whether any session, alive or not, has said online.
        said_online: bool,
    },
    /// A value of another type, by Redis's name of it.
    Other(String),
}

/// All that Redis holds of a user at one instant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InRedis {
    /// Whose.
    pub user: UserId,
    /// The instant, by Redis's clock.
    pub now: Millis,
    /// The deadline in the live set.
    pub deadline: Option<Millis>,
    /// The presence key.
    pub key: Key,
    /// Whether the fence holds the account.
    pub blocked: bool,
}

/// What SQL holds of a user at one instant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InSql {
    /// Whose.
    pub user: UserId,
    /// The account rule.
    pub may_be_present: bool,
    /// `users.online_status`.
    pub mirror: OnlineStatus,
    /// `users.presence_version`.
    pub version: i64,
    /// `users.last_seen`.
    pub last_seen: Option<Millis>,
    /// Where the newest row of the history leads to; `None` where there is no row (the history may be pruned).
    pub history: Option<OnlineStatus>,
}

/// What keeps a difference between Redis and SQL from being a contradiction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Doubt {
    /// The stream may hold a transition of the user, which SQL will have soon.
    pub waits: bool,
    /// Redis has not been heard for a whole TTL: nobody can be missed yet.
    pub unheard: bool,
    /// There is no fence: it holds nobody, and is to be built anew as a whole.
    pub unfenced: bool,
}

/// A contradiction about one user. Two looks that find the same one are equal, facts and all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Disagreement {
    /// In the live set with a deadline ahead, without a presence key.
    KeyMissing {
        /// The deadline.
        deadline: Millis,
    },
    /// Something else stands where the presence key belongs.
    KeyOfWrongType {
        /// What it is.
        kind: String,
    },
    /// A presence key without a deadline in the live set.
    DeadlineMissing {
        /// When the key expires; `None` for never.
        expires: Option<Millis>,
    },
    /// A deadline that no heartbeat can have set.
    DeadlineTooFar {
        /// The deadline.
        deadline: Millis,
    },
    /// The key does not expire at the deadline.
    ExpiryDiffers {
        /// The deadline.
        deadline: Millis,
        /// When the key expires; `None` for never.
        expires: Option<Millis>,
    },
    /// The status in the key is none that its sessions come to.
    StatusUnsupported {
        /// The status in the key, if there is one.
        status: Option<OnlineStatus>,
        /// What its sessions come to; `None` where there are none.
        sessions: Option<OnlineStatus>,
    },
    /// The account may not be present, and is in the live set.
    BlockedButPresent,
    /// The account may not be present, and the fence does not hold it.
    FenceLacks,
    /// The account may be present, and the fence holds it.
    FenceHolds,
    /// In the live set, and SQL has no such account.
    Stranger,
    /// The mirror in SQL differs from Redis, and nothing is on its way.
    MirrorDiffers {
        /// The mirror.
        mirror: OnlineStatus,
        /// The status in Redis.
        live: OnlineStatus,
        /// Which transition the mirror comes from ([`super::StreamId::version`]).
        version: i64,
    },
    /// The mirror differs from the newest row of the history.
    HistoryDiffers {
        /// The mirror.
        mirror: OnlineStatus,
        /// Where the history leads to.
        history: OnlineStatus,
        /// As in `MirrorDiffers`.
        version: i64,
    },
}

/// **The comparison.** `sql` is `None` where SQL has no such account. A user of whom Redis contradicts itself is not
/// compared with the mirror: that comes when Redis is right.
pub fn compare(redis: &InRedis, sql: Option<&InSql>, doubt: Doubt) -> Vec<Disagreement> {
    let mut found: Vec<Disagreement> = within_redis(redis).into_iter().collect();
    let redis_is_right = found.is_empty();
    let Some(sql) = sql else {
        if redis.deadline.is_some() && !doubt.waits {
            found.push(Disagreement::Stranger);
        }
        return found;
    };
    let rule = match (sql.may_be_present, redis.deadline.is_some(), redis.blocked) {
        (false, true, _) => Some(Disagreement::BlockedButPresent),
        (false, false, false) if !doubt.unfenced => Some(Disagreement::FenceLacks),
        (true, _, true) if !doubt.unfenced => Some(Disagreement::FenceHolds),
        _ => None,
    };
    let rule_is_kept = !matches!(rule, Some(Disagreement::BlockedButPresent));
    found.extend(rule);
    let (mirror, version) = (sql.mirror, sql.version);
    let told = redis_is_right && rule_is_kept && !doubt.waits && !doubt.unheard;
    match (sql.history, status_in_redis(redis)) {
        (Some(history), _) if history != mirror => {
            found.push(Disagreement::HistoryDiffers { mirror, history, version });
        }
        (_, Some(live)) if live != mirror && told => {
            found.push(Disagreement::MirrorDiffers { mirror, live, version });
        }
        _ => {}
    }
    found
}

/// Wherein Redis contradicts itself about a user: one thing at a time, the one that explains most.
fn within_redis(redis: &InRedis) -> Option<Disagreement> {
    use Disagreement::{
        DeadlineMissing, DeadlineTooFar, ExpiryDiffers, KeyMissing, KeyOfWrongType, StatusUnsupported,
    };
    let ahead = redis.deadline.filter(|deadline| *deadline >= redis.now);
    if let Some(deadline) = ahead.filter(|deadline| *deadline > redis.now.plus(LONGEST_TTL_MS)) {
        return Some(DeadlineTooFar { deadline });
    }
    let (expires, status, alive, said_online) = match (&redis.key, redis.deadline) {
        (Key::Other(kind), _) => return Some(KeyOfWrongType { kind: kind.clone() }),
        (Key::None, _) => return ahead.map(|deadline| KeyMissing { deadline }),
        (Key::Hash { expires, .. }, None) => return Some(DeadlineMissing { expires: *expires }),
        (Key::Hash { expires, status, alive, said_online }, Some(_)) => {
            (*expires, *status, *alive, *said_online)
        }
    };
    let deadline = redis.deadline?;
    if expires != Some(deadline) {
        return Some(ExpiryDiffers { deadline, expires });
    }
    // Behind the deadline nobody is alive, and the user is about to be claimed.
    ahead?;
    let supported = match status {
        Some(OnlineStatus::Online) => alive.is_some() && said_online,
        other => other.is_some() && other == alive,
    };
    (!supported).then_some(StatusUnsupported { status, sessions: alive })
}

/// The status that SQL must come to once it has all transitions; `None` where a transition is still to be made.
fn status_in_redis(redis: &InRedis) -> Option<OnlineStatus> {
    match (redis.deadline, &redis.key) {
        (None, _) => Some(OnlineStatus::Offline),
        (Some(deadline), Key::Hash { status, .. }) if deadline >= redis.now => *status,
        _ => None,
    }
}

/// A row of somebody's history, as far as the chain goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HistoryStep {
    /// Whose.
    pub user: UserId,
    /// `presence_transitions.id`, which grows with every row of a user.
    pub id: i64,
    /// The status left behind.
    pub from: OnlineStatus,
    /// The new status.
    pub to: OnlineStatus,
}

/// A place where a history does not chain: a row begins elsewhere than the one before it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Break {
    /// The row before.
    pub before: HistoryStep,
    /// The row that does not follow.
    pub row: HistoryStep,
}

/// Looks for breaks in rows that come ordered by user and id; `last` is the row before the first of them, and becomes the
/// last one. What a history begins with is not looked at: it may be pruned.
pub fn breaks(last: &mut Option<HistoryStep>, rows: &[HistoryStep]) -> Vec<Break> {
    let mut found = Vec::new();
    for row in rows {
        if let Some(before) = last.replace(*row)
            && before.user == row.user
            && before.to != row.from
        {
            found.push(Break { before, row: *row });
        }
    }
    found
}

#[cfg(test)]
#[path = "audit_tests.rs"]
mod tests;
