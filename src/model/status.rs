//! The three words that a user's presence can have.

use std::fmt;
use std::str::FromStr;

use super::account::{UnknownWord, pick};

/// A user's status as everyone sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum OnlineStatus {
    /// A session of the user is alive and at work.
    Online,
    /// Sessions are alive, all of them idle by their own word.
    Away,
    /// No session is alive, or the account may not be present.
    Offline,
}

impl OnlineStatus {
    /// Every status, in the order in which error messages list them.
    pub const ALL: [Self; 3] = [Self::Online, Self::Away, Self::Offline];

    /// The word in Redis, SQL and JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Online => "online",
            Self::Away => "away",
            Self::Offline => "offline",
        }
    }

    /// Whether the user is there at all: `online_status != "offline"`.
    pub const fn is_online(self) -> bool {
        !matches!(self, Self::Offline)
    }
}

impl FromStr for OnlineStatus {
    type Err = UnknownWord;
    fn from_str(word: &str) -> Result<Self, UnknownWord> {
        pick(word, &Self::ALL, Self::as_str)
    }
}

impl fmt::Display for OnlineStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
