//! The history and the mirror on PostgreSQL (invariants 3, 5, 11 and 12).
//!
//! A batch takes the rows of `users` that it can lock at once and leaves out the others, whose transitions come again. The
//! locks of its tables are taken before the first row, so it never waits for anything while it holds rows.

use std::collections::{HashMap, HashSet};

use chrono::{DateTime, Utc};
use sqlx::{AssertSqlSafe, query, query_as};

use super::{BATCH_TIMEOUT, PgLease};
use crate::model::history::Recorded;
use crate::model::{Millis, StreamId, Transition, UserId};
use crate::store::batch::{
    NEWEST_OF_EACH_SHARD, Plan, latest, latest_possible, newest_of, newest_position, plan, users_of,
};
use crate::store::rows::{PresenceRow, StoredRow, convert, entry_id, instant, position};
use crate::store::{MirrorRow, RecordOutcome, Result};

/// First key of the advisory locks of batches; the second is the shard. Any number that nobody else uses.
const BATCH_LOCK: i32 = 0x7072_6573;

/// One batch of one shard. The advisory lock keeps a second persister of the shard waiting until this one has
/// committed; the rows are held so that the write-behind and the doctor change none of them in between.
pub async fn record(
    lease: &mut PgLease,
    shard: u32,
    batch: &[Transition],
    now: Millis,
) -> Result<RecordOutcome> {
    let users = users_of(batch);
    let latest = latest_possible(now);
    begin_batch(lease, Some((shard, newest_of(batch)))).await?;
    let recorded = lock_and_read(lease, &users, latest).await?;
    let locked = exist_among(lease, users.iter().filter(|user| !recorded.contains_key(user))).await?;
    let plan = plan(&users, &recorded, &locked, batch);
    let added = add_history(lease, shard, &plan).await?;
    move_mirror(lease, &plan, latest).await?;
    set_aside(lease, shard, &plan).await?;
    lease.commit().await?;
    let recorded = usize::try_from(added).unwrap_or(usize::MAX);
    Ok(RecordOutcome { recorded, unknown: plan.unknown, locked: plan.locked })
}

/// Locks those of the users whose row no other transaction holds, and reads where their histories have got to. The newest
/// row of each costs one look into the primary key of the history. A login's foreign key asks for FOR KEY SHARE, which NO
/// KEY UPDATE lets pass: a batch makes no login wait.
async fn lock_and_read(
    lease: &mut PgLease,
    users: &[UserId],
    latest: Millis,
) -> Result<HashMap<UserId, Recorded>> {
    let rows: Vec<StoredRow> = lease
        .rows(
            query_as(
                "SELECT u.id, u.online_status, u.presence_version, u.last_seen, h.to_status, h.stream_id, \
                 n.stream_ms AS newest_ms, n.stream_seq AS newest_seq FROM users u \
                 LEFT JOIN LATERAL (SELECT t.to_status, t.stream_id FROM presence_transitions t \
                 WHERE t.user_id = u.id ORDER BY t.id DESC LIMIT 1) AS h ON true \
                 LEFT JOIN (SELECT stream_ms, stream_seq FROM presence_positions \
                 ORDER BY stream_ms DESC, stream_seq DESC LIMIT 1) AS n ON true \
                 WHERE u.id = ANY ($1) FOR NO KEY UPDATE OF u SKIP LOCKED",
            )
            .bind(users),
        )
        .await?;
    rows.into_iter().map(|row| row.into_recorded(latest)).collect()
}

/// Those of the users that have a row.
async fn exist_among(lease: &mut PgLease, users: impl Iterator<Item = &UserId>) -> Result<HashSet<UserId>> {
    let users: Vec<UserId> = users.copied().collect();
    if users.is_empty() {
        return Ok(HashSet::new());
    }
    let rows: Vec<(UserId,)> =
        lease.rows(query_as("SELECT id FROM users WHERE id = ANY ($1)").bind(users)).await?;
    Ok(rows.into_iter().map(|(id,)| id).collect())
}

/// Begins a batch in one round trip: takes the lock of its shard, then those of the tables, then notes how far the shard's
/// stream has come. A table that another application changes at the time is no error for good: the call is tried again.
async fn begin_batch(lease: &mut PgLease, newest: Option<(u32, StreamId)>) -> Result<()> {
    const TABLES: &str = "LOCK TABLE users, presence_transitions, presence_set_aside, presence_positions \
                          IN ROW EXCLUSIVE MODE NOWAIT";
    let limit_ms = BATCH_TIMEOUT.as_millis();
    let begin = format!("BEGIN ISOLATION LEVEL READ COMMITTED; SET LOCAL statement_timeout = {limit_ms}");
    match newest {
        Some((shard, newest)) => {
            // The key's 32 bits are all that counts, not its sign.
            let key = shard.cast_signed();
            let [ms, seq] = [newest.ms, newest.seq].map(|part| i64::try_from(part).unwrap_or(i64::MAX));
            let script = format!(
                "{begin}; SELECT pg_advisory_xact_lock({BATCH_LOCK}, {key}); {TABLES}; \
                 INSERT INTO presence_positions AS p (shard, stream_ms, stream_seq) VALUES ({shard}, {ms}, {seq}) \
                 ON CONFLICT (shard) DO UPDATE SET stream_ms = excluded.stream_ms, stream_seq = excluded.stream_seq \
                 WHERE (excluded.stream_ms, excluded.stream_seq) > (p.stream_ms, p.stream_seq)"
            );
            lease.begin(AssertSqlSafe(script), 5).await
        }
        None => lease.begin(AssertSqlSafe(format!("{begin}; {TABLES}")), 3).await,
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

async fn move_mirror(lease: &mut PgLease, plan: &Plan<'_>, latest: Millis) -> Result<()> {
    if plan.moved.is_empty() {
        return Ok(());
    }
    let users: Vec<UserId> = plan.moved.iter().map(|(user, _)| *user).collect();
    let statuses: Vec<&str> = plan.moved.iter().map(|(_, to)| to.status.as_str()).collect();
    let versions: Vec<i64> = plan.moved.iter().map(|(_, to)| to.version).collect();
    let seen: Vec<Option<DateTime<Utc>>> =
        plan.moved.iter().map(|(_, to)| to.last_seen.map(Millis::to_utc)).collect();
    // GREATEST leaves nulls out. What lies in the future was written by another application.
    lease
        .execute(
            query(
                "UPDATE users SET online_status = m.status, presence_version = m.version, \
                 presence_writes = users.presence_writes + 1, \
                 last_seen = CASE WHEN users.last_seen > $5 THEN m.last_seen \
                 ELSE GREATEST(users.last_seen, m.last_seen) END \
                 FROM unnest($1::bigint[], $2::text[], $3::bigint[], $4::timestamptz[]) \
                 AS m (id, status, version, last_seen) WHERE users.id = m.id",
            )
            .bind(users)
            .bind(statuses)
            .bind(versions)
            .bind(seen)
            .bind(latest.to_utc()),
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

/// Rows that have nothing to gain are not locked, and those that another transaction holds wait for the next time.
pub async fn touch(lease: &mut PgLease, seen: &[(UserId, Millis)], now: Millis) -> Result<u64> {
    let (users, at): (Vec<UserId>, Vec<DateTime<Utc>>) =
        latest(seen).into_iter().map(|(user, at)| (user, at.to_utc())).unzip();
    begin_batch(lease, None).await?;
    let changed = lease
        .execute(
            query(
                "WITH later AS MATERIALIZED (\
                 SELECT u.id, s.at FROM users u JOIN unnest($1::bigint[], $2::timestamptz[]) AS s (id, at) USING (id) \
                 WHERE u.last_seen IS NULL OR u.last_seen < s.at OR u.last_seen > $3 \
                 FOR NO KEY UPDATE OF u SKIP LOCKED) \
                 UPDATE users SET last_seen = later.at, presence_writes = users.presence_writes + 1 \
                 FROM later WHERE users.id = later.id",
            )
            .bind(users)
            .bind(at)
            .bind(latest_possible(now).to_utc()),
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
    let newest: Option<(Option<String>, Option<i64>)> = lease
        .row(
            query_as(
                "SELECT (SELECT max(stream_id) FROM presence_transitions WHERE stream_id > $1 AND stream_id < $2), \
                 (SELECT stream_ms FROM presence_positions WHERE shard = $3)",
            )
            .bind(format!("{shard}/"))
            .bind(format!("{shard}0"))
            .bind(i64::from(shard)),
        )
        .await?;
    let Some((id, taken)) = newest else { return Ok(None) };
    let recorded = id.as_deref().and_then(entry_id).map(instant);
    Ok(recorded.max(taken.map(Millis)))
}

/// The positions, and the newest entry of each shard in the history: a few looks into its index for each shard.
pub async fn newest_id(lease: &mut PgLease) -> Result<Option<StreamId>> {
    let taken: Vec<(i64, i64)> =
        lease.rows(query_as("SELECT stream_ms, stream_seq FROM presence_positions")).await?;
    let recorded: Vec<(Option<String>,)> = lease.rows(query_as(NEWEST_OF_EACH_SHARD)).await?;
    let recorded = recorded.into_iter().filter_map(|(id,)| entry_id(&id?));
    Ok(newest_position(taken.into_iter().map(|(ms, seq)| position(ms, seq)), recorded))
}
