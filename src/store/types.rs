//! What the store takes and gives.

use std::fmt;

use crate::files::FileError;
use crate::model::{
    Account, AccountStatus, Action, Actor, Change, Deed, Millis, OnlineStatus, Role, SessionId, TrailEntry,
    UserId, account::UnknownWord,
};

/// What can go wrong with SQL.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The database could not be reached, refused, or took too long.
    #[error("the database is not available: {0}")]
    Unavailable(#[source] Box<sqlx::Error>),
    /// Too many statements that read every account run, or wait, already.
    #[error("too many searches wait for the database")]
    Busy,
    /// Another transaction held what this call needed, for as long as the call could wait.
    #[error(
        "another transaction in the database holds a lock that this needs; it may succeed when that has ended: {0}"
    )]
    Locked(#[source] Box<sqlx::Error>),
    /// The database answered with an error.
    #[error("the database refused a statement: {0}")]
    Database(#[source] Box<sqlx::Error>),
    /// The schema could not be brought up to date.
    #[error("the migrations did not run: {0}")]
    Migrate(#[from] sqlx::migrate::MigrateError),
    /// A unique field is another account's already.
    #[error("this {field} is taken")]
    Taken {
        /// `username` or `email`.
        field: &'static str,
    },
    /// Nobody would be left who can administer.
    #[error("this is the last account that can administer")]
    LastAdministrator,
    /// The record of an administrator's action could not be written, so the action was not taken.
    #[error("the record of an administrator's action could not be written: {0}")]
    Unrecorded(#[source] Box<StoreError>),
    /// A text holds what the database cannot keep: a NUL character.
    #[error("this {field} holds a character that cannot be kept")]
    Unfit {
        /// `username`, `email` or `password`.
        field: &'static str,
    },
    /// A row holds a word that this version does not know.
    #[error("column {column} holds a word that this version does not know: {source}")]
    Word {
        /// Table and column.
        column: &'static str,
        /// What it may be.
        source: UnknownWord,
    },
    /// The URL cannot be used.
    #[error("DATABASE_URL cannot be used: {0}")]
    Url(String),
    /// A file of the database is not private, and cannot be made so.
    #[error(transparent)]
    File(#[from] FileError),
}

impl StoreError {
    /// As the reason why an action was not recorded.
    pub(super) fn unrecorded(self) -> Self {
        if self.is_unavailable() { self } else { Self::Unrecorded(Box::new(self)) }
    }

    /// Whether the same call may succeed later.
    pub const fn is_unavailable(&self) -> bool {
        matches!(self, Self::Unavailable(_) | Self::Locked(_))
    }

    /// Whether there was no place for the call, in a database that is well.
    pub const fn is_busy(&self) -> bool {
        matches!(self, Self::Busy)
    }
}

/// A password hash: a PHC string, or as Django stores it. Its `Debug` shows nothing.
#[derive(Clone, PartialEq, Eq)]
pub struct PasswordHash(pub String);

impl fmt::Debug for PasswordHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PasswordHash(…)")
    }
}

/// An account to add.
#[derive(Debug, Clone)]
pub struct NewAccount {
    /// No other account's username or e-mail address.
    pub username: String,
    /// No other account's username or e-mail address.
    pub email: String,
    /// Hash of the password.
    pub password_hash: PasswordHash,
    /// What it may do.
    pub role: Role,
    /// Its standing.
    pub status: AccountStatus,
}

/// An account with the hash of its password.
#[derive(Debug, Clone)]
pub struct Credentials {
    /// The account.
    pub account: Account,
    /// Hash of the password.
    pub password_hash: PasswordHash,
}

/// What to change of an account; `None` leaves a field as it is.
#[derive(Debug, Clone, Default)]
pub struct AccountPatch {
    /// New e-mail.
    pub email: Option<String>,
    /// New role.
    pub role: Option<Role>,
    /// New standing.
    pub status: Option<AccountStatus>,
    /// New value of the switch.
    pub is_active: Option<bool>,
    /// Hash of a new password.
    pub password_hash: Option<PasswordHash>,
}

/// Which accounts a list shows.
#[derive(Debug, Clone, Default)]
pub struct AccountFilter {
    /// A part of the username, compared in folded form ([`crate::model::login_name::fold`]); `%`, `_` and `\` are plain
    /// characters.
    pub search: Option<String>,
    /// Whether `search` looks into e-mails too.
    pub search_email: EmailSearch,
    /// Only accounts of this standing.
    pub status: Option<AccountStatus>,
    /// Only accounts whose effective status is this.
    pub presence: Option<PresenceFilter>,
}

/// Whether a search looks into e-mails, which are for administrators.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum EmailSearch {
    /// It does not.
    #[default]
    No,
    /// It does.
    Yes,
    /// It does if this account has the role `admin` as the search is made.
    IfAdmin(UserId),
}

/// Asks for an effective status: that of `corrections` where it names the user, else the mirror; offline wherever the
/// account may not be present.
#[derive(Debug, Clone)]
pub struct PresenceFilter {
    /// The status asked for.
    pub is: OnlineStatus,
    /// Users of whom Redis knows something that has not reached the mirror yet, each at most once.
    pub corrections: Vec<(UserId, OnlineStatus)>,
    /// Where set, the mirror counts only for users last seen at this instant or later; the others are offline.
    pub mirror_counts_since: Option<Millis>,
}

/// One page of accounts.
#[derive(Debug, Clone)]
pub struct AccountList {
    /// The page.
    pub accounts: Vec<Account>,
    /// Whether others follow it.
    pub has_more: bool,
    /// Who asks, as of the same instant: those who exist, in any order.
    pub askers: Vec<Account>,
    /// How many accounts match, on all pages.
    pub total: i64,
}

/// Which entries of the trail are asked for.
#[derive(Debug, Clone, Copy, Default)]
pub struct TrailFilter {
    /// Only what was done to this account.
    pub user: Option<UserId>,
    /// Only what this administrator did.
    pub actor: Option<UserId>,
    /// Only this kind.
    pub action: Option<Action>,
}

/// One page of the trail.
#[derive(Debug, Clone)]
pub struct Trail {
    /// The page, newest first.
    pub entries: Vec<TrailEntry>,
    /// How many entries match, on all pages.
    pub total: i64,
}

/// Whether an account may be present.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// It may.
    MayBePresent,
    /// It may not.
    Blocked,
    /// There is no such account.
    Gone,
}

impl Standing {
    /// The standing of an account of which SQL says whether it may be present; `None` where there is no row.
    pub(super) const fn of(may_be_present: Option<bool>) -> Self {
        match may_be_present {
            Some(true) => Self::MayBePresent,
            Some(false) => Self::Blocked,
            None => Self::Gone,
        }
    }
}

/// A place in the log of account changes; opaque, one word of ASCII without spaces, kept in Redis with the fence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChangeCursor(pub String);

/// What happened to accounts since a cursor.
#[derive(Debug, Clone)]
pub struct AccountChanges {
    /// Where to go on.
    pub cursor: ChangeCursor,
    /// Who changed, each once.
    pub users: Vec<UserId>,
}

/// What may have changed when a wait ended. After a timeout, or where it is not known, both.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Woken {
    /// The log of account changes may have grown.
    pub accounts: bool,
    /// Sessions may have ended.
    pub sessions: bool,
}

impl Woken {
    /// Both may have changed.
    pub(super) const BOTH: Self = Self { accounts: true, sessions: true };
}

/// SHA-256 of a refresh token: all that SQL keeps of it.
pub type RefreshHash = [u8; 32];

/// A session to add.
#[derive(Debug, Clone)]
pub struct NewSession {
    /// Its name, unique.
    pub sid: SessionId,
    /// Whose it is.
    pub user: UserId,
    /// Its first refresh token.
    pub refresh_hash: RefreshHash,
    /// When that token expires.
    pub refresh_expires_at: Millis,
    /// What the client said it is; at most 256 characters are kept.
    pub user_agent: Option<String>,
    /// The hash that the password was checked against: where the account has another by now, or is gone, there is no
    /// session. `None` checks only that the account is there.
    pub password_hash: Option<PasswordHash>,
    /// The most sessions that the account may have alive, this one included; at least 1.
    pub most_alive: u32,
    /// Now, by the clock of Redis.
    pub now: Millis,
}

/// A session that was added.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Begun {
    /// Older sessions of the account that ended to make room for it.
    pub displaced: Vec<SessionId>,
}

/// Sessions to end.
#[derive(Debug, Clone, Copy)]
pub struct SessionEnd<'a> {
    /// Whose sessions.
    pub user: UserId,
    /// Which one; `None` for all that are alive.
    pub sid: Option<&'a SessionId>,
    /// Now, for people: no decision depends on it.
    pub now: Millis,
    /// The administrator who ends another account's sessions, and that account's username: recorded in the same transaction.
    pub by: Option<(&'a Actor, &'a str)>,
}

impl SessionEnd<'_> {
    /// The record of it in the trail.
    pub(super) fn deed(&self, username: &str, ended: &[SessionId]) -> Deed {
        Deed {
            action: Action::EndSessions,
            user: self.user,
            username: username.to_owned(),
            changes: ended.iter().map(|sid| Change::new("session", Some(sid.as_str()), None)).collect(),
        }
    }
}

/// Sessions that have ended.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Ended {
    /// Those that were alive until now.
    pub sids: Vec<SessionId>,
    /// Whether others may be alive still: a call ends a bounded number.
    pub more: bool,
}

/// One page of an account's sessions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionList {
    /// The page, newest first.
    pub sessions: Vec<Session>,
    /// How many are alive, on all pages.
    pub total: i64,
}

/// The end of a session that Redis has not been told of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UntoldEnd {
    /// Whose session it was.
    pub user: UserId,
    /// Its name as the row has it, which plain SQL may have written.
    pub sid: String,
    /// Whether the account may not be present: Redis then refuses its tokens anyway.
    pub blocked: bool,
}

/// One page of the ends that Redis has not been told of.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct UntoldEnds {
    /// The page, by account: a bounded number of accounts and of ends of each.
    pub ends: Vec<UntoldEnd>,
    /// The account after which the next page begins; `None` where this was the last page.
    pub next: Option<UserId>,
}

/// A login session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Session {
    /// Its name.
    pub sid: SessionId,
    /// When the user signed in.
    pub created_at: Millis,
    /// When it last refreshed its tokens.
    pub last_used_at: Millis,
    /// What the client said it is.
    pub user_agent: Option<String>,
}

/// A refresh token spent for its successor.
#[derive(Debug, Clone)]
pub struct RotationRequest {
    /// The session that the token names.
    pub sid: SessionId,
    /// The account that the token names.
    pub user: UserId,
    /// The token presented.
    pub presented: RefreshHash,
    /// Its successor.
    pub successor: RefreshHash,
    /// When the successor expires.
    pub successor_expires_at: Millis,
    /// A session that began before this instant is too old and ends; `None` for no bound.
    pub begun_since: Option<Millis>,
    /// Now, by the clock of Redis.
    pub now: Millis,
    /// For how long after its first use a token may be used again, ms.
    pub grace_ms: i64,
}

/// What became of a refresh token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rotation {
    /// It was good, or used for the first time no longer than the grace ago; the successor is valid.
    Rotated,
    /// It had been used before the grace: theft. The session has been ended by this call.
    Reused,
    /// The session has reached its greatest age. It has been ended by this call.
    TooOld,
    /// The session ended before, is unknown, or is not this user's.
    Ended,
}

/// What a batch of transitions came to.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RecordOutcome {
    /// History rows added.
    pub recorded: usize,
    /// Users whom SQL does not know, each once: their transitions were set aside.
    pub unknown: Vec<UserId>,
    /// Users whose row another transaction holds, ascending: nothing of theirs was recorded. Their transitions must come
    /// again before any later ones of theirs.
    pub locked: Vec<UserId>,
}

/// A user whom the mirror calls present.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MirrorRow {
    /// The user.
    pub user: UserId,
    /// `online` or `away`.
    pub status: OnlineStatus,
    /// `users.last_seen`.
    pub last_seen: Option<Millis>,
}

/// How many transitions were set aside, because SQL knew nothing of the user.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SetAside {
    /// How many; no further than [`SetAside::COUNTED`].
    pub count: u64,
    /// When the latest of them was.
    pub latest: Option<Millis>,
}

impl SetAside {
    /// As far as they are counted.
    pub const COUNTED: u64 = 10_000;
}
