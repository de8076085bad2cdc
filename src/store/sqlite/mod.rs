//! SQLite: the embedded default, for one machine.
//!
//! Owns the file, its one writer and its readers, and the meaning of SQLite's errors. All that writes goes through the
//! writer, whose transactions take the write lock when they begin (`BEGIN IMMEDIATE`), so what they read is what they
//! change; another process on the same file waits for the lock within the busy timeout. Upper and lower case are the
//! same for ASCII letters only: SQLite's `lower` knows no others, and a function of our own in an index would lock
//! every other tool out of the file.

mod accounts;
mod audit;
mod changes;
mod hashes;
mod history;
mod import;
mod interrupt;
mod lists;
mod sessions;
mod trail;

use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use sqlx::Connection;
use sqlx::migrate::{Migrate, Migrator};
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteSynchronous,
};
use tokio::time::{Instant, timeout};

use super::lease::{Dialect, Lease, Meaning, Tally};
use super::scans::ScanLane;
use super::{
    AccountChanges, AccountFilter, AccountList, AccountPatch, ChangeCursor, Credentials, ImportRow, Imported,
    MirrorRow, NewAccount, NewSession, Options, PasswordHash, RecordOutcome, Result, Rotation,
    RotationRequest, Session, SetAside, Standing, Store, StoreError, Trail, TrailFilter, schema,
};
use crate::model::audit::{Break, HistoryStep, InSql};
use crate::model::{Account, Actor, Deed, Millis, Page, Place, SessionId, Transition, UserId};
use changes::Watch;

static MIGRATIONS: Migrator = sqlx::migrate!("migrations/sqlite");

/// A batch may take this long: thousands of rows on a slow disk.
const BATCH_TIMEOUT: Duration = Duration::from_secs(10);
/// An import may take this long: some seconds for a hundred thousand accounts.
const IMPORT_TIMEOUT: Duration = Duration::from_mins(10);
/// A count of all accounts may take this long: a fraction of a second for a million, on a disk that is not busy.
const COUNT_TIMEOUT: Duration = Duration::from_mins(1);
/// Migrations may take this long.
const MIGRATE_TIMEOUT: Duration = Duration::from_mins(5);

type SqliteLease = Lease<sqlx::Sqlite>;

impl Dialect for sqlx::Sqlite {
    fn meaning(error: &dyn sqlx::error::DatabaseError) -> Meaning {
        // The low byte of an extended code is the code itself.
        let code = error.code().and_then(|code| code.parse::<u32>().ok()).unwrap_or_default() & 0xff;
        match code {
            // BUSY, LOCKED, IOERR, FULL, CANTOPEN.
            5 | 6 | 10 | 13 | 14 => Meaning::Unavailable,
            _ if error.message().contains("users_username_key") => Meaning::Taken("username"),
            _ if error.message().contains("users_email_key") => Meaning::Taken("email"),
            _ => Meaning::Refused,
        }
    }
}

/// The store on SQLite.
#[derive(Debug)]
pub struct Sqlite {
    writer: SqlitePool,
    readers: SqlitePool,
    /// For statements that read every account.
    scan_readers: SqlitePool,
    scans: ScanLane,
    timeout: Duration,
    tally: Arc<Tally>,
    watch: Watch,
}

impl Sqlite {
    /// Opens the file, and makes it and its folder where they are missing.
    pub async fn open(url: &str, options: &Options) -> Result<Self> {
        let connect =
            SqliteConnectOptions::from_str(url).map_err(|error| StoreError::Url(error.to_string()))?;
        let path = connect.get_filename().to_owned();
        if url.contains(":memory:") || url.contains("mode=memory") {
            return Err(StoreError::Url(
                "a database in memory cannot be shared by several connections".into(),
            ));
        }
        if let Some(folder) = path.parent().filter(|folder| *folder != Path::new("")) {
            let made = tokio::fs::create_dir_all(folder).await;
            made.map_err(|error| StoreError::Url(format!("the folder {}: {error}", folder.display())))?;
        }
        let connect = connect
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            // A power cut may lose the last commits, never the consistency; the stream is cut only after them, and
            // what it then holds too much is not recorded twice.
            .synchronous(SqliteSynchronous::Normal)
            .busy_timeout(options.timeout)
            .foreign_keys(true);
        let pool = |connections: u32| {
            SqlitePoolOptions::new()
                .max_connections(connections)
                .acquire_timeout(options.timeout)
                .test_before_acquire(false)
                .max_lifetime(None)
                .idle_timeout(None)
        };
        let reader = connect.clone().pragma("query_only", "1");
        let writer = pool(1).connect_lazy_with(connect);
        // The first connection makes the file, so that readers find one.
        drop(writer.acquire().await.map_err(|error| StoreError::Unavailable(Box::new(error)))?);
        let readers = pool(options.max_connections.max(1)).connect_lazy_with(reader.clone());
        // A scan computes in this process: a core is left to everything else.
        let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get().saturating_sub(1));
        let scans = ScanLane::new(options, u32::try_from(cores).unwrap_or(u32::MAX));
        let scan_readers = pool(scans.connections()).connect_lazy_with(reader.clone());
        let (watch, tally) = (Watch::new(reader), Tally::new());
        Ok(Self { writer, readers, scan_readers, scans, timeout: options.timeout, tally, watch })
    }

    async fn read<T>(&self, work: impl AsyncFnOnce(&mut SqliteLease) -> Result<T>) -> Result<T> {
        self.within(self.timeout, &self.readers, work).await
    }

    async fn write<T>(&self, work: impl AsyncFnOnce(&mut SqliteLease) -> Result<T>) -> Result<T> {
        self.within(self.timeout, &self.writer, work).await
    }

    /// A write to accounts: wakes who waits for such without the delay of its look at the file.
    async fn write_accounts<T>(&self, work: impl AsyncFnOnce(&mut SqliteLease) -> Result<T>) -> Result<T> {
        let outcome = self.write(work).await;
        self.watch.wake();
        outcome
    }

    async fn within<T>(
        &self,
        bound: Duration,
        pool: &SqlitePool,
        work: impl AsyncFnOnce(&mut SqliteLease) -> Result<T>,
    ) -> Result<T> {
        let bounded = timeout(bound, async {
            let mut lease = Lease::take(pool, &self.tally).await?;
            work(&mut lease).await
        });
        bounded.await.unwrap_or_else(|_| Err(too_slow()))
    }

    /// Runs `work`, which reads every account, on a connection of the lane for that; all of it, with the wait for a place,
    /// within the store's bound. When the caller gives up, the statement is interrupted.
    async fn scan<T>(&self, work: impl AsyncFnOnce(&mut SqliteLease) -> Result<T>) -> Result<T> {
        let bounded = timeout(self.timeout, async {
            let _place = self.scans.enter().await?;
            let mut lease = Lease::take(&self.scan_readers, &self.tally).await?;
            let abandoned = interrupt::when_dropped(&mut lease).await?;
            let outcome = work(&mut lease).await;
            abandoned.disarm();
            outcome
        });
        bounded.await.unwrap_or_else(|_| Err(too_slow()))
    }

    /// All migrations in one transaction, begun with the write lock: two processes that start at once run them one
    /// after the other, and the second finds nothing to do.
    async fn run_migrations(&self) -> Result<Vec<String>> {
        let unavailable = |error| StoreError::Unavailable(Box::new(error));
        let mut connection = self.writer.acquire().await.map_err(unavailable)?;
        self.tally.count(1);
        let migrating = async {
            let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await?;
            transaction.ensure_migrations_table(schema::TABLE).await?;
            let before = transaction.list_applied_migrations(schema::TABLE).await?;
            MIGRATIONS.run_direct(None, &mut *transaction, false).await?;
            transaction.commit().await?;
            Ok(before)
        };
        let migrated = timeout(MIGRATE_TIMEOUT, migrating).await.map_err(|_| too_slow())?;
        let before = migrated.map_err(schema::migrate_error::<sqlx::Sqlite>)?;
        Ok(schema::applied_since(&MIGRATIONS, &before))
    }
}

fn too_slow() -> StoreError {
    StoreError::Unavailable(Box::new(sqlx::Error::PoolTimedOut))
}

/// Begins a transaction that writes.
async fn begin(lease: &mut SqliteLease) -> Result<()> {
    lease.begin("BEGIN IMMEDIATE", 1).await
}

/// An instant as the file keeps it. Beyond the years of four digits text would no longer sort as time does.
fn text(at: Millis) -> String {
    const LAST: i64 = 253_402_300_799_999;
    Millis(at.0.clamp(0, LAST)).to_string()
}

/// Ids as one parameter for `json_each`.
fn json_ids(ids: &[UserId]) -> String {
    serde_json::Value::from(ids).to_string()
}

#[async_trait]
impl Store for Sqlite {
    async fn migrate(&self) -> Result<Vec<String>> {
        self.run_migrations().await
    }

    async fn ping(&self) -> Result<()> {
        self.read(async |lease| lease.execute(sqlx::query("SELECT 1")).await.map(drop)).await
    }

    fn statements(&self) -> u64 {
        self.tally.statements()
    }

    async fn create_account(&self, new: &NewAccount, by: Option<&Actor>) -> Result<Account> {
        self.write_accounts(async |lease| accounts::create(lease, new, by).await).await
    }

    async fn has_accounts(&self) -> Result<bool> {
        self.read(async |lease| accounts::any(lease).await).await
    }

    async fn account(&self, id: UserId) -> Result<Option<Account>> {
        self.read(async |lease| Ok(accounts::by_ids(lease, &[id]).await?.pop())).await
    }

    async fn accounts(&self, ids: &[UserId]) -> Result<Vec<Account>> {
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        self.read(async |lease| accounts::by_ids(lease, ids).await).await
    }

    async fn credentials(&self, login: &str) -> Result<Option<Credentials>> {
        self.read(async |lease| accounts::credentials(lease, login).await).await
    }

    async fn list_accounts(
        &self,
        filter: &AccountFilter,
        place: Place<UserId>,
        askers: &[UserId],
    ) -> Result<AccountList> {
        let read = async |lease: &mut SqliteLease| lists::all(lease, filter, place, askers).await;
        if filter.is_open() { self.read(read).await } else { self.scan(read).await }
    }

    async fn list_present_in_mirror(
        &self,
        since: Millis,
        place: Place<(Millis, UserId)>,
        askers: &[UserId],
    ) -> Result<AccountList> {
        self.scan(async |lease| lists::present(lease, since, place, askers).await).await
    }

    async fn mend_counts(&self) -> Result<u64> {
        let wrong =
            self.within(COUNT_TIMEOUT, &self.readers, async |lease| lists::wrong_counts(lease).await).await?;
        if wrong > 0 {
            self.within(COUNT_TIMEOUT, &self.writer, async |lease| lists::count_anew(lease).await).await?;
        }
        Ok(wrong)
    }

    async fn update_account(
        &self,
        id: UserId,
        patch: &AccountPatch,
        by: Option<&Actor>,
    ) -> Result<Option<Account>> {
        self.write_accounts(async |lease| accounts::update(lease, id, patch, by).await).await
    }

    async fn delete_account(&self, id: UserId, by: Option<&Actor>) -> Result<bool> {
        self.write_accounts(async |lease| accounts::delete(lease, id, by).await).await
    }

    async fn replace_password_hash(
        &self,
        id: UserId,
        old: &PasswordHash,
        new: &PasswordHash,
    ) -> Result<bool> {
        self.write(async |lease| accounts::replace_hash(lease, id, old, new).await).await
    }

    async fn foreign_hashes(&self, limit: u32) -> Result<Vec<PasswordHash>> {
        self.read(async |lease| hashes::foreign(lease, limit).await).await
    }

    async fn import_accounts(&self, rows: &[ImportRow], dry_run: bool) -> Result<Vec<Imported>> {
        let outcome = self
            .within(IMPORT_TIMEOUT, &self.writer, async |lease| import::import(lease, rows, dry_run).await)
            .await;
        self.watch.wake();
        outcome
    }

    async fn add_to_trail(&self, by: &Actor, deed: &Deed) -> Result<()> {
        self.write(async |lease| trail::add(lease, by, deed).await).await
    }

    async fn trail(&self, filter: &TrailFilter, page: Page) -> Result<Trail> {
        self.read(async |lease| trail::list(lease, filter, page).await).await
    }

    async fn standings(&self, ids: &[UserId]) -> Result<Vec<(UserId, Standing)>> {
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        self.read(async |lease| changes::standings(lease, ids).await).await
    }

    async fn blocked_after(&self, after: UserId, limit: u32) -> Result<Vec<UserId>> {
        self.read(async |lease| changes::blocked_after(lease, after, limit).await).await
    }

    async fn change_cursor(&self) -> Result<ChangeCursor> {
        self.read(async |lease| changes::cursor(lease).await).await
    }

    async fn account_changes(&self, since: &ChangeCursor) -> Result<AccountChanges> {
        let changes = self.read(async |lease| changes::since(lease, since).await).await?;
        if self.watch.prune_is_due() {
            // Costs nothing but space where it fails, and the next hour tries again.
            let pruned = self.write(async |lease| changes::prune(lease, since).await).await;
            if let Err(error) = pruned {
                tracing::warn!(%error, "the log of account changes was not pruned");
            }
        }
        Ok(changes)
    }

    async fn wait_for_account_change(&self, timeout: Duration) -> Result<()> {
        self.watch.wait(Instant::now() + timeout, self.timeout).await
    }

    async fn create_session(&self, new: &NewSession) -> Result<bool> {
        self.write(async |lease| sessions::create(lease, new).await).await
    }

    async fn sessions(&self, user: UserId, now: Millis) -> Result<Vec<Session>> {
        self.read(async |lease| sessions::of_user(lease, user, now).await).await
    }

    async fn rotate_refresh(&self, request: &RotationRequest) -> Result<Rotation> {
        self.write(async |lease| sessions::rotate(lease, request).await).await
    }

    async fn end_session(&self, user: UserId, sid: &SessionId, now: Millis) -> Result<bool> {
        self.write(async |lease| Ok(!sessions::end(lease, user, Some(sid), now).await?.is_empty())).await
    }

    async fn end_sessions(&self, user: UserId, now: Millis) -> Result<Vec<SessionId>> {
        self.write(async |lease| sessions::end(lease, user, None, now).await).await
    }

    async fn session_has_ended(&self, user: UserId, sid: &SessionId) -> Result<bool> {
        self.read(async |lease| sessions::has_ended(lease, user, sid).await).await
    }

    async fn sessions_ended_since(&self, since: Millis) -> Result<Vec<(UserId, SessionId)>> {
        self.read(async |lease| sessions::ended_since(lease, since).await).await
    }

    async fn sessions_ended_of(&self, users: &[UserId], since: Millis) -> Result<Vec<(UserId, SessionId)>> {
        if users.is_empty() {
            return Ok(Vec::new());
        }
        self.read(async |lease| sessions::ended_of(lease, users, since).await).await
    }

    async fn newest_transition(&self, shard: u32) -> Result<Option<Millis>> {
        self.read(async |lease| history::newest(lease, shard).await).await
    }

    async fn record(&self, shard: u32, batch: &[Transition]) -> Result<RecordOutcome> {
        if batch.is_empty() {
            return Ok(RecordOutcome::default());
        }
        self.within(BATCH_TIMEOUT, &self.writer, async |lease| history::record(lease, shard, batch).await)
            .await
    }

    async fn touch_last_seen(&self, seen: &[(UserId, Millis)]) -> Result<u64> {
        if seen.is_empty() {
            return Ok(0);
        }
        self.within(BATCH_TIMEOUT, &self.writer, async |lease| history::touch(lease, seen).await).await
    }

    async fn present_in_mirror_after(&self, after: UserId, limit: u32) -> Result<Vec<MirrorRow>> {
        self.read(async |lease| history::present_after(lease, after, limit).await).await
    }

    async fn presences_after(&self, after: UserId, limit: u32) -> Result<Vec<InSql>> {
        self.read(async |lease| audit::presences_after(lease, after, limit).await).await
    }

    async fn presences(&self, ids: &[UserId]) -> Result<Vec<InSql>> {
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        self.read(async |lease| audit::presences(lease, ids).await).await
    }

    async fn history_after(&self, user: UserId, id: i64, limit: u32) -> Result<Vec<HistoryStep>> {
        self.read(async |lease| audit::history_after(lease, user, id, limit).await).await
    }

    async fn set_aside(&self) -> Result<SetAside> {
        self.read(async |lease| audit::set_aside(lease).await).await
    }

    async fn mend_mirror(&self, users: &[(UserId, i64)]) -> Result<u64> {
        if users.is_empty() {
            return Ok(0);
        }
        self.within(BATCH_TIMEOUT, &self.writer, async |lease| audit::mend_mirror(lease, users).await).await
    }

    async fn lower_versions(&self, users: &[(UserId, i64)], to: i64) -> Result<u64> {
        if users.is_empty() {
            return Ok(0);
        }
        self.within(BATCH_TIMEOUT, &self.writer, async |lease| audit::lower_versions(lease, users, to).await)
            .await
    }

    async fn mend_history(&self, broken: &Break) -> Result<bool> {
        self.within(BATCH_TIMEOUT, &self.writer, async |lease| audit::mend_history(lease, broken).await).await
    }
}
