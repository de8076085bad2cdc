//! Rows of both databases, as they come, and what this room makes of them.

use chrono::{DateTime, Utc};
use sqlx::FromRow;

use super::{Credentials, MirrorRow, PasswordHash, Result, Session, StoreError};
use crate::model::account::UnknownWord;
use crate::model::audit::{HistoryStep, InSql};
use crate::model::history::{Bounds, Recorded, Stored};
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

/// A row of `users` as far as presence goes, with the newest row of its history, and the newest transition that SQL has
/// taken of any user.
#[derive(Debug, FromRow)]
pub struct StoredRow {
    id: UserId,
    online_status: String,
    presence_version: i64,
    last_seen: Option<DateTime<Utc>>,
    to_status: Option<String>,
    stream_id: Option<String>,
    newest_ms: Option<i64>,
    newest_seq: Option<i64>,
}

/// A row of `users` as far as presence goes.
#[derive(Debug, FromRow)]
pub struct PresenceRow {
    id: UserId,
    online_status: String,
    last_seen: Option<DateTime<Utc>>,
}

/// Reads `presence_transitions.stream_id`, `<shard>/<ms>-<seq>`: the id of the entry in its shard.
pub fn entry_id(stream_id: &str) -> Option<StreamId> {
    stream_id.split_once('/')?.1.parse().ok()
}

/// Reads `presence_positions.stream_ms` and `stream_seq`.
pub fn position(ms: i64, seq: i64) -> StreamId {
    StreamId { ms: ms.max(0).unsigned_abs(), seq: seq.max(0).unsigned_abs() }
}

/// Redis's time of an entry.
pub fn instant(id: StreamId) -> Millis {
    Millis(i64::try_from(id.ms).unwrap_or(i64::MAX))
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

impl StoredRow {
    /// The user, and where its history has got to; a `last_seen` after `latest` counts as none.
    pub fn into_recorded(self, latest: Millis) -> Result<(UserId, Recorded)> {
        let to = self.to_status.map(|to| word("presence_transitions.to_status", &to)).transpose()?;
        let stored = Stored {
            mirror: word("users.online_status", &self.online_status)?,
            version: self.presence_version,
            last_seen: self.last_seen.map(Millis::from_utc),
            newest: to.map(|to| {
                let id = self.stream_id.as_deref().and_then(entry_id);
                (to, id.unwrap_or(StreamId { ms: 0, seq: 0 }))
            }),
        };
        let newest = position(self.newest_ms.unwrap_or(0), self.newest_seq.unwrap_or(0));
        Ok((self.id, stored.recorded(Bounds { version: newest.version(), last_seen: latest })))
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
