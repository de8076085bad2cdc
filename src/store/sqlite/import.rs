//! Bringing accounts in, on SQLite: one transaction, a few statements for each chunk of rows.

use serde_json::{Value, json};
use sqlx::query_as;

use super::{SqliteLease, begin, names, text};
use crate::model::UserId;
use crate::store::Result;
use crate::store::import::{
    CHUNK, ImportRow, Imported, Met, all_may, judge, named_rows, new_rows, note_ids, row_keys,
};

pub async fn import(lease: &mut SqliteLease, rows: &[ImportRow], dry_run: bool) -> Result<Vec<Imported>> {
    begin(lease).await?;
    let mut verdicts = Vec::with_capacity(rows.len());
    for chunk in rows.chunks(CHUNK) {
        verdicts.extend(judge(chunk, &met(lease, chunk).await?));
    }
    if all_may(&verdicts) && !dry_run {
        // AUTOINCREMENT goes on from the largest id there ever was.
        let (with_id, without) = new_rows(rows, &verdicts);
        for indices in with_id.chunks(CHUNK).chain(without.chunks(CHUNK)) {
            let given = insert(lease, rows, indices).await?;
            names::add(lease, named_rows(rows, indices, &given)).await?;
            note_ids(&mut verdicts, rows, indices, given);
        }
    }
    lease.commit().await?;
    Ok(verdicts)
}

/// Every account that shares something with a row. `CROSS JOIN` keeps SQLite to the order of the tables, so that each row
/// is looked up in an index.
async fn met(lease: &mut SqliteLease, rows: &[ImportRow]) -> Result<Vec<Met>> {
    let rows: Vec<Value> = rows
        .iter()
        .map(|row| {
            let (username, email) = row_keys(row);
            json!([row.id, username, email])
        })
        .collect();
    lease
        .rows(
            query_as(
                "WITH r AS MATERIALIZED (SELECT CAST(key AS INTEGER) AS n, value ->> 0 AS id, value ->> 1 AS username, \
                 value ->> 2 AS email FROM json_each(?1)) \
                 SELECT r.n, 'id', u.id, u.username, u.email, u.password_hash \
                 FROM r CROSS JOIN users u ON u.id = r.id UNION ALL \
                 SELECT r.n, 'username', u.id, u.username, u.email, u.password_hash \
                 FROM r CROSS JOIN login_names l ON l.name_key = r.username AND l.holds AND l.of_username \
                 CROSS JOIN users u ON u.id = l.user_id UNION ALL \
                 SELECT r.n, 'email', u.id, u.username, u.email, u.password_hash \
                 FROM r CROSS JOIN login_names l ON l.name_key = r.email AND l.holds AND l.of_email \
                 CROSS JOIN users u ON u.id = l.user_id UNION ALL \
                 SELECT r.n, 'name_as_address', u.id, u.username, u.email, u.password_hash \
                 FROM r CROSS JOIN login_names l ON l.name_key = r.username AND l.holds AND l.of_email \
                 CROSS JOIN users u ON u.id = l.user_id UNION ALL \
                 SELECT r.n, 'address_as_name', u.id, u.username, u.email, u.password_hash \
                 FROM r CROSS JOIN login_names l ON l.name_key = r.email AND l.holds AND l.of_username \
                 CROSS JOIN users u ON u.id = l.user_id",
            )
            .bind(Value::Array(rows).to_string()),
        )
        .await
}

/// Adds the rows of these indices; each id with its username.
async fn insert(
    lease: &mut SqliteLease,
    rows: &[ImportRow],
    indices: &[usize],
) -> Result<Vec<(UserId, String)>> {
    let values = indices.iter().map(|index| {
        let row = &rows[*index];
        json!([
            row.id,
            row.username,
            row.email,
            row.password_hash.0,
            row.role.as_str(),
            row.status.as_str(),
            i64::from(row.is_active),
            row.created_at.map(text),
        ])
    });
    lease
        .rows(
            query_as(
                "INSERT INTO users (id, username, email, password_hash, role, status, is_active, created_at) \
                 SELECT value ->> 0, value ->> 1, value ->> 2, value ->> 3, value ->> 4, value ->> 5, value ->> 6, \
                 COALESCE(value ->> 7, strftime('%Y-%m-%dT%H:%M:%fZ', 'now')) FROM json_each(?1) WHERE true \
                 RETURNING id, username",
            )
            .bind(Value::Array(values.collect()).to_string()),
        )
        .await
}
