//! Accounts: the rows of `users`, and the account rule.

use std::fmt;
use std::str::FromStr;

use super::{Millis, OnlineStatus};

/// Primary key of `users`: a positive integer, also the plain member of the live set.
pub type UserId = i64;

/// What `users.status` may say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum AccountStatus {
    /// In good standing.
    Active,
    /// Registered, not yet confirmed; may be present.
    Pending,
    /// Closed by its owner or by age.
    Inactive,
    /// Blocked for a while.
    Suspended,
    /// Blocked for good.
    Banned,
}

impl AccountStatus {
    /// Every status, in the order in which error messages list them.
    pub const ALL: [Self; 5] = [Self::Active, Self::Pending, Self::Inactive, Self::Suspended, Self::Banned];

    /// The word in SQL and JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Pending => "pending",
            Self::Inactive => "inactive",
            Self::Suspended => "suspended",
            Self::Banned => "banned",
        }
    }
}

/// What an account may do: `admin` opens the administration, `user` does not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// Everyone.
    User,
    /// May administer accounts and set statuses.
    Admin,
}

impl Role {
    /// Every role, in the order in which error messages list them.
    pub const ALL: [Self; 2] = [Self::User, Self::Admin];

    /// The word in SQL and JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::Admin => "admin",
        }
    }
}

/// A word that is none of a closed list.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("must be one of {allowed}")]
pub struct UnknownWord {
    /// The allowed words, comma-separated.
    pub allowed: String,
}

/// Picks the item of `all` whose word is `word`; the error lists the allowed words.
pub fn pick<T: Copy>(word: &str, all: &[T], as_str: fn(T) -> &'static str) -> Result<T, UnknownWord> {
    all.iter().copied().find(|item| as_str(*item) == word).ok_or_else(|| UnknownWord {
        allowed: all.iter().map(|item| as_str(*item)).collect::<Vec<_>>().join(", "),
    })
}

impl FromStr for AccountStatus {
    type Err = UnknownWord;
    fn from_str(word: &str) -> Result<Self, UnknownWord> {
        pick(word, &Self::ALL, Self::as_str)
    }
}

impl FromStr for Role {
    type Err = UnknownWord;
    fn from_str(word: &str) -> Result<Self, UnknownWord> {
        pick(word, &Self::ALL, Self::as_str)
    }
}

impl fmt::Display for AccountStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A row of `users`, without its password hash.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    /// Primary key.
    pub id: UserId,
    /// Unique whatever its case.
    pub username: String,
    /// Unique whatever its case.
    pub email: String,
    /// What the account may do.
    pub role: Role,
    /// Its standing.
    pub status: AccountStatus,
    /// The second switch of the account rule.
    pub is_active: bool,
    /// SQL's mirror of the status in Redis: evidence only where Redis cannot be asked.
    pub mirror: OnlineStatus,
    /// SQL's `last_seen`, written behind; `None` where the user was never present.
    pub last_seen: Option<Millis>,
}

impl Account {
    /// The account rule, asked of this row.
    pub fn may_be_present(&self) -> bool {
        may_be_present(self.status, self.is_active)
    }
}

/// **The account rule**: an account may be present iff it is active and its status is none of `inactive`,
/// `suspended`, `banned`. The views and triggers of `migrations/` say the same in SQL, and a conformance test holds
/// them to it.
pub const fn may_be_present(status: AccountStatus, is_active: bool) -> bool {
    is_active && matches!(status, AccountStatus::Active | AccountStatus::Pending)
}
