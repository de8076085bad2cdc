//! What `presenced doctor` compares and mends on PostgreSQL. Each look is one statement, so mirror and history are of one
//! instant; it changes only rows that no other transaction holds, and only where the version still is the one that was
//! looked at.

use chrono::{DateTime, Utc};
use sqlx::{query, query_as};

use super::{PgLease, begin};
use crate::model::audit::{Break, HistoryStep, InSql};
use crate::model::{Millis, UserId};
use crate::store::rows::{ComparedRow, StepRow, convert, no_row};
use crate::store::{Result, SetAside};

/// An account with the newest row of its history.
macro_rules! compared {
    ($condition:literal) => {
        concat!(
            "SELECT u.id, u.may_be_present, u.online_status, u.presence_version, u.last_seen, \
             (SELECT h.to_status FROM presence_transitions AS h WHERE h.user_id = u.id ORDER BY h.id DESC LIMIT 1) \
             AS history FROM users AS u WHERE ",
            $condition
        )
    };
}

pub async fn presences_after(lease: &mut PgLease, after: UserId, limit: u32) -> Result<Vec<InSql>> {
    let rows: Vec<ComparedRow> = lease
        .rows(query_as(compared!("u.id > $1 ORDER BY u.id LIMIT $2")).bind(after).bind(i64::from(limit)))
        .await?;
    convert(rows)
}

pub async fn presences(lease: &mut PgLease, ids: &[UserId]) -> Result<Vec<InSql>> {
    let rows: Vec<ComparedRow> = lease.rows(query_as(compared!("u.id = ANY ($1)")).bind(ids)).await?;
    convert(rows)
}

pub async fn history_after(
    lease: &mut PgLease,
    user: UserId,
    id: i64,
    limit: u32,
) -> Result<Vec<HistoryStep>> {
    let rows: Vec<StepRow> = lease
        .rows(
            query_as(
                "SELECT user_id, id, from_status, to_status FROM presence_transitions WHERE (user_id, id) > ($1, $2) \
                 ORDER BY user_id, id LIMIT $3",
            )
            .bind(user)
            .bind(id)
            .bind(i64::from(limit)),
        )
        .await?;
    convert(rows)
}

pub async fn set_aside(lease: &mut PgLease) -> Result<SetAside> {
    let row: Option<(i64, Option<DateTime<Utc>>)> = lease
        .row(
            query_as(
                "SELECT count(*), max(at) FROM (SELECT at FROM presence_set_aside ORDER BY stream_id DESC LIMIT $1) AS s",
            )
            .bind(SetAside::COUNTED.cast_signed()),
        )
        .await?;
    let (count, latest) = row.ok_or_else(no_row)?;
    Ok(SetAside { count: count.unsigned_abs(), latest: latest.map(Millis::from_utc) })
}

pub async fn mend_mirror(lease: &mut PgLease, users: &[(UserId, i64)]) -> Result<u64> {
    let (ids, versions): (Vec<UserId>, Vec<i64>) = users.iter().copied().unzip();
    // A version that has not moved stands for a history that has not.
    let mended = lease
        .execute(
            query(
                "WITH held AS MATERIALIZED (\
                 SELECT u.id, u.online_status, u.presence_version FROM users AS u \
                 JOIN unnest($1::bigint[], $2::bigint[]) AS m (id, version) USING (id) \
                 WHERE u.presence_version = m.version FOR NO KEY UPDATE OF u SKIP LOCKED), \
                 right_ones AS MATERIALIZED (SELECT held.id, COALESCE(h.to_status, \
                 CASE WHEN held.presence_version > 0 THEN held.online_status ELSE 'offline' END) AS to_status FROM held \
                 LEFT JOIN LATERAL (SELECT t.to_status FROM presence_transitions t \
                 WHERE t.user_id = held.id ORDER BY t.id DESC LIMIT 1) AS h ON true) \
                 UPDATE users SET online_status = r.to_status, presence_writes = users.presence_writes + 1 \
                 FROM right_ones r WHERE users.id = r.id AND users.online_status <> r.to_status",
            )
            .bind(ids)
            .bind(versions),
        )
        .await?;
    Ok(mended.rows_affected())
}

pub async fn lower_versions(lease: &mut PgLease, users: &[(UserId, i64)], to: i64) -> Result<u64> {
    let (ids, versions): (Vec<UserId>, Vec<i64>) = users.iter().copied().unzip();
    let lowered = lease
        .execute(
            query(
                "WITH held AS MATERIALIZED (\
                 SELECT u.id FROM users AS u JOIN unnest($1::bigint[], $2::bigint[]) AS m (id, version) USING (id) \
                 WHERE u.presence_version = m.version AND u.presence_version > $3 \
                 FOR NO KEY UPDATE OF u SKIP LOCKED) \
                 UPDATE users SET presence_version = $3, presence_writes = users.presence_writes + 1 \
                 FROM held WHERE users.id = held.id",
            )
            .bind(ids)
            .bind(versions)
            .bind(to),
        )
        .await?;
    Ok(lowered.rows_affected())
}

pub async fn mend_history(lease: &mut PgLease, broken: &Break) -> Result<bool> {
    let (before, row) = (broken.before, broken.row);
    begin(lease).await?;
    // Whoever writes this user's history holds this row.
    let _: Option<(UserId,)> =
        lease.row(query_as("SELECT id FROM users WHERE id = $1 FOR NO KEY UPDATE").bind(row.user)).await?;
    let as_seen = "WHERE t.user_id = $1 AND t.id = $2 AND t.from_status = $3 AND t.to_status = $4 AND ($5, $6) = \
                   (SELECT p.id, p.to_status FROM presence_transitions AS p \
                   WHERE p.user_id = $1 AND p.id < $2 ORDER BY p.id DESC LIMIT 1)";
    let change = if row.to == before.to {
        format!("DELETE FROM presence_transitions AS t {as_seen}")
    } else {
        format!("UPDATE presence_transitions AS t SET from_status = $6 {as_seen}")
    };
    let changed = lease
        .execute(
            query(sqlx::AssertSqlSafe(change))
                .bind(row.user)
                .bind(row.id)
                .bind(row.from.as_str())
                .bind(row.to.as_str())
                .bind(before.id)
                .bind(before.to.as_str()),
        )
        .await?;
    lease.commit().await?;
    Ok(changed.rows_affected() == 1)
}
