//! How a call reaches PostgreSQL: within its bound, and without waiting for another transaction while it holds locks
//! (invariant 12).
//!
//! No wait for a lock lasts longer than [`LOCK_WAIT`]. A call that would have to wait longer is rolled back, which lets go
//! of all that it holds, and tried again from its start, until its bound is reached. So the service gives way before
//! PostgreSQL looks for deadlocks (`deadlock_timeout`, 1 s by default), and other applications are never chosen as the
//! victim of one. Where rows are locked on purpose, statements say NOWAIT or SKIP LOCKED and do not wait at all.

use std::time::Duration;

use tokio::time::{sleep, timeout};

use super::{PgLease, Postgres};
use crate::store::lease::Lease;
use crate::store::{Result, StoreError};

/// The longest wait for one lock; far below `deadlock_timeout`.
pub const LOCK_WAIT: Duration = Duration::from_millis(100);
/// Between two attempts of a call that met a lock: the first pause, and the longest. PostgreSQL logs each attempt.
const AGAIN: Duration = Duration::from_millis(10);
const AGAIN_AT_LAST: Duration = Duration::from_millis(100);

impl Postgres {
    /// Runs `work` on a connection; all of it, with the wait for the connection, within the store's bound.
    pub(super) async fn with<T>(
        &self,
        work: impl AsyncFnOnce(&mut PgLease) -> Result<T> + Clone,
    ) -> Result<T> {
        self.within(self.timeout, work).await
    }

    /// [`Self::with`] within another bound. `work` is one transaction, or one statement, and is run from its start again
    /// where it met a lock.
    pub(super) async fn within<T>(
        &self,
        bound: Duration,
        work: impl AsyncFnOnce(&mut PgLease) -> Result<T> + Clone,
    ) -> Result<T> {
        let mut met = None;
        let bounded = timeout(bound, async {
            let mut pause = AGAIN;
            loop {
                let mut lease = Lease::take(&self.pool, &self.tally).await?;
                match work.clone()(&mut lease).await {
                    Err(error @ StoreError::Locked(_)) => {
                        lease.roll_back().await?;
                        met = Some(error);
                    }
                    done => return done,
                }
                drop(lease);
                sleep(pause).await;
                pause = (pause * 2).min(AGAIN_AT_LAST);
            }
        });
        let done = bounded.await;
        done.unwrap_or_else(|_| Err(met.unwrap_or_else(super::too_slow)))
    }
}
