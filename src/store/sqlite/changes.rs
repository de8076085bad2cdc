//! The account rule and the log of account changes on SQLite (invariant 6).
//!
//! SQLite has one writer at a time, so the ids of the log are in the order of commits and the last one is the cursor.
//! It has no notices: the end of the log, and the count of sessions that have ended, are looked at a few times a second,
//! from a connection of its own.

use std::collections::HashMap;
use std::sync::{Mutex as SyncMutex, PoisonError};
use std::time::Duration;

use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{Connection, query, query_as};
use tokio::sync::{Mutex, Notify};
use tokio::time::{Instant, sleep_until, timeout, timeout_at};

use super::{SqliteLease, json_ids, too_slow};
use crate::model::UserId;
use crate::store::change_range::ChangeKey;
use crate::store::lease::store_error;
use crate::store::rows::no_row;
use crate::store::{AccountChanges, ChangeCursor, ChangeRange, Result, Standing, StoreError, Woken};

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

/// Reads all from the cursor on. One that lies ahead of the log comes from another file, so the whole log is read; as for
/// one that cannot be read.
pub async fn since(lease: &mut SqliteLease, since: &ChangeCursor) -> Result<AccountChanges> {
    // One text instead of a row for each account: a mass change names as many accounts as there are.
    let row: Option<(i64, String)> = lease
        .row(
            query_as(concat!(
                "WITH log AS MATERIALIZED (SELECT ",
                end_of_log!(),
                " AS last) SELECT last, (SELECT json_group_array(DISTINCT user_id) FROM account_changes \
                 WHERE id > (SELECT CASE WHEN ?1 <= last THEN ?1 ELSE 0 END FROM log)) FROM log"
            ))
            .bind(place(since)),
        )
        .await?;
    let (last, users) = row.ok_or_else(no_row)?;
    let error = |error| StoreError::Database(Box::new(sqlx::Error::Decode(Box::new(error))));
    let users = serde_json::from_str(&users).map_err(error)?;
    Ok(AccountChanges { cursor: ChangeCursor(last.to_string()), users })
}

/// The changes between two ids; and the end of the log, also where there are none.
macro_rules! page_of {
    ($order:literal) => {
        concat!(
            "WITH log AS MATERIALIZED (SELECT ",
            end_of_log!(),
            " AS last), place AS MATERIALIZED (SELECT last, CASE WHEN ?1 <= last THEN ?1 ELSE 0 END AS since FROM log) \
             SELECT place.since, place.last, c.user_id, c.id FROM place LEFT JOIN \
             (SELECT user_id, id FROM account_changes WHERE id > max((SELECT since FROM place), ?3) \
             AND id < ?4 AND id <= coalesce(?2, (SELECT last FROM place)) ORDER BY id ",
            $order,
            " LIMIT ?5) AS c ON true"
        )
    };
}

/// Reads the next page.
pub async fn page(lease: &mut SqliteLease, range: &mut ChangeRange) -> Result<Vec<UserId>> {
    let statement = if range.from_oldest { page_of!("ASC") } else { page_of!("DESC") };
    let rows: Vec<(i64, i64, Option<UserId>, Option<i64>)> = lease
        .rows(
            query_as(statement)
                .bind(place(&range.since))
                .bind(range.upto.as_ref().map(place))
                .bind(range.above.map_or(0, |key| key.id))
                .bind(range.below.map_or(i64::MAX, |key| key.id))
                .bind(ChangeRange::PAGE),
        )
        .await?;
    let (since, last, ..) = rows.first().ok_or_else(no_row)?;
    range.begin(&since.to_string(), &last.to_string());
    let page: Vec<(UserId, ChangeKey)> = rows
        .into_iter()
        .filter_map(|(_, _, user, id)| Some((user?, ChangeKey { xid: 0, id: id? })))
        .collect();
    Ok(range.turn(&page))
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
    /// The last id of the log.
    last: i64,
    /// How many sessions have ended.
    ended: i64,
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
    pub async fn wait(&self, deadline: Instant, bound: Duration) -> Result<Woken> {
        // Another call of the same handle waits already; its caller is the one that hears.
        let Ok(mut held) = timeout_at(deadline, self.looking.lock()).await else { return Ok(Woken::BOTH) };
        loop {
            // Out of its place while in use: a call that is cancelled in a look leaves no half-read connection.
            let before = held.take();
            let known = before.as_ref().map(|looking| (looking.last, looking.ended));
            let looked = timeout(bound, self.look(before)).await.map_err(|_| too_slow())?;
            let looking = looked.map_err(store_error::<sqlx::Sqlite>)?;
            let woken = Woken {
                accounts: known.is_none_or(|(last, _)| last != looking.last),
                sessions: known.is_none_or(|(_, ended)| ended != looking.ended),
            };
            *held = Some(looking);
            if woken.accounts || woken.sessions {
                return Ok(woken);
            }
            if Instant::now() >= deadline {
                return Ok(Woken::BOTH);
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
        let look = query_as(concat!(
            "SELECT ",
            end_of_log!(),
            ", coalesce((SELECT ended FROM session_ends WHERE id = 1), 0)"
        ));
        let (last, ended): (i64, i64) = look.fetch_one(&mut connection).await?;
        Ok(Looking { connection, last, ended })
    }
}
