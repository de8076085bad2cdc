//! The account rule and the log of account changes on PostgreSQL (invariant 6).
//!
//! A cursor is the snapshot by which the log was read (`xmin:xmax:running`): what it did not show is read next. So each
//! change is read once, however transactions overlap and however long one stays open. The notice is only a wake-up; the
//! log is what counts.

use std::collections::HashMap;
use std::sync::{Mutex as SyncMutex, PoisonError};
use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgListener, PgPoolOptions};
use sqlx::{query, query_as};
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout, timeout_at};

use super::{PgLease, too_slow, unavailable};
use crate::model::UserId;
use crate::store::change_range::ChangeKey;
use crate::store::rows::no_row;
use crate::store::{AccountChanges, ChangeCursor, ChangeRange, Result, Standing, Woken};

const CHANNEL: &str = "presence_account_changes";
/// What a notice of that channel says where a session has ended; any other is about accounts.
const SESSION: &str = "session";
/// The snapshot that shows nothing: from it on the whole log is read.
const NOTHING: &str = "1:1:";
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
    let row: Option<(String,)> = lease.row(query_as("SELECT pg_current_snapshot()::text")).await?;
    Ok(ChangeCursor(row.ok_or_else(no_row)?.0))
}

/// Where the log is read from: [`NOTHING`] where the cursor lies ahead of every transaction. Then it comes from another life
/// of the database (a restored dump counts anew), so the whole log is read; as for one that cannot be read.
macro_rules! place {
    () => {
        "SELECT CASE WHEN pg_snapshot_xmax($1::text::pg_snapshot) <= pg_snapshot_xmax(pg_current_snapshot()) \
             THEN $1::text::pg_snapshot ELSE '1:1:'::pg_snapshot END AS since, \
         pg_current_snapshot()::text AS now"
    };
}

/// What a snapshot did not show: the index finds what is not older than the oldest transaction that then ran.
macro_rules! since_place {
    () => {
        "xid >= (SELECT pg_snapshot_xmin(since) FROM place) \
         AND NOT pg_visible_in_snapshot(xid, (SELECT since FROM place))"
    };
}

/// A page of the log in the order of transactions and ids, without its order and size.
macro_rules! page_of {
    () => {
        concat!(
            "WITH place AS MATERIALIZED (",
            place!(),
            ") SELECT place.since::text, place.now, c.user_id, c.number, c.id FROM place LEFT JOIN LATERAL ( \
                 SELECT user_id, xid::text::bigint AS number, id FROM account_changes WHERE ",
            since_place!(),
            " AND ($2::text IS NULL OR pg_visible_in_snapshot(xid, $2::text::pg_snapshot)) \
              AND (account_changes.xid, id) > ($3::text::xid8, $4) AND (account_changes.xid, id) < ($5::text::xid8, $6) "
        )
    };
}

/// Reads all from the cursor on.
pub async fn since(lease: &mut PgLease, since: &ChangeCursor) -> Result<AccountChanges> {
    let statement = concat!(
        "WITH place AS MATERIALIZED (",
        place!(),
        ") SELECT now, ARRAY(SELECT DISTINCT user_id FROM account_changes WHERE ",
        since_place!(),
        ") FROM place"
    );
    let row: Option<(String, Vec<UserId>)> = lease.row(query_as(statement).bind(snapshot(&since.0))).await?;
    let (cursor, users) = row.ok_or_else(no_row)?;
    Ok(AccountChanges { cursor: ChangeCursor(cursor), users })
}

/// Where the log is read from, and its end; of a change the account, the transaction and the id, where there is one.
type PageRow = (String, String, Option<UserId>, Option<i64>, Option<i64>);

/// Reads the next page.
pub async fn page(lease: &mut PgLease, range: &mut ChangeRange) -> Result<Vec<UserId>> {
    let (newest, oldest) = (ChangeKey { xid: i64::MAX, id: i64::MAX }, ChangeKey { xid: 0, id: 0 });
    let (below, above) = (range.below.unwrap_or(newest), range.above.unwrap_or(oldest));
    let statement = if range.from_oldest {
        concat!(page_of!(), "ORDER BY account_changes.xid, id LIMIT $7) AS c ON true")
    } else {
        concat!(page_of!(), "ORDER BY account_changes.xid DESC, id DESC LIMIT $7) AS c ON true")
    };
    let rows: Vec<PageRow> = lease
        .rows(
            query_as(statement)
                .bind(snapshot(&range.since.0))
                .bind(range.upto.as_ref().map(|upto| snapshot(&upto.0)))
                .bind(above.xid.to_string())
                .bind(above.id)
                .bind(below.xid.to_string())
                .bind(below.id)
                .bind(ChangeRange::PAGE),
        )
        .await?;
    let (since, now, ..) = rows.first().ok_or_else(no_row)?;
    range.begin(since, now);
    let page: Vec<(UserId, ChangeKey)> = rows
        .into_iter()
        .filter_map(|(_, _, user, xid, id)| Some((user?, ChangeKey { xid: xid?, id: id? })))
        .collect();
    Ok(range.turn(&page))
}

/// Deletes what is a week old, and only what a reader at this cursor has passed, so that a cursor from before a long outage
/// misses nothing.
pub async fn prune(lease: &mut PgLease, passed: &ChangeCursor) -> Result<()> {
    let statement = "DELETE FROM account_changes WHERE id IN (SELECT id FROM account_changes \
                     WHERE xid < pg_snapshot_xmin($1::text::pg_snapshot) \
                     AND at < now() - interval '7 days' FOR UPDATE SKIP LOCKED)";
    lease.execute(query(statement).bind(snapshot(&passed.0))).await.map(drop)
}

/// The cursor as a snapshot that PostgreSQL reads; [`NOTHING`] where it is none. A number alone is a cursor of a version
/// before: the oldest transaction that ran, before which everything was read.
fn snapshot(cursor: &str) -> String {
    let whole = || -> Option<String> {
        if let Ok(oldest) = cursor.parse::<u64>() {
            return (oldest > 0).then(|| format!("{oldest}:{oldest}:"));
        }
        let mut parts = cursor.split(':');
        let (first, end, running) = (parts.next()?, parts.next()?, parts.next()?);
        let (first, end): (u64, u64) = (first.parse().ok()?, end.parse().ok()?);
        let running: Vec<u64> = running
            .split(',')
            .filter(|part| !part.is_empty())
            .map(|part| part.parse().ok())
            .collect::<Option<_>>()?;
        let in_order = running.is_sorted() && running.iter().all(|xid| (first..end).contains(xid));
        let is_whole = parts.next().is_none() && first > 0 && first <= end && in_order;
        is_whole.then(|| cursor.to_owned())
    };
    whole().unwrap_or_else(|| NOTHING.to_owned())
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
    pub async fn wait(&self, deadline: Instant) -> Result<Woken> {
        // Another call of the same handle waits already; its caller is the one that hears.
        let Ok(mut held) = timeout_at(deadline, self.listening.lock()).await else { return Ok(Woken::BOTH) };
        let Some(listening) = held.as_mut() else {
            *held = Some(self.listen().await?);
            return Ok(Woken::BOTH);
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
    async fn hear(&mut self, deadline: Instant, bound: Duration) -> Result<Woken> {
        loop {
            let silent = self.heard + SILENCE;
            match timeout_at(deadline.min(silent), self.listener.try_recv()).await {
                Ok(Ok(Some(notice))) => {
                    self.heard = Instant::now();
                    let mut woken = Woken { accounts: false, sessions: false };
                    let mut next = Some(notice);
                    while let Some(notice) = next {
                        let is_session = notice.payload() == SESSION;
                        woken.sessions |= is_session;
                        woken.accounts |= !is_session;
                        next = self.listener.next_buffered();
                    }
                    return Ok(woken);
                }
                Ok(Ok(None)) => return Err(unavailable(sqlx::Error::PoolClosed)),
                Ok(Err(error)) => return Err(unavailable(error)),
                Err(_) if Instant::now() >= silent => {
                    // A connection that a firewall has forgotten looks just as quiet as a calm day.
                    let asking = end_of_log(&mut self.listener);
                    let end = timeout(bound, asking).await.map_err(|_| too_slow())?.map_err(unavailable)?;
                    self.heard = Instant::now();
                    if std::mem::replace(&mut self.end, end) < end {
                        return Ok(Woken { accounts: true, sessions: false });
                    }
                }
                Err(_) => return Ok(Woken::BOTH),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_is_a_snapshot_or_the_whole_log_is_read() {
        for (cursor, read_as) in [
            ("10:20:", "10:20:"),
            ("10:20:10,14,15", "10:20:10,14,15"),
            ("10:10:", "10:10:"),
            ("17", "17:17:"),
            ("0", NOTHING),
            ("", NOTHING),
            ("nonsense", NOTHING),
            ("-5", NOTHING),
            ("20:10:", NOTHING),
            ("0:10:", NOTHING),
            ("10:20:9", NOTHING),
            ("10:20:20", NOTHING),
            ("10:20:15,14", NOTHING),
            ("10:20:x", NOTHING),
            ("10:20:11:", NOTHING),
            ("10:20", NOTHING),
        ] {
            assert_eq!(snapshot(cursor), read_as, "{cursor:?}");
        }
    }
}
