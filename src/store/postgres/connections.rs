//! The connections to PostgreSQL: the pools, the lane for statements that read every account, and migrations.

use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use sqlx::migrate::{Migrate, Migrator};
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{Connection, PgConnection};
use tokio::time::{Instant, sleep, timeout};

use super::super::lease::{Lease, Tally};
use super::super::scans::ScanLane;
use super::super::{Options, Result, StoreError, schema};
use super::calls::LOCK_WAIT;
use super::changes::Watch;
use super::{PgLease, Postgres, too_slow};

static MIGRATIONS: Migrator = sqlx::migrate!("migrations/postgres");

/// Migrations may take this long once the server has answered.
const MIGRATE_TIMEOUT: Duration = Duration::from_mins(5);
/// A migration waits for a lock no longer than this, and tries again after a pause: what waits for a whole table keeps
/// every other application waiting behind it.
const MIGRATE_LOCK_WAIT: Duration = Duration::from_millis(500);
/// A connection that was idle for longer is asked whether it still lives before it is used. The question (a bare
/// `Sync`) is no statement.
const TRUSTED_IDLE: Duration = Duration::from_secs(1);
/// How often the server checks, during a statement, whether its client is still connected. Without the check it computes to
/// the end. Servers on Windows cannot check; there `statement_timeout` ends the statement.
const NOTICE_A_LOST_CLIENT: &str = "SET client_connection_check_interval = '100ms'";

impl Postgres {
    /// Reads the URL and connects to nothing yet. Must be called inside a tokio runtime.
    pub fn open(url: &str, options: &Options) -> Result<Self> {
        let connect = PgConnectOptions::from_str(url)
            .map_err(|error| StoreError::Url(error.to_string()))?
            .application_name("presenced");
        let [statement_timeout, lock_timeout] =
            [options.timeout, LOCK_WAIT].map(|bound| bound.as_millis().max(1).to_string());
        let tally = Tally::new();
        let bounded = connect
            .clone()
            .options([("statement_timeout", statement_timeout), ("lock_timeout", lock_timeout)]);
        let pool = |connections: u32| {
            let health = Arc::clone(&tally);
            PgPoolOptions::new()
                .max_connections(connections)
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
        };
        let scans = ScanLane::new(options, u32::MAX);
        let scan_pool = pool(scans.connections()).after_connect(|connection, _| {
            Box::pin(async move {
                match sqlx::raw_sql(NOTICE_A_LOST_CLIENT).execute(connection).await {
                    Err(sqlx::Error::Database(error)) => {
                        tracing::debug!(%error, "the server does not notice a client that is lost");
                        Ok(())
                    }
                    other => other.map(drop),
                }
            })
        });
        let scan_pool = scan_pool.connect_lazy_with(bounded.clone());
        let pool = pool(options.max_connections.max(1)).connect_lazy_with(bounded);
        let watch = Watch::new(connect.clone(), options.timeout);
        Ok(Self { pool, scan_pool, scans, connect, timeout: options.timeout, tally, watch })
    }

    /// Runs `work`, which reads every account, on a connection of the lane for that; all of it, with the wait for a place,
    /// within the store's bound. When the caller gives up, the connection is closed and the server cancels the statement.
    pub(super) async fn scan<T>(&self, work: impl AsyncFnOnce(&mut PgLease) -> Result<T>) -> Result<T> {
        let bounded = timeout(self.timeout, async {
            let _place = self.scans.enter().await?;
            let mut lease = Lease::take(&self.scan_pool, &self.tally).await?;
            work(&mut lease).await
        });
        bounded.await.unwrap_or_else(|_| Err(too_slow()))
    }

    /// Migrates; again and again while another transaction holds a table, or another process migrates.
    pub(super) async fn run_migrations(&self) -> Result<Vec<String>> {
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
