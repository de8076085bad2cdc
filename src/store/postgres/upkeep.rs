//! What other applications, and restored dumps, leave to put right on PostgreSQL: triggers, the sequence of account ids, and
//! mirrors that differ from their history (invariants 11 and 12). Looks are cheap and repairs rare; each is a transaction of
//! its own.

use sqlx::{query, query_as};

use super::{COUNT_TIMEOUT, PgLease, Postgres, lists};
use crate::model::UserId;
use crate::store::rows::no_row;
use crate::store::upkeep::{ComparedPage, ComparedPageRow};
use crate::store::{MirrorPage, Result, Store, Upkeep};

impl Postgres {
    pub(super) async fn run_upkeep(&self) -> Result<Upkeep> {
        let found = self
            .with(async |lease| {
                lease.uncounted();
                look(lease).await
            })
            .await?;
        let mut upkeep =
            Upkeep { identity: found.identity, largest_id: found.largest_id, ..Upkeep::default() };
        if found.triggers_are_off {
            upkeep.triggers_enabled = self.with(async |lease| enable_triggers(lease).await).await?;
        }
        if found.ids_are_behind {
            upkeep.ids_raised = self.with(async |lease| raise_ids(lease, 0).await).await?;
        }
        if found.counts_have_grown {
            self.within(COUNT_TIMEOUT, async |lease| lists::fold_counts(lease).await).await?;
        }
        Ok(upkeep)
    }

    pub(super) async fn compare_mirrors(&self, after: UserId, limit: u32) -> Result<MirrorPage> {
        let page = self
            .with(async |lease| {
                lease.uncounted();
                compare(lease, after, limit).await
            })
            .await?;
        let mended = self.mend_mirror(&page.differ).await?;
        Ok(MirrorPage { last: page.last, is_full: page.accounts >= i64::from(limit), mended })
    }
}

/// What a look has found.
#[derive(Debug)]
pub struct Look {
    /// See [`crate::store::Upkeep::identity`].
    pub identity: String,
    /// Whether a trigger is in another state than it belongs in.
    pub triggers_are_off: bool,
    /// Whether the sequence of account ids lies behind the largest id.
    pub ids_are_behind: bool,
    /// See [`crate::store::Upkeep::largest_id`].
    pub largest_id: UserId,
    /// Whether `user_counts` has grown: rows that arrive by replication add to it.
    pub counts_have_grown: bool,
}

/// One statement; every part of it reads a few pages at most.
pub async fn look(lease: &mut PgLease) -> Result<Look> {
    let row: Option<(String, bool, i64, i64, bool)> = lease
        .row(query_as(
            "SELECT 'users'::regclass::oid || '.' || pg_relation_filenode('users'), \
             EXISTS (SELECT FROM presence_triggers_off()), \
             COALESCE((SELECT max(id) FROM users), 0), \
             COALESCE(pg_sequence_last_value(pg_get_serial_sequence('users', 'id')::regclass), 0), \
             (SELECT count(*) FROM (SELECT FROM user_counts WHERE block = -1 LIMIT 65) AS slots) > 64",
        ))
        .await?;
    let (identity, triggers_are_off, largest, given, counts_have_grown) = row.ok_or_else(no_row)?;
    let (ids_are_behind, largest_id) = (largest > given, largest.max(given));
    Ok(Look { identity, triggers_are_off, ids_are_behind, largest_id, counts_have_grown })
}

/// Puts every trigger of the schema into the state that its name says; returns how many were in another.
pub async fn enable_triggers(lease: &mut PgLease) -> Result<u64> {
    let row: Option<(i32,)> = lease.row(query_as("SELECT presence_enable_triggers()")).await?;
    Ok(row.map_or(0, |(enabled,)| u64::from(enabled.unsigned_abs())))
}

/// Raises the sequence of account ids to `at_least`, and to the largest id that there is; whether it lay behind. A sequence
/// takes part in no transaction; of two who raise it at once neither takes it back, since each looks where it is.
pub async fn raise_ids(lease: &mut PgLease, at_least: UserId) -> Result<bool> {
    let statement = "SELECT setval(s, wanted) FROM (SELECT pg_get_serial_sequence('users', 'id')::regclass AS s, \
                     GREATEST($1, (SELECT max(id) FROM users)) AS wanted) AS sequence \
                     WHERE wanted > COALESCE(pg_sequence_last_value(s), 0)";
    Ok(lease.execute(query(statement).bind(at_least)).await?.rows_affected() > 0)
}

/// The largest id that was ever given to an account, as far as this database tells; 0 for none.
pub async fn largest_id(lease: &mut PgLease) -> Result<UserId> {
    let statement = "SELECT GREATEST((SELECT max(id) FROM users), \
                     pg_sequence_last_value(pg_get_serial_sequence('users', 'id')::regclass), 0)";
    let row: Option<(UserId,)> = lease.row(query_as(statement)).await?;
    Ok(row.ok_or_else(no_row)?.0)
}

/// Compares the mirrors of one page of accounts with their histories. A user without a history was never present if no
/// version says otherwise.
pub async fn compare(lease: &mut PgLease, after: UserId, limit: u32) -> Result<ComparedPage> {
    let rows: Vec<ComparedPageRow> = lease
        .rows(
            query_as(
                "WITH page AS MATERIALIZED (SELECT id, online_status, presence_version FROM users \
                 WHERE id > $1 ORDER BY id LIMIT $2) \
                 SELECT p.id, p.presence_version, false FROM page p \
                 LEFT JOIN LATERAL (SELECT t.to_status FROM presence_transitions t \
                 WHERE t.user_id = p.id ORDER BY t.id DESC LIMIT 1) AS h ON true \
                 WHERE p.online_status <> \
                 COALESCE(h.to_status, CASE WHEN p.presence_version > 0 THEN p.online_status ELSE 'offline' END) \
                 UNION ALL SELECT max(id), count(*), true FROM page",
            )
            .bind(after)
            .bind(i64::from(limit)),
        )
        .await?;
    Ok(ComparedPage::of(rows))
}
