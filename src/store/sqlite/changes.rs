//! The account rule and the log of account changes on SQLite (invariant 6).
//!
//! SQLite has one writer at a time, so the ids of the log are in the order of commits and the last one is the cursor.
//! It has no notices: the end of the log is looked at a few times a second, from a connection of its own.

use std::collections::HashMap;
use std::sync::{Mutex as SyncMutex, PoisonError};
use std::time::Duration;

use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{Connection, query, query_as};
use tokio::sync::{Mutex, Notify};
use tokio::time::{Instant, sleep_until, timeout, timeout_at};

use super::{SqliteLease, json_ids, too_slow};
use crate::model::UserId;
use crate::store::lease::store_error;
use crate::store::rows::no_row;
use crate::store::{AccountChanges, ChangeCursor, Result, Standing};

/// How often the end of the log is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// The log is pruned this often, by each process that reads it.
const PRUNE_EVERY: Duration = Duration::from_hours(1);

/// The last id that the log has given, whatever was pruned since.
macro_rules! end_of_log {
    () => {
        "coalesce((SELECT seq FROM sqlite_sequence WHERE name = 'account_changes'), 0)"
    };
}

pub async fn standings(lease: &mut SqliteLease, ids: &[UserId]) -> Result<Vec<(UserId, Standing)>> {
    let rows: Vec<(UserId, bool)> = lease
        .rows(
            query_as("SELECT id, may_be_present FROM users WHERE id IN (SELECT value FROM json_each(?1))")
                .bind(json_ids(ids)),
        )
        .await?;
    let known: HashMap<UserId, bool> = rows.into_iter().collect();
    Ok(ids.iter().map(|id| (*id, Standing::of(known.get(id).copied()))).collect())
}

pub async fn blocked_after(lease: &mut SqliteLease, after: UserId, limit: u32) -> Result<Vec<UserId>> {
    let rows: Vec<(UserId,)> = lease
        .rows(
            query_as("SELECT id FROM users WHERE may_be_present = 0 AND id > ?1 ORDER BY id LIMIT ?2")
                .bind(after)
                .bind(i64::from(limit)),
        )
        .await?;
    Ok(rows.into_iter().map(|(id,)| id).collect())
}

pub async fn cursor(lease: &mut SqliteLease) -> Result<ChangeCursor> {
    let row: Option<(i64,)> = lease.row(query_as(concat!("SELECT ", end_of_log!()))).await?;
    Ok(ChangeCursor(row.ok_or_else(no_row)?.0.to_string()))
}

/// Reads from the cursor on. One that lies ahead of the log comes from another file, so the whole log is read; as for
/// one that cannot be read.
pub async fn since(lease: &mut SqliteLease, since: &ChangeCursor) -> Result<AccountChanges> {
    let rows: Vec<(i64, Option<UserId>)> = lease
        .rows(
            query_as(concat!(
                "SELECT log.last, changed.user_id FROM (SELECT ",
                end_of_log!(),
                " AS last) AS log LEFT JOIN (SELECT DISTINCT user_id FROM account_changes WHERE id > ",
                "CASE WHEN ?1 <= ",
                end_of_log!(),
                " THEN ?1 ELSE 0 END) AS changed ON true"
            ))
            .bind(place(since)),
        )
        .await?;
    let (last, _) = *rows.first().ok_or_else(no_row)?;
    let users = rows.into_iter().filter_map(|(_, user)| user).collect();
    Ok(AccountChanges { cursor: ChangeCursor(last.to_string()), users })
}

/// Prunes what is a week old, and only what this very reader has passed: a cursor from before a long outage misses
/// nothing.
pub async fn prune(lease: &mut SqliteLease, since: &ChangeCursor) -> Result<()> {
    let pruned = query(
        "DELETE FROM account_changes WHERE id <= ?1 AND at < strftime('%Y-%m-%dT%H:%M:%fZ', 'now', '-7 days')",
    );
    lease.execute(pruned.bind(place(since))).await.map(drop)
}

fn place(cursor: &ChangeCursor) -> i64 {
    cursor.0.parse().unwrap_or(0)
}

/// Looks at the end of the log. Its looks are no statements of the service (`Store::statements`).
#[derive(Debug)]
pub struct Watch {
    connect: SqliteConnectOptions,
    looking: Mutex<Option<Looking>>,
    written: Notify,
    pruned: SyncMutex<Instant>,
}

#[derive(Debug)]
struct Looking {
    connection: SqliteConnection,
    last: i64,
}

impl Watch {
    /// Opens nothing yet.
    pub fn new(connect: SqliteConnectOptions) -> Self {
        Self {
            connect,
            looking: Mutex::new(None),
            written: Notify::new(),
            pruned: SyncMutex::new(Instant::now()),
        }
    }

    /// Tells the waiting call that accounts may have been written: it looks now.
    pub fn wake(&self) {
        self.written.notify_one();
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

    /// Waits until the log has grown. The first look returns at once: what changed before it is in the log.
    pub async fn wait(&self, deadline: Instant, bound: Duration) -> Result<()> {
        // Another call of the same handle waits already; its caller is the one that hears.
        let Ok(mut held) = timeout_at(deadline, self.looking.lock()).await else { return Ok(()) };
        loop {
            // Out of its place while in use: a call that is cancelled in a look leaves no half-read connection.
            let before = held.take();
            let known = before.as_ref().map(|looking| looking.last);
            let looked = timeout(bound, self.look(before)).await.map_err(|_| too_slow())?;
            let looking = looked.map_err(store_error::<sqlx::Sqlite>)?;
            let grown = known != Some(looking.last);
            *held = Some(looking);
            if grown || Instant::now() >= deadline {
                return Ok(());
            }
            let next = (Instant::now() + LOOK_EVERY).min(deadline);
            tokio::select! {
                () = sleep_until(next) => {}
                () = self.written.notified() => {}
            }
        }
    }

    async fn look(&self, before: Option<Looking>) -> sqlx::Result<Looking> {
        let mut connection = match before {
            Some(looking) => looking.connection,
            None => SqliteConnection::connect_with(&self.connect).await?,
        };
        let (last,): (i64,) = query_as(concat!("SELECT ", end_of_log!())).fetch_one(&mut connection).await?;
        Ok(Looking { connection, last })
    }
}
