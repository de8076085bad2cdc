//! One use of a pooled connection: the one way by which statements leave this room.
//!
//! Counts them, maps their errors, and sees to it that a connection on which something went wrong in the middle is
//! dropped instead of going back to the pool. A call that was cancelled or timed out leaves a statement in flight or a
//! transaction open; giving such a connection back would make the pool wait for a server that may never answer.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use sqlx::pool::PoolConnection;
use sqlx::query::{Query, QueryAs};

use sqlx::{Database, Executor, FromRow, IntoArguments, Pool, SqlSafeStr};

use super::{Result, StoreError};

/// What one of the two databases adds: how it names what went wrong.
pub trait Dialect: Database {
    /// What an error that the database itself gave means.
    fn meaning(error: &dyn sqlx::error::DatabaseError) -> Meaning;
}

/// What an error of the database means to a caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Meaning {
    /// It cannot serve now; the same call may succeed later.
    Unavailable,
    /// Another transaction holds what this one needs; the same call may succeed soon, on the same connection.
    Locked,
    /// A unique field is taken.
    Taken(&'static str),
    /// It answered no.
    Refused,
}

/// What all leases of one store share.
#[derive(Debug)]
pub struct Tally {
    statements: AtomicU64,
    opened: Instant,
    /// When a connection was last found broken, ms after `opened`; 0 for never.
    broken_ms: AtomicU64,
}

impl Tally {
    /// An empty one.
    pub fn new() -> Arc<Self> {
        Arc::new(Self { statements: AtomicU64::new(0), opened: Instant::now(), broken_ms: AtomicU64::new(0) })
    }

    /// How many statements were sent.
    pub fn statements(&self) -> u64 {
        self.statements.load(Ordering::Relaxed)
    }

    /// Counts statements that leave by another way.
    pub fn count(&self, statements: u64) {
        self.statements.fetch_add(statements, Ordering::Relaxed);
    }

    /// Whether some connection was found broken after the last use of one that has been idle for `idle`.
    pub fn broke_within(&self, idle: Duration) -> bool {
        let broken = self.broken_ms.load(Ordering::Relaxed);
        broken > 0 && u128::from(broken) >= self.opened.elapsed().saturating_sub(idle).as_millis()
    }

    fn broke(&self) {
        let now = u64::try_from(self.opened.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.broken_ms.store(now.max(1), Ordering::Relaxed);
    }
}

/// Maps an error; where a connection is at fault it must not be used again.
pub fn store_error<DB: Dialect>(error: sqlx::Error) -> StoreError {
    use sqlx::Error as E;
    let meaning = match &error {
        E::Database(refusal) => DB::meaning(refusal.as_ref()),
        E::Io(_) | E::Tls(_) | E::Protocol(_) | E::PoolTimedOut | E::PoolClosed | E::WorkerCrashed => {
            Meaning::Unavailable
        }
        _ => Meaning::Refused,
    };
    match meaning {
        Meaning::Unavailable => StoreError::Unavailable(Box::new(error)),
        Meaning::Locked => StoreError::Locked(Box::new(error)),
        Meaning::Taken(field) => StoreError::Taken { field },
        Meaning::Refused => StoreError::Database(Box::new(error)),
    }
}

/// A connection of the pool for the length of one call.
#[derive(Debug)]
#[allow(clippy::struct_excessive_bools, reason = "each tells of another thing, and all combinations occur")]
pub struct Lease<DB: Dialect> {
    /// `None` only while being dropped.
    connection: Option<PoolConnection<DB>>,
    tally: Arc<Tally>,
    in_flight: bool,
    in_transaction: bool,
    broken: bool,
    /// What each statement counts in the tally.
    weight: u64,
}

impl<DB: Dialect> Lease<DB>
where
    for<'c> &'c mut DB::Connection: Executor<'c, Database = DB>,
    DB::Arguments: IntoArguments<DB>,
{
    /// Takes a connection. Whatever prevents that (refused, wrong password, too slow) is
    /// [`StoreError::Unavailable`]: no statement was at fault.
    pub async fn take(pool: &Pool<DB>, tally: &Arc<Tally>) -> Result<Self> {
        let connection = pool.acquire().await.map_err(|error| StoreError::Unavailable(Box::new(error)))?;
        Ok(Self {
            connection: Some(connection),
            tally: Arc::clone(tally),
            in_flight: false,
            in_transaction: false,
            broken: false,
            weight: 1,
        })
    }

    /// Leaves the statements of this use out of [`Tally::statements`]: the looks of the upkeep, which come at a fixed pace.
    pub const fn uncounted(&mut self) {
        self.weight = 0;
    }

    /// Runs a statement; returns how many rows it changed.
    pub async fn execute(&mut self, query: Query<'_, DB, DB::Arguments>) -> Result<DB::QueryResult> {
        let connection = self.send(1)?;
        let answer = query.execute(connection).await;
        self.settle(answer)
    }

    /// Runs a statement; returns all its rows.
    pub async fn rows<T>(&mut self, query: QueryAs<'_, DB, T, DB::Arguments>) -> Result<Vec<T>>
    where
        T: for<'r> FromRow<'r, DB::Row> + Send + Unpin,
    {
        let connection = self.send(1)?;
        let answer = query.fetch_all(connection).await;
        self.settle(answer)
    }

    /// Runs a statement that gives one row at most. It is run to its end, so that what it writes is committed when this
    /// returns.
    pub async fn row<T>(&mut self, query: QueryAs<'_, DB, T, DB::Arguments>) -> Result<Option<T>>
    where
        T: for<'r> FromRow<'r, DB::Row> + Send + Unpin,
    {
        Ok(self.rows(query).await?.pop())
    }

    /// Begins a transaction by a script of `statements` statements, sent at once. Unless [`Self::commit`] ends it, it
    /// is rolled back with its connection.
    pub async fn begin(&mut self, script: impl SqlSafeStr, statements: u64) -> Result<()> {
        self.in_transaction = true;
        self.script(script, statements).await
    }

    /// Commits.
    pub async fn commit(&mut self) -> Result<()> {
        self.script("COMMIT", 1).await?;
        self.in_transaction = false;
        Ok(())
    }

    /// Ends a transaction as its work came out: commits, or takes all of it back where the answer is no.
    pub async fn finish<T>(&mut self, outcome: Result<T>) -> Result<T> {
        match outcome {
            Ok(value) => self.commit().await.map(|()| value),
            Err(error) if error.is_unavailable() => Err(error),
            Err(error) => {
                self.roll_back().await?;
                Err(error)
            }
        }
    }

    /// Rolls back a transaction that is open, and with it lets go of every lock.
    pub async fn roll_back(&mut self) -> Result<()> {
        if self.in_transaction {
            self.script("ROLLBACK", 1).await?;
            self.in_transaction = false;
        }
        Ok(())
    }

    async fn script(&mut self, script: impl SqlSafeStr, statements: u64) -> Result<()> {
        let script = sqlx::raw_sql(script);
        let connection = self.send(statements)?;
        let answer = connection.execute(script).await;
        self.settle(answer).map(drop)
    }

    /// The connection itself, for what is no statement. Unless a statement follows, the connection is dropped with the lease.
    pub fn connection(&mut self) -> Result<&mut DB::Connection> {
        self.send(0)
    }

    fn send(&mut self, statements: u64) -> Result<&mut DB::Connection> {
        self.tally.count(statements * self.weight);
        self.in_flight = true;
        match &mut self.connection {
            Some(connection) => Ok(&mut **connection),
            None => Err(StoreError::Unavailable(Box::new(sqlx::Error::PoolClosed))),
        }
    }

    fn settle<T>(&mut self, answer: sqlx::Result<T>) -> Result<T> {
        self.in_flight = false;
        answer.map_err(|error| {
            let error = store_error::<DB>(error);
            self.broken |= matches!(error, StoreError::Unavailable(_));
            error
        })
    }
}

impl<DB: Dialect> Drop for Lease<DB> {
    fn drop(&mut self) {
        if self.broken {
            self.tally.broke();
        }
        if (self.in_flight || self.in_transaction || self.broken)
            && let Some(connection) = self.connection.take()
        {
            // Closing would say goodbye first, to a server that may not listen; this frees the place in the pool now.
            drop(connection.detach());
        }
    }
}
