//! PostgreSQL: the production database. Any number of processes share it.
//!
//! Owns the pool, its bounds and the meaning of PostgreSQL's errors. No transaction waits for another one while it holds
//! locks (`calls`); all run at READ COMMITTED, whatever the server's default, because a look behind a lock must see what
//! its last holder wrote.

mod accounts;
mod audit;
mod calls;
mod changes;
mod hashes;
mod history;
mod import;
mod lists;
mod sessions;
mod trail;
mod upkeep;

use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use sqlx::migrate::{Migrate, Migrator};
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{Connection, PgConnection, PgPool};
use tokio::time::{Instant, sleep, timeout};

use super::lease::{Dialect, Lease, Meaning, Tally};
use super::{
    AccountChanges, AccountFilter, AccountList, AccountPatch, ChangeCursor, Credentials, ImportRow, Imported,
    MirrorPage, MirrorRow, NewAccount, NewSession, Options, PasswordHash, RecordOutcome, Result, Rotation,
    RotationRequest, Session, SetAside, Standing, Store, StoreError, Trail, TrailFilter, Upkeep, schema,
};
use crate::model::audit::{Break, HistoryStep, InSql};
use crate::model::{Account, Actor, Deed, Millis, Page, Place, SessionId, StreamId, Transition, UserId};
use calls::LOCK_WAIT;
use changes::Watch;

static MIGRATIONS: Migrator = sqlx::migrate!("migrations/postgres");

/// A batch may take this long: thousands of rows on a slow disk, or behind another batch of its shard.
const BATCH_TIMEOUT: Duration = Duration::from_secs(10);
/// An import may take this long: some seconds for a hundred thousand accounts.
const IMPORT_TIMEOUT: Duration = Duration::from_mins(10);
/// A count of all accounts may take this long: a fraction of a second for a million, on a disk that is not busy.
const COUNT_TIMEOUT: Duration = Duration::from_mins(1);
/// Migrations may take this long once the server has answered.
const MIGRATE_TIMEOUT: Duration = Duration::from_mins(5);
/// A migration waits for a lock no longer than this, and tries again after a pause: what waits for a whole table keeps
/// every other application waiting behind it.
const MIGRATE_LOCK_WAIT: Duration = Duration::from_millis(500);
/// A connection that was idle for longer is asked whether it still lives before it is used. The question (a bare
/// `Sync`) is no statement.
const TRUSTED_IDLE: Duration = Duration::from_secs(1);

type PgLease = Lease<sqlx::Postgres>;

impl Dialect for sqlx::Postgres {
    fn meaning(error: &dyn sqlx::error::DatabaseError) -> Meaning {
        match (error.constraint(), error.code().as_deref().unwrap_or_default()) {
            (Some("users_username_key"), "23505") => Meaning::Taken("username"),
            (Some("users_email_key"), "23505") => Meaning::Taken("email"),
            // No lock in time, deadlock, could not serialise.
            (_, "55P03" | "40P01" | "40001") => Meaning::Locked,
            // Cancelled, idle too long, and a server that has become a standby; and a schema that is not there yet.
            (_, "57014" | "25P03" | "25006" | "42P01") => Meaning::Unavailable,
            // Connection lost, out of resources, shutting down or starting up.
            (_, code) if ["08", "53", "57P0"].iter().any(|class| code.starts_with(class)) => {
                Meaning::Unavailable
            }
            _ => Meaning::Refused,
        }
    }
}

/// The store on PostgreSQL.
#[derive(Debug)]
pub struct Postgres {
    pool: PgPool,
    connect: PgConnectOptions,
    timeout: Duration,
    tally: Arc<Tally>,
    watch: Watch,
}

impl Postgres {
    /// Reads the URL and connects to nothing yet. Must be called inside a tokio runtime.
    pub fn open(url: &str, options: &Options) -> Result<Self> {
        let connect = PgConnectOptions::from_str(url)
            .map_err(|error| StoreError::Url(error.to_string()))?
            .application_name("presenced");
        let [statement_timeout, lock_timeout] =
            [options.timeout, LOCK_WAIT].map(|bound| bound.as_millis().max(1).to_string());
        let tally = Tally::new();
        let health = Arc::clone(&tally);
        let pool = PgPoolOptions::new()
            .max_connections(options.max_connections.max(1))
            .acquire_timeout(options.timeout)
            // A ping at every use would double the round trips of a read; see `TRUSTED_IDLE`. After one connection was
            // found broken (a restart, a failover) each that was last used before is asked as well, so that a restart
            // costs one failed call and not one for each connection.
            .test_before_acquire(false)
            .before_acquire(move |connection, meta| {
                let suspect = meta.idle_for > TRUSTED_IDLE || health.broke_within(meta.idle_for);
                Box::pin(async move {
                    if suspect {
                        connection.ping().await?;
                    }
                    Ok(true)
                })
            })
            .connect_lazy_with(
                connect
                    .clone()
                    .options([("statement_timeout", statement_timeout), ("lock_timeout", lock_timeout)]),
            );
        let watch = Watch::new(connect.clone(), options.timeout);
        Ok(Self { pool, connect, timeout: options.timeout, tally, watch })
    }

    /// Migrates; again and again while another transaction holds a table, or another process migrates.
    async fn run_migrations(&self) -> Result<Vec<String>> {
        let until = Instant::now() + MIGRATE_TIMEOUT;
        loop {
            match self.try_migrations().await {
                Err(StoreError::Locked(_)) if Instant::now() < until => sleep(MIGRATE_LOCK_WAIT).await,
                migrated => return migrated,
            }
        }
    }

    /// On a connection of its own, because a migration may take longer than any statement of the service.
    async fn try_migrations(&self) -> Result<Vec<String>> {
        let bound = MIGRATE_LOCK_WAIT.as_millis().to_string();
        let connect = self.connect.clone().options([("lock_timeout", bound)]);
        let connecting = timeout(self.timeout, PgConnection::connect_with(&connect)).await;
        let mut connection =
            connecting.map_err(|_| too_slow())?.map_err(|error| StoreError::Unavailable(Box::new(error)))?;
        self.tally.count(1);
        let migrating = async {
            // The lock is the session's and counts its holders: the migrator takes it a second time, inside this one.
            connection.lock().await?;
            connection.ensure_migrations_table(schema::TABLE).await?;
            let before = connection.list_applied_migrations(schema::TABLE).await?;
            MIGRATIONS.run_direct(None, &mut connection, false).await?;
            connection.unlock().await?;
            Ok(before)
        };
        let before = timeout(MIGRATE_TIMEOUT, migrating)
            .await
            .map_err(|_| too_slow())?
            .map_err(schema::migrate_error::<sqlx::Postgres>)?;
        // Failing to say goodbye harms nobody.
        let _ = timeout(self.timeout, connection.close()).await;
        Ok(schema::applied_since(&MIGRATIONS, &before))
    }
}

fn too_slow() -> StoreError {
    StoreError::Unavailable(Box::new(sqlx::Error::PoolTimedOut))
}

fn unavailable(error: sqlx::Error) -> StoreError {
    StoreError::Unavailable(Box::new(error))
}

/// Begins a transaction that locks rows.
async fn begin(lease: &mut PgLease) -> Result<()> {
    lease.begin("BEGIN ISOLATION LEVEL READ COMMITTED", 1).await
}

#[async_trait]
impl Store for Postgres {
    async fn migrate(&self) -> Result<Vec<String>> {
        self.run_migrations().await
    }

    async fn ping(&self) -> Result<()> {
        self.with(async |lease| lease.execute(sqlx::query("SELECT 1")).await.map(drop)).await
    }

    fn statements(&self) -> u64 {
        self.tally.statements()
    }

    async fn create_account(&self, new: &NewAccount, by: Option<&Actor>) -> Result<Account> {
        self.with(async |lease| accounts::create(lease, new, by).await).await
    }

    async fn has_accounts(&self) -> Result<bool> {
        self.with(async |lease| accounts::any(lease).await).await
    }

    async fn account(&self, id: UserId) -> Result<Option<Account>> {
        self.with(async |lease| Ok(accounts::by_ids(lease, &[id]).await?.pop())).await
    }

    async fn accounts(&self, ids: &[UserId]) -> Result<Vec<Account>> {
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        self.with(async |lease| accounts::by_ids(lease, ids).await).await
    }

    async fn credentials(&self, login: &str) -> Result<Option<Credentials>> {
        self.with(async |lease| accounts::credentials(lease, login).await).await
    }

    async fn list_accounts(
        &self,
        filter: &AccountFilter,
        place: Place<UserId>,
        askers: &[UserId],
    ) -> Result<AccountList> {
        self.with(async |lease| lists::all(lease, filter, place, askers).await).await
    }

    async fn list_present_in_mirror(
        &self,
        since: Millis,
        place: Place<(Millis, UserId)>,
        askers: &[UserId],
    ) -> Result<AccountList> {
        self.with(async |lease| lists::present(lease, since, place, askers).await).await
    }

    async fn mend_counts(&self) -> Result<u64> {
        self.within(COUNT_TIMEOUT, async |lease| lists::mend_counts(lease).await).await
    }

    async fn update_account(
        &self,
        id: UserId,
        patch: &AccountPatch,
        by: Option<&Actor>,
    ) -> Result<Option<Account>> {
        self.with(async |lease| accounts::update(lease, id, patch, by).await).await
    }

    async fn delete_account(&self, id: UserId, by: Option<&Actor>) -> Result<bool> {
        self.with(async |lease| accounts::delete(lease, id, by).await).await
    }

    async fn replace_password_hash(
        &self,
        id: UserId,
        old: &PasswordHash,
        new: &PasswordHash,
    ) -> Result<bool> {
        self.with(async |lease| accounts::replace_hash(lease, id, old, new).await).await
    }

    async fn foreign_hashes(&self, limit: u32) -> Result<Vec<PasswordHash>> {
        self.with(async |lease| hashes::foreign(lease, limit).await).await
    }

    async fn import_accounts(&self, rows: &[ImportRow], dry_run: bool) -> Result<Vec<Imported>> {
        self.within(IMPORT_TIMEOUT, async |lease| import::import(lease, rows, dry_run).await).await
    }

    async fn add_to_trail(&self, by: &Actor, deed: &Deed) -> Result<()> {
        self.with(async |lease| trail::add(lease, by, deed).await).await
    }

    async fn trail(&self, filter: &TrailFilter, page: Page) -> Result<Trail> {
        self.with(async |lease| trail::list(lease, filter, page).await).await
    }

    async fn standings(&self, ids: &[UserId]) -> Result<Vec<(UserId, Standing)>> {
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        self.with(async |lease| changes::standings(lease, ids).await).await
    }

    async fn blocked_after(&self, after: UserId, limit: u32) -> Result<Vec<UserId>> {
        self.with(async |lease| changes::blocked_after(lease, after, limit).await).await
    }

    async fn change_cursor(&self) -> Result<ChangeCursor> {
        self.with(async |lease| changes::cursor(lease).await).await
    }

    async fn account_changes(&self, since: &ChangeCursor) -> Result<AccountChanges> {
        let prune = self.watch.prune_is_due();
        self.with(async |lease| changes::since(lease, since, prune).await).await
    }

    async fn wait_for_account_change(&self, timeout: Duration) -> Result<()> {
        self.watch.wait(Instant::now() + timeout).await
    }

    async fn create_session(&self, new: &NewSession) -> Result<bool> {
        self.with(async |lease| sessions::create(lease, new).await).await
    }

    async fn sessions(&self, user: UserId, now: Millis) -> Result<Vec<Session>> {
        self.with(async |lease| sessions::of_user(lease, user, now).await).await
    }

    async fn rotate_refresh(&self, request: &RotationRequest) -> Result<Rotation> {
        self.with(async |lease| sessions::rotate(lease, request).await).await
    }

    async fn end_session(&self, user: UserId, sid: &SessionId, now: Millis) -> Result<bool> {
        self.with(async |lease| Ok(!sessions::end(lease, user, Some(sid), now).await?.is_empty())).await
    }

    async fn end_sessions(&self, user: UserId, now: Millis) -> Result<Vec<SessionId>> {
        self.with(async |lease| sessions::end(lease, user, None, now).await).await
    }

    async fn session_has_ended(&self, user: UserId, sid: &SessionId) -> Result<bool> {
        self.with(async |lease| sessions::has_ended(lease, user, sid).await).await
    }

    async fn sessions_ended_since(&self, since: Millis) -> Result<Vec<(UserId, SessionId)>> {
        self.with(async |lease| sessions::ended_since(lease, since).await).await
    }

    async fn sessions_ended_of(&self, users: &[UserId], since: Millis) -> Result<Vec<(UserId, SessionId)>> {
        if users.is_empty() {
            return Ok(Vec::new());
        }
        self.with(async |lease| sessions::ended_of(lease, users, since).await).await
    }

    async fn newest_transition(&self, shard: u32) -> Result<Option<Millis>> {
        self.with(async |lease| history::newest(lease, shard).await).await
    }

    async fn newest_transition_id(&self) -> Result<Option<StreamId>> {
        self.with(async |lease| history::newest_id(lease).await).await
    }

    async fn record(&self, shard: u32, batch: &[Transition], now: Millis) -> Result<RecordOutcome> {
        if batch.is_empty() {
            return Ok(RecordOutcome::default());
        }
        self.within(BATCH_TIMEOUT, async |lease| history::record(lease, shard, batch, now).await).await
    }

    async fn touch_last_seen(&self, seen: &[(UserId, Millis)], now: Millis) -> Result<u64> {
        if seen.is_empty() {
            return Ok(0);
        }
        self.within(BATCH_TIMEOUT, async |lease| history::touch(lease, seen, now).await).await
    }

    async fn present_in_mirror_after(&self, after: UserId, limit: u32) -> Result<Vec<MirrorRow>> {
        self.with(async |lease| history::present_after(lease, after, limit).await).await
    }

    async fn presences_after(&self, after: UserId, limit: u32) -> Result<Vec<InSql>> {
        self.with(async |lease| audit::presences_after(lease, after, limit).await).await
    }

    async fn presences(&self, ids: &[UserId]) -> Result<Vec<InSql>> {
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        self.with(async |lease| audit::presences(lease, ids).await).await
    }

    async fn history_after(&self, user: UserId, id: i64, limit: u32) -> Result<Vec<HistoryStep>> {
        self.with(async |lease| audit::history_after(lease, user, id, limit).await).await
    }

    async fn set_aside(&self) -> Result<SetAside> {
        self.with(async |lease| audit::set_aside(lease).await).await
    }

    async fn mend_mirror(&self, users: &[(UserId, i64)]) -> Result<u64> {
        if users.is_empty() {
            return Ok(0);
        }
        self.within(BATCH_TIMEOUT, async |lease| audit::mend_mirror(lease, users).await).await
    }

    async fn lower_versions(&self, users: &[(UserId, i64)], to: i64) -> Result<u64> {
        if users.is_empty() {
            return Ok(0);
        }
        self.within(BATCH_TIMEOUT, async |lease| audit::lower_versions(lease, users, to).await).await
    }

    async fn mend_history(&self, broken: &Break) -> Result<bool> {
        self.within(BATCH_TIMEOUT, async |lease| audit::mend_history(lease, broken).await).await
    }

    async fn upkeep(&self) -> Result<Upkeep> {
        self.run_upkeep().await
    }

    async fn mend_mirrors_after(&self, after: UserId, limit: u32) -> Result<MirrorPage> {
        self.compare_mirrors(after, limit).await
    }

    async fn max_user_id(&self) -> Result<UserId> {
        self.with(async |lease| upkeep::largest_id(lease).await).await
    }

    async fn raise_user_id_sequence(&self, at_least: UserId) -> Result<bool> {
        self.with(async |lease| upkeep::raise_ids(lease, at_least).await).await
    }
}
