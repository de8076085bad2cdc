//! The history and the mirror on SQLite (invariants 3, 5 and 11). The write lock stands for what PostgreSQL needs an
//! advisory lock and row locks for.

use std::collections::{HashMap, HashSet};

use serde_json::{Value, json};
use sqlx::{query, query_as};

use super::{SqliteLease, begin, json_ids, text};
use crate::model::history::Recorded;
use crate::model::{Millis, StreamId, Transition, UserId};
use crate::store::batch::{
    NEWEST_OF_EACH_SHARD, latest, latest_possible, newest_of, newest_position, plan, users_of,
};
use crate::store::rows::{PresenceRow, StoredRow, convert, entry_id, instant, position};
use crate::store::{MirrorRow, RecordOutcome, Result};

/// One batch of one shard; rows travel as one JSON array each.
pub async fn record(
    lease: &mut SqliteLease,
    shard: u32,
    batch: &[Transition],
    now: Millis,
) -> Result<RecordOutcome> {
    let users = users_of(batch);
    let latest = latest_possible(now);
    begin(lease).await?;
    note_position(lease, shard, newest_of(batch)).await?;
    let rows: Vec<StoredRow> = lease
        .rows(
            query_as(
                "SELECT u.id, u.online_status, u.presence_version, u.last_seen, h.to_status, h.stream_id, \
                 n.stream_ms AS newest_ms, n.stream_seq AS newest_seq FROM users u \
                 LEFT JOIN presence_transitions h \
                 ON h.id = (SELECT max(t.id) FROM presence_transitions t WHERE t.user_id = u.id) \
                 LEFT JOIN (SELECT stream_ms, stream_seq FROM presence_positions \
                 ORDER BY stream_ms DESC, stream_seq DESC LIMIT 1) AS n \
                 WHERE u.id IN (SELECT value FROM json_each(?1))",
            )
            .bind(json_ids(&users)),
        )
        .await?;
    let recorded: HashMap<UserId, Recorded> =
        rows.into_iter().map(|row| row.into_recorded(latest)).collect::<Result<_>>()?;
    let plan = plan(&users, &recorded, &HashSet::new(), batch);

    let history = plan.history.iter().map(|(user, row)| {
        let stream_id = format!("{shard}/{}", row.id);
        json!([stream_id, user, row.from.as_str(), row.to.as_str(), row.reason.as_str(), text(row.at)])
    });
    let added = execute_each(
        lease,
        "INSERT INTO presence_transitions (stream_id, user_id, from_status, to_status, reason, at) \
         SELECT value ->> 0, value ->> 1, value ->> 2, value ->> 3, value ->> 4, value ->> 5 \
         FROM json_each(?1) WHERE true ORDER BY key ON CONFLICT (stream_id) DO NOTHING",
        history,
    )
    .await?;
    let moved = plan
        .moved
        .iter()
        .map(|(user, to)| json!([user, to.status.as_str(), to.version, to.last_seen.map(text)]));
    move_mirror(lease, moved, latest).await?;
    let set_aside = plan.set_aside.iter().map(|row| {
        json!([format!("{shard}/{}", row.id), row.user, row.to.as_str(), row.reason.as_str(), text(row.at)])
    });
    execute_each(
        lease,
        "INSERT INTO presence_set_aside (stream_id, user_id, to_status, reason, at) \
         SELECT value ->> 0, value ->> 1, value ->> 2, value ->> 3, value ->> 4 \
         FROM json_each(?1) WHERE true ON CONFLICT (stream_id) DO NOTHING",
        set_aside,
    )
    .await?;
    lease.commit().await?;
    let recorded = usize::try_from(added).unwrap_or(usize::MAX);
    Ok(RecordOutcome { recorded, unknown: plan.unknown, locked: plan.locked })
}

/// Notes how far the shard's stream has come.
async fn note_position(lease: &mut SqliteLease, shard: u32, newest: StreamId) -> Result<()> {
    let note = "INSERT INTO presence_positions AS p (shard, stream_ms, stream_seq) VALUES (?1, ?2, ?3) \
                ON CONFLICT (shard) DO UPDATE SET stream_ms = excluded.stream_ms, stream_seq = excluded.stream_seq \
                WHERE (excluded.stream_ms, excluded.stream_seq) > (p.stream_ms, p.stream_seq)";
    let [ms, seq] = [newest.ms, newest.seq].map(|part| i64::try_from(part).unwrap_or(i64::MAX));
    lease.execute(query(note).bind(i64::from(shard)).bind(ms).bind(seq)).await.map(drop)
}

/// A `last_seen` after `latest` was written by another application, and gives way.
async fn move_mirror(
    lease: &mut SqliteLease,
    moved: impl Iterator<Item = Value>,
    latest: Millis,
) -> Result<()> {
    let moved: Vec<Value> = moved.collect();
    if moved.is_empty() {
        return Ok(());
    }
    let update = "UPDATE users SET online_status = m.value ->> 1, presence_version = m.value ->> 2, \
                  presence_writes = presence_writes + 1, \
                  last_seen = CASE WHEN last_seen > ?2 THEN m.value ->> 3 \
                  ELSE coalesce(max(last_seen, m.value ->> 3), m.value ->> 3, last_seen) END \
                  FROM json_each(?1) AS m WHERE users.id = m.value ->> 0";
    lease.execute(query(update).bind(Value::from(moved).to_string()).bind(text(latest))).await.map(drop)
}

pub async fn touch(lease: &mut SqliteLease, seen: &[(UserId, Millis)], now: Millis) -> Result<u64> {
    let seen: Vec<Value> = latest(seen).into_iter().map(|(user, at)| json!([user, text(at)])).collect();
    let update = "UPDATE users SET last_seen = s.value ->> 1, presence_writes = presence_writes + 1 \
                  FROM json_each(?1) AS s WHERE users.id = s.value ->> 0 \
                  AND (users.last_seen IS NULL OR users.last_seen < s.value ->> 1 OR users.last_seen > ?2)";
    let update = query(update).bind(Value::from(seen).to_string()).bind(text(latest_possible(now)));
    Ok(lease.execute(update).await?.rows_affected())
}

/// Runs a statement on an array of rows, where there are any; returns how many rows it changed.
async fn execute_each(
    lease: &mut SqliteLease,
    sql: &'static str,
    rows: impl Iterator<Item = Value>,
) -> Result<u64> {
    let rows: Vec<Value> = rows.collect();
    if rows.is_empty() {
        return Ok(0);
    }
    Ok(lease.execute(query(sql).bind(Value::from(rows).to_string())).await?.rows_affected())
}

pub async fn present_after(lease: &mut SqliteLease, after: UserId, limit: u32) -> Result<Vec<MirrorRow>> {
    let rows: Vec<PresenceRow> = lease
        .rows(
            query_as(
                "SELECT id, online_status, last_seen FROM users WHERE id > ?1 AND online_status <> 'offline' \
                 ORDER BY id LIMIT ?2",
            )
            .bind(after)
            .bind(i64::from(limit)),
        )
        .await?;
    convert(rows)
}

/// Names that begin with the shard lie between `<shard>/` and `<shard>0`, byte by byte, and within the shard a millisecond
/// sorts as text (until the year 2286).
pub async fn newest(lease: &mut SqliteLease, shard: u32) -> Result<Option<Millis>> {
    let newest: Option<(Option<String>, Option<i64>)> = lease
        .row(
            query_as(
                "SELECT (SELECT max(stream_id) FROM presence_transitions WHERE stream_id > ?1 AND stream_id < ?2), \
                 (SELECT stream_ms FROM presence_positions WHERE shard = ?3)",
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
pub async fn newest_id(lease: &mut SqliteLease) -> Result<Option<StreamId>> {
    let taken: Vec<(i64, i64)> =
        lease.rows(query_as("SELECT stream_ms, stream_seq FROM presence_positions")).await?;
    let recorded: Vec<(Option<String>,)> = lease.rows(query_as(NEWEST_OF_EACH_SHARD)).await?;
    let recorded = recorded.into_iter().filter_map(|(id,)| entry_id(&id?));
    Ok(newest_position(taken.into_iter().map(|(ms, seq)| position(ms, seq)), recorded))
}
