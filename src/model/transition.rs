//! Transitions: changes of a user's status, as the scripts append them to the stream.

use std::fmt;
use std::str::FromStr;

use super::account::{UnknownWord, pick};
use super::{Millis, OnlineStatus, UserId};

/// Why a status changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reason {
    /// The user signed in.
    Login,
    /// A heartbeat or any other authenticated request.
    Heartbeat,
    /// The session ended.
    Logout,
    /// The deadline passed.
    Expired,
    /// An administrator set the status.
    Admin,
    /// The account may not be present any more.
    Blocked,
}

impl Reason {
    /// Every reason.
    pub const ALL: [Self; 6] =
        [Self::Login, Self::Heartbeat, Self::Logout, Self::Expired, Self::Admin, Self::Blocked];

    /// The word in Redis and SQL.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Login => "login",
            Self::Heartbeat => "heartbeat",
            Self::Logout => "logout",
            Self::Expired => "expired",
            Self::Admin => "admin",
            Self::Blocked => "blocked",
        }
    }
}

impl FromStr for Reason {
    type Err = UnknownWord;
    fn from_str(word: &str) -> Result<Self, UnknownWord> {
        pick(word, &Self::ALL, Self::as_str)
    }
}

/// The id of a stream entry, `<ms>-<seq>`: it grows with every entry of a shard, so it serves as the version that
/// fences SQL (invariant 5).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamId {
    /// Redis's clock when the entry was appended, ms.
    pub ms: u64,
    /// Number within that millisecond.
    pub seq: u64,
}

impl StreamId {
    const SEQ_BITS: u32 = 20;

    /// The id as one growing number: 43 bits of milliseconds (until the year 2248), 20 bits of sequence. Where a
    /// millisecond has more than a million entries, as for a stream whose ids are ahead of the clock, the number goes on
    /// into the milliseconds that follow.
    pub fn version(self) -> i64 {
        let (ms, unit) = (u128::from(self.ms), 1_u128 << Self::SEQ_BITS);
        i64::try_from(ms * unit + u128::from(self.seq)).unwrap_or(i64::MAX)
    }
}

impl FromStr for StreamId {
    type Err = std::num::ParseIntError;
    fn from_str(id: &str) -> Result<Self, Self::Err> {
        let (ms, seq) = id.split_once('-').unwrap_or((id, "0"));
        Ok(Self { ms: ms.parse()?, seq: seq.parse()? })
    }
}

impl fmt::Display for StreamId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.ms, self.seq)
    }
}

/// One entry of `presence:{S}:transitions`.
///
/// The status that it leaves behind is not part of it: an expired key has taken that word with it, so the persister
/// reads it off the user's history ([`super::history::chain`]).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transition {
    /// The entry's id within its shard.
    pub id: StreamId,
    /// Whose status changed.
    pub user: UserId,
    /// The new status.
    pub to: OnlineStatus,
    /// Why.
    pub reason: Reason,
    /// When it became true, by Redis's clock.
    pub at: Millis,
    /// The user's last heartbeat as of this step; `None` where the step does not know it.
    pub last_seen: Option<Millis>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_grows_as_its_id_does() {
        let ids = [
            "5-0",
            "5-1",
            "5-99999",
            "5-1048575",
            "5-1048576",
            "5-9999999",
            "16-0",
            "1768473000120-0",
            "1768473000120-7",
            "1768473000121-0",
        ];
        let versions: Vec<i64> = ids.iter().map(|id| id.parse::<StreamId>().unwrap().version()).collect();
        assert!(versions.is_sorted_by(|a, b| a < b), "{versions:?}");
    }

    #[test]
    fn an_id_is_printed_as_redis_prints_it() {
        assert_eq!("1768473000120-3".parse::<StreamId>().unwrap().to_string(), "1768473000120-3");
    }
}
