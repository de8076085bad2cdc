//! What other applications, and restored dumps, leave to put right on SQLite: the sequence of account ids, and mirrors that
//! differ from their history (invariant 11). Triggers cannot be disabled here.

use sqlx::{query, query_as};

use super::{Sqlite, SqliteLease};
use crate::model::UserId;
use crate::store::rows::no_row;
use crate::store::upkeep::{ComparedPage, ComparedPageRow};
use crate::store::{MirrorPage, Result, Store, Upkeep};

impl Sqlite {
    pub(super) async fn run_upkeep(&self) -> Result<Upkeep> {
        let (identity, largest, given) = self
            .read(async |lease| {
                lease.uncounted();
                look(lease).await
            })
            .await?;
        let ids_raised = largest > given && self.write(async |lease| raise_ids(lease, 0).await).await?;
        Ok(Upkeep { identity, triggers_enabled: 0, ids_raised, largest_id: largest.max(given) })
    }

    pub(super) async fn compare_mirrors(&self, after: UserId, limit: u32) -> Result<MirrorPage> {
        let page = self
            .read(async |lease| {
                lease.uncounted();
                compare(lease, after, limit).await
            })
            .await?;
        let mended = self.mend_mirror(&page.differ).await?;
        Ok(MirrorPage { last: page.last, is_full: page.accounts >= i64::from(limit), mended })
    }
}

/// The number of the schema, which changes where tables are dropped and made anew, the largest id of an account, and the
/// last one that the sequence has given.
async fn look(lease: &mut SqliteLease) -> Result<(String, UserId, UserId)> {
    let row: Option<(i64, UserId, UserId)> = lease
        .row(query_as(
            "SELECT schema_version, coalesce((SELECT max(id) FROM users), 0), \
             coalesce((SELECT seq FROM sqlite_sequence WHERE name = 'users'), 0) FROM pragma_schema_version",
        ))
        .await?;
    let (version, largest, given) = row.ok_or_else(no_row)?;
    Ok((version.to_string(), largest, given))
}

/// Raises the sequence of account ids to `at_least`, and to the largest id that there is; whether it lay behind.
pub async fn raise_ids(lease: &mut SqliteLease, at_least: UserId) -> Result<bool> {
    let first = "INSERT INTO sqlite_sequence (name, seq) SELECT 'users', 0 \
                 WHERE NOT EXISTS (SELECT 1 FROM sqlite_sequence WHERE name = 'users')";
    lease.execute(query(first)).await?;
    let raise = "UPDATE sqlite_sequence SET seq = max(?1, coalesce((SELECT max(id) FROM users), 0)) WHERE name = 'users' \
                 AND seq < max(?1, coalesce((SELECT max(id) FROM users), 0))";
    Ok(lease.execute(query(raise).bind(at_least)).await?.rows_affected() > 0)
}

/// The largest id that was ever given to an account, as far as this database tells; 0 for none.
pub async fn largest_id(lease: &mut SqliteLease) -> Result<UserId> {
    let statement = "SELECT max(coalesce((SELECT max(id) FROM users), 0), \
                     coalesce((SELECT seq FROM sqlite_sequence WHERE name = 'users'), 0))";
    let row: Option<(UserId,)> = lease.row(query_as(statement)).await?;
    Ok(row.ok_or_else(no_row)?.0)
}

/// Compares the mirrors of one page of accounts with their histories.
async fn compare(lease: &mut SqliteLease, after: UserId, limit: u32) -> Result<ComparedPage> {
    let rows: Vec<ComparedPageRow> = lease
        .rows(
            query_as(
                "WITH page AS MATERIALIZED (SELECT id, online_status, presence_version FROM users \
                 WHERE id > ?1 ORDER BY id LIMIT ?2) \
                 SELECT p.id, p.presence_version, 0 FROM page p WHERE p.online_status <> coalesce(\
                 (SELECT t.to_status FROM presence_transitions t WHERE t.user_id = p.id ORDER BY t.id DESC LIMIT 1), \
                 CASE WHEN p.presence_version > 0 THEN p.online_status ELSE 'offline' END) \
                 UNION ALL SELECT max(id), count(*), 1 FROM page",
            )
            .bind(after)
            .bind(i64::from(limit)),
        )
        .await?;
    Ok(ComparedPage::of(rows))
}
