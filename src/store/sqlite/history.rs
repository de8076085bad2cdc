//! The history and the mirror on SQLite (invariants 3 and 5). The write lock stands for what PostgreSQL needs an
//! advisory lock and row locks for.

use std::collections::HashMap;

use serde_json::{Value, json};
use sqlx::{query, query_as};

use super::{SqliteLease, begin, json_ids, text};
use crate::model::history::Recorded;
use crate::model::{Millis, Transition, UserId};
use crate::store::batch::{latest, plan, users_of};
use crate::store::rows::{PresenceRow, RecordedRow, convert, instant};
use crate::store::{MirrorRow, RecordOutcome, Result};

/// One batch of one shard; rows travel as one JSON array each.
pub async fn record(lease: &mut SqliteLease, shard: u32, batch: &[Transition]) -> Result<RecordOutcome> {
    let users = users_of(batch);
    begin(lease).await?;
    let rows: Vec<RecordedRow> = lease
        .rows(
            query_as(
                "SELECT id, online_status, presence_version, last_seen FROM users \
                 WHERE id IN (SELECT value FROM json_each(?1))",
            )
            .bind(json_ids(&users)),
        )
        .await?;
    let recorded: HashMap<UserId, Recorded> = convert(rows)?.into_iter().collect();
    let plan = plan(&users, &recorded, batch);

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
    execute_each(
        lease,
        "UPDATE users SET online_status = m.value ->> 1, presence_version = m.value ->> 2, \
         last_seen = coalesce(max(last_seen, m.value ->> 3), m.value ->> 3, last_seen) \
         FROM json_each(?1) AS m WHERE users.id = m.value ->> 0",
        moved,
    )
    .await?;
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
    Ok(RecordOutcome { recorded: usize::try_from(added).unwrap_or(usize::MAX), unknown: plan.unknown })
}

pub async fn touch(lease: &mut SqliteLease, seen: &[(UserId, Millis)]) -> Result<u64> {
    execute_each(
        lease,
        "UPDATE users SET last_seen = s.value ->> 1 FROM json_each(?1) AS s \
         WHERE users.id = s.value ->> 0 AND (users.last_seen IS NULL OR users.last_seen < s.value ->> 1)",
        latest(seen).into_iter().map(|(user, at)| json!([user, text(at)])),
    )
    .await
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
    let newest: Option<(Option<String>,)> = lease
        .row(
            query_as(
                "SELECT max(stream_id) FROM presence_transitions WHERE stream_id > ?1 AND stream_id < ?2",
            )
            .bind(format!("{shard}/"))
            .bind(format!("{shard}0")),
        )
        .await?;
    Ok(newest.and_then(|(id,)| instant(&id?)))
}
