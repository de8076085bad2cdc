//! Presence: all that `http` and `tasks` ask about who is there.
//!
//! Owns the group commit ([`batch`]), the merge of Redis and SQL into answers ([`read`]) and the upkeep of the fence
//! ([`fence`]). Decides no status itself: the scripts in `lua/` and the pure functions of `model` do.

use crate::model::{
    Account, HeartbeatWord, Millis, OnlineStatus, Page, SessionKey, UserId, merge::Effective,
};
use crate::store::{AccountFilter, StoreError};

/// What can go wrong when presence is asked.
#[derive(Debug, thiserror::Error)]
pub enum PresenceError {
    /// The account may not be present.
    #[error("this account may not sign in or be present")]
    Blocked,
    /// The session was logged out.
    #[error("this session has ended")]
    SessionEnded,
    /// There is no such account.
    #[error("there is no such account")]
    NoSuchAccount,
    /// Redis is away, or does not answer in time.
    #[error("Redis is not available: {0}")]
    RedisUnavailable(String),
    /// More heartbeats wait than may.
    #[error("too many heartbeats are waiting for Redis")]
    Overloaded,
    /// SQL is away, or failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What a heartbeat came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Beat {
    /// The user's status after it.
    pub status: OnlineStatus,
    /// Redis's time of that step.
    pub last_seen: Millis,
}

/// An account with its effective status.
#[derive(Debug, Clone)]
pub struct User {
    /// The account.
    pub account: Account,
    /// Its status and `last_seen` after the merge.
    pub presence: Effective,
}

/// An answer about presence, and whether SQL alone gave it.
#[derive(Debug, Clone)]
pub struct Reading<T> {
    /// The answer.
    pub value: T,
    /// Whether Redis could not be asked.
    pub degraded: bool,
}

/// One page of users.
#[derive(Debug, Clone)]
pub struct Listing {
    /// The page.
    pub users: Vec<User>,
    /// How many users match, on all pages.
    pub total: i64,
    /// How many users are online or away, whatever the page and the filter.
    pub online_count: i64,
}

/// Which users a list shows; see [`AccountFilter`].
#[derive(Debug, Clone, Default)]
pub struct ListQuery {
    /// A part of the username (and of the e-mail where the filter says so).
    pub accounts: AccountFilter,
    /// Only users of this effective status. (`accounts.presence` is filled in from it; leave it `None`.)
    pub online_status: Option<OnlineStatus>,
}

/// Whether each dependency answers; the text says what is wrong.
#[derive(Debug, Clone)]
pub struct Health {
    /// Redis.
    pub redis: Result<(), String>,
    /// SQL.
    pub database: Result<(), String>,
}

/// The service; clones share one inside.
#[derive(Clone)]
pub struct PresenceService {}

impl PresenceService {
    /// Records a heartbeat: one entry in the group commit.
    ///
    /// # Errors
    /// [`PresenceError::Blocked`], [`PresenceError::SessionEnded`], [`PresenceError::RedisUnavailable`],
    /// [`PresenceError::Overloaded`].
    pub async fn heartbeat(&self, who: &SessionKey, word: HeartbeatWord) -> Result<Beat, PresenceError> {
        let _ = (who, word);
        todo!()
    }

    /// Lets a reader in: an activity touch; where Redis is away, SQL says whether account and session still may.
    pub async fn admit_reader(&self, who: &SessionKey) -> Result<(), PresenceError> {
        let _ = who;
        todo!()
    }

    /// Whether account and session still may, without counting as activity (for a logout).
    pub async fn check(&self, who: &SessionKey) -> Result<(), PresenceError> {
        let _ = who;
        todo!()
    }

    /// A session ends: its tokens stop working, and the user is offline unless another session is alive.
    pub async fn leave(&self, who: &SessionKey) -> Result<(), PresenceError> {
        let _ = who;
        todo!()
    }

    /// An administrator sets a status.
    pub async fn set_status(&self, user: UserId, to: OnlineStatus) -> Result<User, PresenceError> {
        let _ = (user, to);
        todo!()
    }

    /// Brings the fence in Redis, and with it the live set, in line with what SQL now says of these accounts.
    pub async fn account_changed(&self, users: &[UserId]) -> Result<(), PresenceError> {
        let _ = users;
        todo!()
    }

    /// The effective status of these accounts, in their order.
    pub async fn read(&self, accounts: Vec<Account>) -> Result<Reading<Vec<User>>, PresenceError> {
        let _ = accounts;
        todo!()
    }

    /// One account with its status.
    pub async fn user(&self, id: UserId) -> Result<Reading<Option<User>>, PresenceError> {
        let _ = id;
        todo!()
    }

    /// A page of all accounts that match.
    pub async fn list(&self, query: &ListQuery, page: Page) -> Result<Reading<Listing>, PresenceError> {
        let _ = (query, page);
        todo!()
    }

    /// A page of who is online or away, most recently seen first.
    pub async fn online(&self, page: Page) -> Result<Reading<Listing>, PresenceError> {
        let _ = page;
        todo!()
    }

    /// Asks each dependency; answers within 2 s whatever their state.
    pub async fn health(&self) -> Health {
        todo!()
    }
}
