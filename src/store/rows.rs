//! Rows of both databases, as they come, and what this room makes of them.

use chrono::{DateTime, Utc};
use sqlx::FromRow;

use super::{Credentials, MirrorRow, PasswordHash, Result, Session, StoreError};
use crate::model::account::UnknownWord;
use crate::model::audit::{HistoryStep, InSql};
use crate::model::history::Recorded;
use crate::model::{Account, Actor, Deed, Millis, SessionId, StreamId, TrailEntry, UserId};

/// The columns of [`AccountRow`], of the table `users` or an alias `u` that both statements and joins go by.
macro_rules! account_columns {
    () => {
        "u.id, u.username, u.email, u.role, u.status, u.is_active, u.online_status, u.last_seen"
    };
}
pub(super) use account_columns;

/// A row of `users`.
#[derive(Debug, FromRow)]
pub struct AccountRow {
    id: UserId,
    username: String,
    email: String,
    role: String,
    status: String,
    is_active: bool,
    online_status: String,
    last_seen: Option<DateTime<Utc>>,
}

/// A row of `users` with its password hash.
#[derive(FromRow)]
pub struct CredentialsRow {
    #[sqlx(flatten)]
    account: AccountRow,
    password_hash: String,
}

/// Where a user's history has got to.
#[derive(Debug, FromRow)]
pub struct RecordedRow {
    id: UserId,
    online_status: String,
    presence_version: i64,
    last_seen: Option<DateTime<Utc>>,
}

/// A row of `users` as far as presence goes.
#[derive(Debug, FromRow)]
pub struct PresenceRow {
    id: UserId,
    online_status: String,
    last_seen: Option<DateTime<Utc>>,
}

/// Reads `presence_transitions.stream_id`, `<shard>/<ms>-<seq>`: Redis's time of the entry.
pub fn instant(stream_id: &str) -> Option<Millis> {
    let id: StreamId = stream_id.split_once('/')?.1.parse().ok()?;
    Some(Millis(i64::try_from(id.ms).ok()?))
}

/// A row of `users` with the newest word of its history.
#[derive(Debug, FromRow)]
pub struct ComparedRow {
    id: UserId,
    may_be_present: bool,
    online_status: String,
    presence_version: i64,
    last_seen: Option<DateTime<Utc>>,
    history: Option<String>,
}

/// A row of `presence_transitions` as far as the chain goes.
#[derive(Debug, FromRow)]
pub struct StepRow {
    user_id: UserId,
    id: i64,
    from_status: String,
    to_status: String,
}

/// A row of `login_sessions`.
#[derive(Debug, FromRow)]
pub struct SessionRow {
    sid: String,
    created_at: DateTime<Utc>,
    last_used_at: DateTime<Utc>,
    user_agent: Option<String>,
}

/// A row of `admin_actions`.
#[derive(Debug, FromRow)]
pub struct TrailRow {
    id: i64,
    at: DateTime<Utc>,
    actor_id: UserId,
    actor_username: String,
    address: String,
    action: String,
    user_id: UserId,
    username: String,
    changes: String,
}

/// Reads a word of a closed list.
pub fn word<T: std::str::FromStr<Err = UnknownWord>>(column: &'static str, word: &str) -> Result<T> {
    word.parse().map_err(|source| StoreError::Word { column, source })
}

impl TryFrom<AccountRow> for Account {
    type Error = StoreError;

    fn try_from(row: AccountRow) -> Result<Self> {
        Ok(Self {
            id: row.id,
            role: word("users.role", &row.role)?,
            status: word("users.status", &row.status)?,
            is_active: row.is_active,
            mirror: word("users.online_status", &row.online_status)?,
            last_seen: row.last_seen.map(Millis::from_utc),
            username: row.username,
            email: row.email,
        })
    }
}

impl TryFrom<CredentialsRow> for Credentials {
    type Error = StoreError;

    fn try_from(row: CredentialsRow) -> Result<Self> {
        Ok(Self { account: row.account.try_into()?, password_hash: PasswordHash(row.password_hash) })
    }
}

impl TryFrom<RecordedRow> for (UserId, Recorded) {
    type Error = StoreError;

    fn try_from(row: RecordedRow) -> Result<Self> {
        let recorded = Recorded {
            status: word("users.online_status", &row.online_status)?,
            version: row.presence_version,
            last_seen: row.last_seen.map(Millis::from_utc),
        };
        Ok((row.id, recorded))
    }
}

impl TryFrom<PresenceRow> for MirrorRow {
    type Error = StoreError;

    fn try_from(row: PresenceRow) -> Result<Self> {
        Ok(Self {
            user: row.id,
            status: word("users.online_status", &row.online_status)?,
            last_seen: row.last_seen.map(Millis::from_utc),
        })
    }
}

impl TryFrom<ComparedRow> for InSql {
    type Error = StoreError;

    fn try_from(row: ComparedRow) -> Result<Self> {
        let history = row.history.map(|history| word("presence_transitions.to_status", &history));
        Ok(Self {
            user: row.id,
            may_be_present: row.may_be_present,
            mirror: word("users.online_status", &row.online_status)?,
            version: row.presence_version,
            last_seen: row.last_seen.map(Millis::from_utc),
            history: history.transpose()?,
        })
    }
}

impl TryFrom<StepRow> for HistoryStep {
    type Error = StoreError;

    fn try_from(row: StepRow) -> Result<Self> {
        Ok(Self {
            user: row.user_id,
            id: row.id,
            from: word("presence_transitions.from_status", &row.from_status)?,
            to: word("presence_transitions.to_status", &row.to_status)?,
        })
    }
}

impl TryFrom<TrailRow> for TrailEntry {
    type Error = StoreError;

    fn try_from(row: TrailRow) -> Result<Self> {
        let changes = serde_json::from_str(&row.changes)
            .map_err(|error| StoreError::Database(Box::new(sqlx::Error::Decode(error.into()))))?;
        Ok(Self {
            id: row.id,
            at: Millis::from_utc(row.at),
            actor: Actor { user: row.actor_id, username: row.actor_username, address: row.address },
            deed: Deed {
                action: word("admin_actions.action", &row.action)?,
                user: row.user_id,
                username: row.username,
                changes,
            },
        })
    }
}

impl SessionRow {
    /// The session; `None` where its name is none that a token could carry.
    pub fn into_session(self) -> Option<Session> {
        Some(Session {
            sid: SessionId::parse(&self.sid)?,
            created_at: Millis::from_utc(self.created_at),
            last_used_at: Millis::from_utc(self.last_used_at),
            user_agent: self.user_agent,
        })
    }
}

/// All rows made into what they stand for.
pub fn convert<R, T: TryFrom<R, Error = StoreError>>(rows: Vec<R>) -> Result<Vec<T>> {
    rows.into_iter().map(T::try_from).collect()
}

/// What a statement that always gives a row has not given.
pub fn no_row() -> StoreError {
    StoreError::Database(Box::new(sqlx::Error::RowNotFound))
}
