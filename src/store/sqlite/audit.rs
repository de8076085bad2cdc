//! What `presenced doctor` compares and mends on SQLite. The write lock stands for what PostgreSQL needs row locks for.

use chrono::{DateTime, Utc};
use serde_json::{Value, json};
use sqlx::{query, query_as};

use super::{SqliteLease, begin, json_ids};
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

pub async fn presences_after(lease: &mut SqliteLease, after: UserId, limit: u32) -> Result<Vec<InSql>> {
    let rows: Vec<ComparedRow> = lease
        .rows(query_as(compared!("u.id > ?1 ORDER BY u.id LIMIT ?2")).bind(after).bind(i64::from(limit)))
        .await?;
    convert(rows)
}

pub async fn presences(lease: &mut SqliteLease, ids: &[UserId]) -> Result<Vec<InSql>> {
    let rows: Vec<ComparedRow> = lease
        .rows(query_as(compared!("u.id IN (SELECT value FROM json_each(?1))")).bind(json_ids(ids)))
        .await?;
    convert(rows)
}

/// In two parts: within a user the index is asked for the place itself; a comparison of pairs would read the user's rows
/// from the first one at every page.
pub async fn history_after(
    lease: &mut SqliteLease,
    user: UserId,
    id: i64,
    limit: u32,
) -> Result<Vec<HistoryStep>> {
    let rows: Vec<StepRow> = lease
        .rows(
            query_as(
                "SELECT user_id, id, from_status, to_status FROM (\
                 SELECT * FROM (SELECT user_id, id, from_status, to_status FROM presence_transitions \
                 WHERE user_id = ?1 AND id > ?2 ORDER BY id LIMIT ?3) \
                 UNION ALL \
                 SELECT * FROM (SELECT user_id, id, from_status, to_status FROM presence_transitions \
                 WHERE user_id > ?1 ORDER BY user_id, id LIMIT ?3)) ORDER BY user_id, id LIMIT ?3",
            )
            .bind(user)
            .bind(id)
            .bind(i64::from(limit)),
        )
        .await?;
    convert(rows)
}

pub async fn set_aside(lease: &mut SqliteLease) -> Result<SetAside> {
    let row: Option<(i64, Option<DateTime<Utc>>)> = lease
        .row(
            query_as(
                "SELECT count(*), max(at) FROM (SELECT at FROM presence_set_aside ORDER BY stream_id DESC LIMIT ?1)",
            )
            .bind(SetAside::COUNTED.cast_signed()),
        )
        .await?;
    let (count, latest) = row.ok_or_else(no_row)?;
    Ok(SetAside { count: count.unsigned_abs(), latest: latest.map(Millis::from_utc) })
}

fn pairs(users: &[(UserId, i64)]) -> String {
    users.iter().map(|(user, version)| json!([user, version])).collect::<Value>().to_string()
}

pub async fn mend_mirror(lease: &mut SqliteLease, users: &[(UserId, i64)]) -> Result<u64> {
    // A version that has not moved stands for a history that has not.
    let mended = query(
        "UPDATE users SET online_status = h.to_status, presence_writes = presence_writes + 1 FROM (\
         SELECT u.id, u.presence_version AS version, coalesce(\
         (SELECT t.to_status FROM presence_transitions t WHERE t.user_id = u.id ORDER BY t.id DESC LIMIT 1), \
         CASE WHEN u.presence_version > 0 THEN u.online_status ELSE 'offline' END) AS to_status \
         FROM json_each(?1) AS m JOIN users u ON u.id = m.value ->> 0 AND u.presence_version = m.value ->> 1) AS h \
         WHERE users.id = h.id AND users.presence_version = h.version AND users.online_status <> h.to_status",
    );
    Ok(lease.execute(mended.bind(pairs(users))).await?.rows_affected())
}

pub async fn lower_versions(lease: &mut SqliteLease, users: &[(UserId, i64)], to: i64) -> Result<u64> {
    let lowered = query(
        "UPDATE users SET presence_version = ?2, presence_writes = presence_writes + 1 \
         FROM json_each(?1) AS m WHERE users.id = m.value ->> 0 \
         AND users.presence_version = m.value ->> 1 AND users.presence_version > ?2",
    );
    Ok(lease.execute(lowered.bind(pairs(users)).bind(to)).await?.rows_affected())
}

pub async fn mend_history(lease: &mut SqliteLease, broken: &Break) -> Result<bool> {
    let (before, row) = (broken.before, broken.row);
    begin(lease).await?;
    let as_seen = "WHERE t.user_id = ?1 AND t.id = ?2 AND t.from_status = ?3 AND t.to_status = ?4 AND (?5, ?6) = \
                   (SELECT p.id, p.to_status FROM presence_transitions AS p \
                   WHERE p.user_id = ?1 AND p.id < ?2 ORDER BY p.id DESC LIMIT 1)";
    let change = if row.to == before.to {
        format!("DELETE FROM presence_transitions AS t {as_seen}")
    } else {
        format!("UPDATE presence_transitions AS t SET from_status = ?6 {as_seen}")
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
