//! Bringing accounts in, on PostgreSQL: one transaction, a few statements for each chunk of rows.

use chrono::{DateTime, Utc};
use sqlx::{query, query_as};

use super::{PgLease, begin, names};
use crate::model::UserId;
use crate::store::Result;
use crate::store::import::{
    CHUNK, ImportRow, Imported, Met, all_may, judge, named_rows, new_rows, note_ids, row_keys,
};

pub async fn import(lease: &mut PgLease, rows: &[ImportRow], dry_run: bool) -> Result<Vec<Imported>> {
    begin(lease).await?;
    let mut verdicts = Vec::with_capacity(rows.len());
    for chunk in rows.chunks(CHUNK) {
        verdicts.extend(judge(chunk, &met(lease, chunk).await?));
    }
    if all_may(&verdicts) && !dry_run {
        let (with_id, without) = new_rows(rows, &verdicts);
        if let Some(largest) = with_id.iter().filter_map(|index| rows[*index].id).max() {
            move_sequence(lease, largest).await?;
        }
        for indices in with_id.chunks(CHUNK) {
            let given = insert(lease, rows, indices, true).await?;
            names::add(lease, named_rows(rows, indices, &given)).await?;
            note_ids(&mut verdicts, rows, indices, given);
        }
        for indices in without.chunks(CHUNK) {
            let given = insert(lease, rows, indices, false).await?;
            names::add(lease, named_rows(rows, indices, &given)).await?;
            note_ids(&mut verdicts, rows, indices, given);
        }
    }
    lease.commit().await?;
    Ok(verdicts)
}

/// Every account that shares something with a row.
async fn met(lease: &mut PgLease, rows: &[ImportRow]) -> Result<Vec<Met>> {
    let ids: Vec<Option<UserId>> = rows.iter().map(|row| row.id).collect();
    let (usernames, emails): (Vec<Option<String>>, Vec<Option<String>>) = rows.iter().map(row_keys).unzip();
    lease
        .rows(
            query_as(
                "WITH r AS (SELECT n - 1 AS n, id, username, email \
                 FROM unnest($1::bigint[], $2::text[], $3::text[]) WITH ORDINALITY AS r (id, username, email, n)) \
                 SELECT r.n, m.kind, u.id, u.username, u.email, u.password_hash FROM ( \
                 SELECT r.n, 'id' AS kind, u.id FROM r JOIN users u ON u.id = r.id UNION ALL \
                 SELECT r.n, 'username', l.user_id FROM r JOIN login_names l ON l.name_key = r.username \
                 WHERE l.holds AND l.of_username UNION ALL \
                 SELECT r.n, 'email', l.user_id FROM r JOIN login_names l ON l.name_key = r.email \
                 WHERE l.holds AND l.of_email UNION ALL \
                 SELECT r.n, 'name_as_address', l.user_id FROM r JOIN login_names l ON l.name_key = r.username \
                 WHERE l.holds AND l.of_email UNION ALL \
                 SELECT r.n, 'address_as_name', l.user_id FROM r JOIN login_names l ON l.name_key = r.email \
                 WHERE l.holds AND l.of_username \
                 ) m JOIN r ON r.n = m.n JOIN users u ON u.id = m.id ORDER BY r.n",
            )
            .bind(ids)
            .bind(usernames)
            .bind(emails),
        )
        .await
}

/// Adds the rows of these indices; each id with its username.
async fn insert(
    lease: &mut PgLease,
    rows: &[ImportRow],
    indices: &[usize],
    with_ids: bool,
) -> Result<Vec<(UserId, String)>> {
    let of = |index: &usize| &rows[*index];
    let (column, value) = if with_ids { ("id, ", "id, ") } else { ("", "") };
    let statement = format!(
        "INSERT INTO users ({column}username, email, password_hash, role, status, is_active, created_at) \
         SELECT {value}username, email, hash, role, status, is_active, COALESCE(created_at, now()) \
         FROM unnest($1::bigint[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::boolean[], \
         $8::timestamptz[]) AS r (id, username, email, hash, role, status, is_active, created_at) \
         RETURNING id, username"
    );
    let created: Vec<Option<DateTime<Utc>>> =
        indices.iter().map(|index| of(index).created_at.map(crate::model::Millis::to_utc)).collect();
    lease
        .rows(
            query_as(sqlx::AssertSqlSafe(statement))
                .bind(indices.iter().map(|index| of(index).id).collect::<Vec<_>>())
                .bind(indices.iter().map(|index| of(index).username.as_str()).collect::<Vec<_>>())
                .bind(indices.iter().map(|index| of(index).email.as_str()).collect::<Vec<_>>())
                .bind(indices.iter().map(|index| of(index).password_hash.0.as_str()).collect::<Vec<_>>())
                .bind(indices.iter().map(|index| of(index).role.as_str()).collect::<Vec<_>>())
                .bind(indices.iter().map(|index| of(index).status.as_str()).collect::<Vec<_>>())
                .bind(indices.iter().map(|index| of(index).is_active).collect::<Vec<_>>())
                .bind(created),
        )
        .await
}

/// Moves the sequence past the ids that are brought along, before the first of them: who registers meanwhile is given none
/// of them, and waits for nothing. A sequence is not part of the transaction; numbers left out are no loss.
async fn move_sequence(lease: &mut PgLease, largest: UserId) -> Result<()> {
    let statement = "SELECT setval(s, $1) FROM (SELECT pg_get_serial_sequence('users', 'id')::regclass AS s) AS sequence \
                     WHERE $1 > COALESCE(pg_sequence_last_value(s), 0)";
    lease.execute(query(statement).bind(largest)).await.map(drop)
}
