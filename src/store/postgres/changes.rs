//! The account rule and the log of account changes on PostgreSQL (invariant 6).
//!
//! A cursor is the oldest transaction that was still running when the log was read: whatever commits later has that
//! number or a higher one, so nothing is missed however transactions overlap, and some changes are read twice. The
//! notice is only a wake-up; the log is what counts.

use std::collections::HashMap;
use std::sync::{Mutex as SyncMutex, PoisonError};
use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgListener, PgPoolOptions};
use sqlx::{query, query_as};
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout, timeout_at};

use super::{PgLease, too_slow, unavailable};
use crate::model::UserId;
use crate::store::rows::no_row;
use crate::store::{AccountChanges, ChangeCursor, Result, Standing};

const CHANNEL: &str = "presence_account_changes";
/// The log is pruned this often, by each process that reads it.
const PRUNE_EVERY: Duration = Duration::from_hours(1);

/// After so long without a notice the log is looked at. That shows as well whether the connection is alive, and finds
/// changes whose notice went missing: before version 15, PostgreSQL delivers those of replicated rows only with the next
/// notice of an ordinary session.
const SILENCE: Duration = Duration::from_secs(15);

pub async fn standings(lease: &mut PgLease, ids: &[UserId]) -> Result<Vec<(UserId, Standing)>> {
    let rows: Vec<(UserId, bool)> =
        lease.rows(query_as("SELECT id, may_be_present FROM users WHERE id = ANY ($1)").bind(ids)).await?;
    let known: HashMap<UserId, bool> = rows.into_iter().collect();
    Ok(ids.iter().map(|id| (*id, Standing::of(known.get(id).copied()))).collect())
}

pub async fn blocked_after(lease: &mut PgLease, after: UserId, limit: u32) -> Result<Vec<UserId>> {
    let rows: Vec<(UserId,)> = lease
        .rows(
            query_as("SELECT id FROM users WHERE NOT may_be_present AND id > $1 ORDER BY id LIMIT $2")
                .bind(after)
                .bind(i64::from(limit)),
        )
        .await?;
    Ok(rows.into_iter().map(|(id,)| id).collect())
}

pub async fn cursor(lease: &mut PgLease) -> Result<ChangeCursor> {
    let row: Option<(String,)> =
        lease.row(query_as("SELECT pg_snapshot_xmin(pg_current_snapshot())::text")).await?;
    Ok(ChangeCursor(row.ok_or_else(no_row)?.0))
}

/// Reads from the cursor on. One that lies ahead of every transaction comes from another life of the database (a
/// restored dump counts anew), so the whole log is read; as for one that cannot be read.
pub async fn since(lease: &mut PgLease, since: &ChangeCursor, prune: bool) -> Result<AccountChanges> {
    let from = since.0.parse::<u64>().unwrap_or(0).to_string();
    let row: Option<(String, Vec<UserId>)> = lease
        .row(
            query_as(
                "SELECT oldest::text, ARRAY(SELECT DISTINCT user_id FROM account_changes \
                 WHERE xid >= CASE WHEN $1::xid8 <= oldest THEN $1::xid8 ELSE '0'::xid8 END) \
                 FROM pg_snapshot_xmin(pg_current_snapshot()) AS oldest",
            )
            .bind(&from),
        )
        .await?;
    let (cursor, users) = row.ok_or_else(no_row)?;
    if prune {
        // Only what this very reader has passed, so that a cursor from before a long outage misses nothing. A failure
        // costs nothing but space, and the next hour tries again.
        let pruned = lease
            .execute(
                query(
                    "DELETE FROM account_changes WHERE id IN (SELECT id FROM account_changes \
                     WHERE xid < $1::xid8 AND at < now() - interval '7 days' FOR UPDATE SKIP LOCKED)",
                )
                .bind(&from),
            )
            .await;
        if let Err(error) = pruned {
            tracing::warn!(%error, "the log of account changes was not pruned");
        }
    }
    Ok(AccountChanges { cursor: ChangeCursor(cursor), users })
}

/// Hears the notices, on a connection of its own.
#[derive(Debug)]
pub struct Watch {
    connect: PgConnectOptions,
    timeout: Duration,
    listening: Mutex<Option<Listening>>,
    pruned: SyncMutex<Instant>,
}

#[derive(Debug)]
struct Listening {
    listener: PgListener,
    /// When the server last said anything.
    heard: Instant,
    /// Where the log ended then.
    end: i64,
}

impl Watch {
    /// Connects to nothing yet.
    pub fn new(connect: PgConnectOptions, timeout: Duration) -> Self {
        Self { connect, timeout, listening: Mutex::new(None), pruned: SyncMutex::new(Instant::now()) }
    }

    /// Whether an hour has passed since this said so last.
    pub fn prune_is_due(&self) -> bool {
        let mut pruned = self.pruned.lock().unwrap_or_else(PoisonError::into_inner);
        let due = pruned.elapsed() >= PRUNE_EVERY;
        if due {
            *pruned = Instant::now();
        }
        due
    }

    /// Waits for a notice. A listener that was set up only now returns at once: what changed before it listened is in
    /// the log and nowhere else.
    pub async fn wait(&self, deadline: Instant) -> Result<()> {
        // Another call of the same handle waits already; its caller is the one that hears.
        let Ok(mut held) = timeout_at(deadline, self.listening.lock()).await else { return Ok(()) };
        let Some(listening) = held.as_mut() else {
            *held = Some(self.listen().await?);
            return Ok(());
        };
        // A call that is cancelled here loses nothing: the listener stays, and reads whole messages only.
        let outcome = listening.hear(deadline, self.timeout).await;
        if outcome.is_err() {
            *held = None;
        }
        outcome
    }

    async fn listen(&self) -> Result<Listening> {
        // A pool of its own each time: a listener that hangs keeps its place in its pool.
        let pool = PgPoolOptions::new()
            .max_connections(1)
            .acquire_timeout(self.timeout)
            .max_lifetime(None)
            .idle_timeout(None)
            .connect_lazy_with(self.connect.clone());
        let setting_up = async {
            let mut listener = PgListener::connect_with(&pool).await?;
            listener.eager_reconnect(false);
            listener.listen(CHANNEL).await?;
            let end = end_of_log(&mut listener).await?;
            Ok((listener, end))
        };
        let (listener, end) =
            timeout(self.timeout, setting_up).await.map_err(|_| too_slow())?.map_err(unavailable)?;
        Ok(Listening { listener, heard: Instant::now(), end })
    }
}

/// The last entry that the log has; 0 for none. One look into an index, and no statement of the service
/// ([`crate::store::Store::statements`]).
async fn end_of_log(listener: &mut PgListener) -> sqlx::Result<i64> {
    sqlx::query_scalar("SELECT COALESCE(max(id), 0) FROM account_changes").fetch_one(listener).await
}

impl Listening {
    async fn hear(&mut self, deadline: Instant, bound: Duration) -> Result<()> {
        loop {
            let silent = self.heard + SILENCE;
            match timeout_at(deadline.min(silent), self.listener.try_recv()).await {
                Ok(Ok(Some(_))) => {
                    self.heard = Instant::now();
                    while self.listener.next_buffered().is_some() {}
                    return Ok(());
                }
                Ok(Ok(None)) => return Err(unavailable(sqlx::Error::PoolClosed)),
                Ok(Err(error)) => return Err(unavailable(error)),
                Err(_) if Instant::now() >= silent => {
                    // A connection that a firewall has forgotten looks just as quiet as a calm day.
                    let asking = end_of_log(&mut self.listener);
                    let end = timeout(bound, asking).await.map_err(|_| too_slow())?.map_err(unavailable)?;
                    self.heard = Instant::now();
                    if std::mem::replace(&mut self.end, end) < end {
                        return Ok(());
                    }
                }
                Err(_) => return Ok(()),
            }
        }
    }
}
