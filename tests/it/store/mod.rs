//! The conformance suite of the store: every test runs on SQLite and on a real PostgreSQL.

mod accounts;
mod audit;
mod changes;
mod copy;
mod counts;
mod history;
mod import;
mod leftovers;
mod locks;
mod mirror;
mod names;
mod names_on_postgres;
mod outage;
mod replication;
mod scans;
mod schema;
mod session_ends;
mod sessions;
mod trail;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use presenced::model::{
    Account, AccountStatus, Millis, OnlineStatus, Reason, Role, StreamId, Transition, UserId,
};
use presenced::store::{
    ChangeCursor, NewAccount, Options, PasswordHash, RecordOutcome, Store, StoreError, open,
};
use sqlx::{AssertSqlSafe, PgPool, SqlitePool};

use crate::support::poll::eventually;
use crate::support::postgres::{Postgres, TestDatabase};

/// After every instant in the tests: nothing lies in its future.
pub const LATER: Millis = Millis(4_102_444_800_000);

/// Makes each function a test on either database.
macro_rules! on_both {
    ($($(#[$meta:meta])* $name:ident),+ $(,)?) => {
        mod sqlite {
            $($(#[$meta])* #[tokio::test] async fn $name() { super::$name($crate::store::Db::sqlite().await).await; })+
        }
        mod postgres {
            $($(#[$meta])* #[tokio::test] async fn $name() { super::$name($crate::store::Db::postgres().await).await; })+
        }
    };
}
pub(crate) use on_both;

/// A migrated database of one test's own, and a connection to it that is not the store's: the operator's.
pub struct Db {
    pub store: Arc<dyn Store>,
    pub url: String,
    operator: Operator,
    _kept: Kept,
}

enum Operator {
    Sqlite(SqlitePool),
    Postgres(PgPool),
}

enum Kept {
    Folder { _folder: tempfile::TempDir },
    Database { _database: TestDatabase },
}

impl Db {
    pub async fn sqlite() -> Self {
        let db = Self::empty_sqlite().await;
        db.store.migrate().await.unwrap();
        db
    }

    pub async fn postgres() -> Self {
        let db = Self::empty_postgres().await;
        db.store.migrate().await.unwrap();
        db
    }

    pub async fn empty_sqlite() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("sqlite://{}", folder.path().join("of/its/own/presence.db").display());
        let store = open(&url, &Options::default()).await.unwrap();
        let operator = Operator::Sqlite(SqlitePool::connect(&url).await.unwrap());
        Self { store, url, operator, _kept: Kept::Folder { _folder: folder } }
    }

    pub async fn empty_postgres() -> Self {
        Self::empty_postgres_with("").await
    }

    /// With further options of `CREATE DATABASE`.
    pub async fn empty_postgres_with(options: &str) -> Self {
        let database = Postgres::database_with(options).await;
        let url = database.url.clone();
        let store = open(&url, &Options::default()).await.unwrap();
        let operator = Operator::Postgres(PgPool::connect(&url).await.unwrap());
        Self { store, url, operator, _kept: Kept::Database { _database: database } }
    }

    pub const fn is_postgres(&self) -> bool {
        matches!(self.operator, Operator::Postgres(_))
    }

    /// A second handle, as another instance has one.
    pub async fn another(&self) -> Arc<dyn Store> {
        open(&self.url, &Options::default()).await.unwrap()
    }

    /// What an operator types; both databases understand it.
    pub async fn sql(&self, sql: &str) {
        self.try_sql(sql).await.unwrap();
    }

    pub async fn try_sql(&self, sql: &str) -> Result<(), sqlx::Error> {
        let script = sqlx::raw_sql(AssertSqlSafe(sql.to_owned()));
        match &self.operator {
            Operator::Sqlite(pool) => script.execute(pool).await.map(drop),
            Operator::Postgres(pool) => script.execute(pool).await.map(drop),
        }
    }

    /// The rows of a query of one text column.
    pub async fn texts(&self, sql: &str) -> Vec<String> {
        let query = sqlx::query_scalar(AssertSqlSafe(sql.to_owned()));
        match &self.operator {
            Operator::Sqlite(pool) => query.fetch_all(pool).await.unwrap(),
            Operator::Postgres(pool) => {
                sqlx::query_scalar(AssertSqlSafe(sql.to_owned())).fetch_all(pool).await.unwrap()
            }
        }
    }

    /// Records a batch that was taken at an instant after all instants of the tests.
    pub async fn record(&self, shard: u32, batch: &[Transition]) -> Result<RecordOutcome, StoreError> {
        self.store.record(shard, batch, LATER).await
    }

    /// Writes `last_seen` behind, at an instant after all instants of the tests.
    pub async fn touch(&self, seen: &[(UserId, Millis)]) -> Result<u64, StoreError> {
        self.store.touch_last_seen(seen, LATER).await
    }

    /// Changes columns of presence as the service does, which no trigger puts back: what restored dumps and disabled triggers
    /// leave behind.
    pub async fn falsify(&self, change: &str, condition: &str) {
        self.sql(&format!(
            "UPDATE users SET {change}, presence_writes = presence_writes + 1 WHERE {condition}"
        ))
        .await;
    }

    /// An account of this name, active.
    pub async fn user(&self, name: &str) -> UserId {
        self.user_with(name, AccountStatus::Active).await.id
    }

    /// An account that can administer.
    pub async fn administrator(&self) -> UserId {
        let name = format!("root{}", serial());
        let new = NewAccount { role: Role::Admin, ..new_account(&name) };
        self.store.create_account(&new, None).await.unwrap().id
    }

    pub async fn user_with(&self, name: &str, status: AccountStatus) -> Account {
        self.store.create_account(&NewAccount { status, ..new_account(name) }, None).await.unwrap()
    }

    /// Accounts with the ids from 1 to `count`, in a database that has none.
    pub async fn users(&self, count: u32) {
        let numbers = match self.operator {
            Operator::Sqlite(_) => {
                format!("WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {count})")
            }
            Operator::Postgres(_) => format!("WITH n (i) AS (SELECT generate_series(1, {count}))"),
        };
        let insert =
            "INSERT INTO users (username, email, password_hash) SELECT 'u' || i, 'u' || i, 'x' FROM n";
        self.sql(&format!("{numbers} {insert}")).await;
    }

    /// Brings an empty database to the schema of a version before: the migrations of smaller numbers.
    pub async fn migrate_below(&self, number: i64) {
        let folder = match self.operator {
            Operator::Sqlite(_) => "migrations/sqlite",
            Operator::Postgres(_) => "migrations/postgres",
        };
        let mut migrator = sqlx::migrate::Migrator::new(std::path::Path::new(folder)).await.unwrap();
        migrator.migrations.to_mut().retain(|migration| migration.version < number);
        match &self.operator {
            Operator::Sqlite(pool) => migrator.run(pool).await.unwrap(),
            Operator::Postgres(pool) => migrator.run(pool).await.unwrap(),
        }
    }

    /// From now on the database refuses every record of what administrators do.
    pub async fn refuse_records(&self) {
        self.sql(match self.operator {
            Operator::Sqlite(_) => {
                "CREATE TRIGGER refuse BEFORE INSERT ON admin_actions BEGIN SELECT RAISE(ABORT, 'full'); END"
            }
            Operator::Postgres(_) => {
                "ALTER TABLE admin_actions ADD CONSTRAINT full_up CHECK (false) NOT VALID"
            }
        })
        .await;
    }

    /// Sessions `old1`, `old2`, … of the user, from 2026: ended and told of, or alive with a refresh token.
    pub async fn old_sessions(&self, user: UserId, count: u32, ended: bool) {
        let numbers = match self.operator {
            Operator::Sqlite(_) => {
                format!("WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {count})")
            }
            Operator::Postgres(_) => format!("WITH n (i) AS (SELECT generate_series(1, {count}))"),
        };
        let at = "'2026-12-31T00:00:00.000Z'";
        let ended_at = if ended { at } else { "NULL" };
        self.sql(&format!(
            "{numbers} INSERT INTO login_sessions (sid, user_id, created_at, last_used_at, ended_at) \
             SELECT 'old' || i, {user}, {at}, {at}, {ended_at} FROM n"
        ))
        .await;
        if ended {
            self.sql(&format!(
                "UPDATE login_sessions SET end_untold = (1 = 0), end_told_at = {at} WHERE end_untold"
            ))
            .await;
        } else {
            let hash = match self.operator {
                Operator::Sqlite(_) => "CAST(sid AS BLOB)",
                Operator::Postgres(_) => "convert_to(sid, 'UTF8')",
            };
            self.sql(&format!(
                "INSERT INTO refresh_tokens (token_hash, sid, expires_at) \
                 SELECT {hash}, sid, '2999-01-01T00:00:00.000Z' FROM login_sessions WHERE sid LIKE 'old%'"
            ))
            .await;
        }
    }

    /// `from>to reason ms` of each row of the user's history, in its order.
    pub async fn history(&self, user: UserId) -> Vec<String> {
        let ms = match self.operator {
            Operator::Sqlite(_) => "CAST(round((julianday(at) - 2440587.5) * 86400000) AS INTEGER)",
            Operator::Postgres(_) => "CAST(EXTRACT(EPOCH FROM at) * 1000 AS bigint)",
        };
        self.texts(&format!(
            "SELECT from_status || '>' || to_status || ' ' || reason || ' ' || {ms} FROM presence_transitions \
             WHERE user_id = {user} ORDER BY id"
        ))
        .await
    }

    /// A cursor behind which nothing is told any more. On PostgreSQL it takes until the transactions that ran beside
    /// the last change are done, also those of other databases of the server, hence of other tests.
    pub async fn settled(&self) -> ChangeCursor {
        eventually(Duration::from_secs(30), async || {
            let cursor = self.store.change_cursor().await.unwrap();
            let told = self.store.account_changes(&cursor).await.unwrap().users;
            if told.is_empty() { Ok(cursor) } else { Err(told) }
        })
        .await
    }

    /// The mirror and `last_seen` of the user.
    pub async fn mirror(&self, user: UserId) -> (OnlineStatus, Option<i64>) {
        let account = self.store.account(user).await.unwrap().unwrap();
        (account.mirror, account.last_seen.map(|seen| seen.0))
    }
}

pub fn new_account(name: &str) -> NewAccount {
    NewAccount {
        username: name.to_owned(),
        email: format!("{name}@example.com"),
        password_hash: PasswordHash(format!("hash of {name}")),
        role: Role::User,
        status: AccountStatus::Active,
    }
}

/// A transition whose entry was appended at `ms`, when it also became true; a heartbeat's own instant where the user
/// is there afterwards.
pub fn transition(ms: u64, user: UserId, to: OnlineStatus) -> Transition {
    let at = Millis(i64::try_from(ms).unwrap());
    let reason = if to.is_online() { Reason::Heartbeat } else { Reason::Expired };
    let last_seen = to.is_online().then_some(at);
    Transition { id: StreamId { ms, seq: 0 }, user, to, reason, at, last_seen }
}

/// A different number at each call: for tokens.
pub fn serial() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}
