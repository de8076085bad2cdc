//! The connections to the file: the one writer, the readers, the lane for statements that read every account, and migrations.

use std::path::Path;
use std::time::Duration;

use sqlx::Connection;
use sqlx::migrate::{Migrate, Migrator};
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteSynchronous,
};
use tokio::time::timeout;

use super::super::lease::{Lease, Tally};
use super::super::scans::ScanLane;
use super::super::{Options, Result, StoreError, schema};
use super::changes::Watch;
use super::{Sqlite, SqliteLease, file, interrupt, too_slow};

static MIGRATIONS: Migrator = sqlx::migrate!("migrations/sqlite");

/// Migrations may take this long.
const MIGRATE_TIMEOUT: Duration = Duration::from_mins(5);

impl Sqlite {
    /// Opens the file that a URL names, and makes it and its folder where they are missing, for this user alone.
    pub async fn open(url: &str, options: &Options) -> Result<Self> {
        Self::connect(file::from_url(url)?, options).await
    }

    /// [`Self::open`] by a path, which may have any character.
    pub async fn open_file(path: &Path, options: &Options) -> Result<Self> {
        Self::connect(file::at(path)?, options).await
    }

    async fn connect(connect: SqliteConnectOptions, options: &Options) -> Result<Self> {
        file::make_private(connect.get_filename())?;
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

    pub(super) async fn read<T>(&self, work: impl AsyncFnOnce(&mut SqliteLease) -> Result<T>) -> Result<T> {
        self.within(self.timeout, &self.readers, work).await
    }

    pub(super) async fn write<T>(&self, work: impl AsyncFnOnce(&mut SqliteLease) -> Result<T>) -> Result<T> {
        self.within(self.timeout, &self.writer, work).await
    }

    /// A write to accounts: wakes who waits for such without the delay of its look at the file.
    pub(super) async fn write_accounts<T>(
        &self,
        work: impl AsyncFnOnce(&mut SqliteLease) -> Result<T>,
    ) -> Result<T> {
        let outcome = self.write(work).await;
        self.watch.wake();
        outcome
    }

    pub(super) async fn within<T>(
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
    pub(super) async fn scan<T>(&self, work: impl AsyncFnOnce(&mut SqliteLease) -> Result<T>) -> Result<T> {
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
    pub(super) async fn run_migrations(&self) -> Result<Vec<String>> {
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
