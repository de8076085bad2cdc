//! The history and the mirror on PostgreSQL (invariants 3 and 5).

use std::collections::HashMap;

use chrono::{DateTime, Utc};
use sqlx::{AssertSqlSafe, query, query_as};

use super::{BATCH_TIMEOUT, PgLease};
use crate::model::history::Recorded;
use crate::model::{Millis, Transition, UserId};
use crate::store::batch::{Plan, latest, plan, users_of};
use crate::store::rows::{PresenceRow, RecordedRow, convert, instant};
use crate::store::{MirrorRow, RecordOutcome, Result};

/// First key of the advisory locks of batches; the second is the shard. Any number that nobody else uses.
const BATCH_LOCK: i32 = 0x7072_6573;

/// One batch of one shard. The advisory lock keeps a second persister of the shard waiting until this one has
/// committed; the rows are held so that nobody moves them in between.
pub async fn record(lease: &mut PgLease, shard: u32, batch: &[Transition]) -> Result<RecordOutcome> {
    let users = users_of(batch);
    begin_batch(lease, Some(shard)).await?;
    // A login's foreign key asks for FOR KEY SHARE, which NO KEY UPDATE lets pass: a batch makes no login wait.
    let rows: Vec<RecordedRow> = lease
        .rows(
            query_as(
                "SELECT id, online_status, presence_version, last_seen FROM users WHERE id = ANY ($1) \
                 ORDER BY id FOR NO KEY UPDATE",
            )
            .bind(&users),
        )
        .await?;
    let recorded: HashMap<UserId, Recorded> = convert(rows)?.into_iter().collect();
    let plan = plan(&users, &recorded, batch);
    let added = add_history(lease, shard, &plan).await?;
    move_mirror(lease, &plan).await?;
    set_aside(lease, shard, &plan).await?;
    lease.commit().await?;
    Ok(RecordOutcome { recorded: usize::try_from(added).unwrap_or(usize::MAX), unknown: plan.unknown })
}

/// Begins a batch and takes the lock of its shard, in one round trip.
async fn begin_batch(lease: &mut PgLease, shard: Option<u32>) -> Result<()> {
    let limit_ms = BATCH_TIMEOUT.as_millis();
    let begin = format!("BEGIN ISOLATION LEVEL READ COMMITTED; SET LOCAL statement_timeout = {limit_ms}");
    match shard {
        // The key's 32 bits are all that counts, not its sign.
        Some(shard) => {
            let key = shard.cast_signed();
            let script = format!("{begin}; SELECT pg_advisory_xact_lock({BATCH_LOCK}, {key})");
            lease.begin(AssertSqlSafe(script), 3).await
        }
        None => lease.begin(AssertSqlSafe(begin), 2).await,
    }
}

async fn add_history(lease: &mut PgLease, shard: u32, plan: &Plan<'_>) -> Result<u64> {
    if plan.history.is_empty() {
        return Ok(0);
    }
    let rows = &plan.history;
    let ids: Vec<String> = rows.iter().map(|(_, row)| format!("{shard}/{}", row.id)).collect();
    let users: Vec<UserId> = rows.iter().map(|(user, _)| *user).collect();
    let from: Vec<&str> = rows.iter().map(|(_, row)| row.from.as_str()).collect();
    let to: Vec<&str> = rows.iter().map(|(_, row)| row.to.as_str()).collect();
    let reasons: Vec<&str> = rows.iter().map(|(_, row)| row.reason.as_str()).collect();
    let at: Vec<DateTime<Utc>> = rows.iter().map(|(_, row)| row.at.to_utc()).collect();
    // In the order of the stream, which the column `id` then keeps.
    let added = lease
        .execute(
            query(
                "INSERT INTO presence_transitions (stream_id, user_id, from_status, to_status, reason, at) \
                 SELECT stream_id, user_id, from_status, to_status, reason, at \
                 FROM unnest($1::text[], $2::bigint[], $3::text[], $4::text[], $5::text[], $6::timestamptz[]) \
                 WITH ORDINALITY AS t (stream_id, user_id, from_status, to_status, reason, at, place) \
                 ORDER BY place ON CONFLICT (stream_id) DO NOTHING",
            )
            .bind(ids)
            .bind(users)
            .bind(from)
            .bind(to)
            .bind(reasons)
            .bind(at),
        )
        .await?;
    Ok(added.rows_affected())
}

async fn move_mirror(lease: &mut PgLease, plan: &Plan<'_>) -> Result<()> {
    if plan.moved.is_empty() {
        return Ok(());
    }
    let users: Vec<UserId> = plan.moved.iter().map(|(user, _)| *user).collect();
    let statuses: Vec<&str> = plan.moved.iter().map(|(_, to)| to.status.as_str()).collect();
    let versions: Vec<i64> = plan.moved.iter().map(|(_, to)| to.version).collect();
    let seen: Vec<Option<DateTime<Utc>>> =
        plan.moved.iter().map(|(_, to)| to.last_seen.map(Millis::to_utc)).collect();
    // GREATEST leaves nulls out, and keeps what plain SQL wrote to the microsecond.
    lease
        .execute(
            query(
                "UPDATE users SET online_status = m.status, presence_version = m.version, \
                 last_seen = GREATEST(users.last_seen, m.last_seen) \
                 FROM unnest($1::bigint[], $2::text[], $3::bigint[], $4::timestamptz[]) \
                 AS m (id, status, version, last_seen) WHERE users.id = m.id",
            )
            .bind(users)
            .bind(statuses)
            .bind(versions)
            .bind(seen),
        )
        .await?;
    Ok(())
}

async fn set_aside(lease: &mut PgLease, shard: u32, plan: &Plan<'_>) -> Result<()> {
    if plan.set_aside.is_empty() {
        return Ok(());
    }
    let rows = &plan.set_aside;
    let ids: Vec<String> = rows.iter().map(|row| format!("{shard}/{}", row.id)).collect();
    let users: Vec<UserId> = rows.iter().map(|row| row.user).collect();
    let to: Vec<&str> = rows.iter().map(|row| row.to.as_str()).collect();
    let reasons: Vec<&str> = rows.iter().map(|row| row.reason.as_str()).collect();
    let at: Vec<DateTime<Utc>> = rows.iter().map(|row| row.at.to_utc()).collect();
    lease
        .execute(
            query(
                "INSERT INTO presence_set_aside (stream_id, user_id, to_status, reason, at) \
                 SELECT * FROM unnest($1::text[], $2::bigint[], $3::text[], $4::text[], $5::timestamptz[]) \
                 ON CONFLICT (stream_id) DO NOTHING",
            )
            .bind(ids)
            .bind(users)
            .bind(to)
            .bind(reasons)
            .bind(at),
        )
        .await?;
    Ok(())
}

/// Rows that have nothing to gain are not locked; the rest in the order of ids, as a batch locks them.
pub async fn touch(lease: &mut PgLease, seen: &[(UserId, Millis)]) -> Result<u64> {
    let (users, at): (Vec<UserId>, Vec<DateTime<Utc>>) =
        latest(seen).into_iter().map(|(user, at)| (user, at.to_utc())).unzip();
    begin_batch(lease, None).await?;
    let changed = lease
        .execute(
            query(
                "WITH later AS MATERIALIZED (\
                 SELECT u.id, s.at FROM users u JOIN unnest($1::bigint[], $2::timestamptz[]) AS s (id, at) USING (id) \
                 WHERE u.last_seen IS NULL OR u.last_seen < s.at ORDER BY u.id FOR NO KEY UPDATE OF u) \
                 UPDATE users SET last_seen = later.at FROM later WHERE users.id = later.id",
            )
            .bind(users)
            .bind(at),
        )
        .await?;
    lease.commit().await?;
    Ok(changed.rows_affected())
}

pub async fn present_after(lease: &mut PgLease, after: UserId, limit: u32) -> Result<Vec<MirrorRow>> {
    let rows: Vec<PresenceRow> = lease
        .rows(
            query_as(
                "SELECT id, online_status, last_seen FROM users WHERE id > $1 AND online_status <> 'offline' \
                 ORDER BY id LIMIT $2",
            )
            .bind(after)
            .bind(i64::from(limit)),
        )
        .await?;
    convert(rows)
}

/// Names that begin with the shard lie between `<shard>/` and `<shard>0`, byte by byte, and within the shard a millisecond
/// sorts as text (until the year 2286).
pub async fn newest(lease: &mut PgLease, shard: u32) -> Result<Option<Millis>> {
    let newest: Option<(Option<String>,)> = lease
        .row(
            query_as(
                "SELECT max(stream_id) FROM presence_transitions WHERE stream_id > $1 AND stream_id < $2",
            )
            .bind(format!("{shard}/"))
            .bind(format!("{shard}0")),
        )
        .await?;
    Ok(newest.and_then(|(id,)| instant(&id?)))
}
