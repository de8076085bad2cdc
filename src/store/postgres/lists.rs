//! Lists of accounts on PostgreSQL: one statement each, and the counts that make one cheap.

use sqlx::{QueryBuilder, query};

use super::{PgLease, accounts, begin};
use crate::model::{Millis, OnlineStatus, Place, UserId};
use crate::store::list_query::{self, Dialect};
use crate::store::listing::{ListRow, block, listed};
use crate::store::texts::fits;
use crate::store::{AccountFilter, AccountList, Result};

impl Dialect for sqlx::Postgres {
    const HOLDS: [&'static str; 2] = ["position(", " IN n.name_key) > 0"];

    fn bind_number(sql: &mut QueryBuilder<Self>, number: i64) {
        sql.push_bind(number);
    }

    fn bind_text(sql: &mut QueryBuilder<Self>, text: String) {
        sql.push_bind(text);
    }

    fn bind_instant(sql: &mut QueryBuilder<Self>, at: Millis) {
        sql.push_bind(at.to_utc());
    }

    fn push_is_one_of(sql: &mut QueryBuilder<Self>, users: &[UserId]) {
        sql.push("u.id = ANY (").push_bind(users.to_vec()).push(")");
    }

    fn push_corrections(sql: &mut QueryBuilder<Self>, corrections: &[(UserId, OnlineStatus)]) {
        let (users, words): (Vec<UserId>, Vec<&str>) =
            corrections.iter().map(|(user, status)| (*user, status.as_str())).unzip();
        sql.push(" LEFT JOIN unnest(").push_bind(users).push("::bigint[], ").push_bind(words);
        sql.push("::text[]) AS correction (user_id, status) ON correction.user_id = u.id");
    }
}

pub async fn all(
    lease: &mut PgLease,
    filter: &AccountFilter,
    place: Place<UserId>,
    askers: &[UserId],
) -> Result<AccountList> {
    if !filter.search.as_deref().is_none_or(fits) {
        let askers = accounts::by_ids(lease, askers).await?;
        return Ok(AccountList { accounts: Vec::new(), has_more: false, total: 0, askers });
    }
    let mut statement = list_query::all(filter, place, askers);
    let rows: Vec<ListRow> = lease.rows(statement.build_query_as()).await?;
    listed(rows, place.size(), |account| account.id)
}

pub async fn present(
    lease: &mut PgLease,
    since: Millis,
    place: Place<(Millis, UserId)>,
    askers: &[UserId],
) -> Result<AccountList> {
    let mut statement = list_query::present(since, place, askers);
    let rows: Vec<ListRow> = lease.rows(statement.build_query_as()).await?;
    listed(rows, place.size(), |account| std::cmp::Reverse((account.last_seen, account.id)))
}

/// What is wrong is added as a difference, found in one statement: whoever adds or deletes accounts meanwhile has it in
/// neither of the numbers that are compared, or in both. Two who mend at once go one after the other.
pub async fn mend_counts(lease: &mut PgLease) -> Result<u64> {
    begin(lease).await?;
    let mended = mend_in_transaction(lease).await;
    lease.finish(mended).await
}

async fn mend_in_transaction(lease: &mut PgLease) -> Result<u64> {
    lease.execute(query("SET LOCAL statement_timeout = 0")).await?;
    lease.execute(query("SELECT pg_advisory_xact_lock(hashtextextended('presence_user_counts', 0))")).await?;
    let statement = concat!(
        "WITH found AS (SELECT id / ",
        block!(),
        " AS block, count(*) AS users FROM users GROUP BY 1 UNION ALL SELECT -1, count(*) FROM users), \
         counted AS (SELECT block, sum(users)::bigint AS users FROM user_counts GROUP BY block), \
         missing AS (SELECT block, COALESCE(found.users, 0) - COALESCE(counted.users, 0) AS users \
         FROM found FULL JOIN counted USING (block)) \
         INSERT INTO user_counts (block, users) SELECT block, users FROM missing WHERE users <> 0"
    );
    let wrong = lease.execute(query(statement)).await?.rows_affected();
    fold_counts(lease).await?;
    Ok(wrong)
}

/// Sums up the slots of numbers that have many: transactions of stricter levels leave one each, and so does each row that
/// arrives by replication.
pub async fn fold_counts(lease: &mut PgLease) -> Result<()> {
    let fold = "WITH gone AS (DELETE FROM user_counts WHERE (block, slot) IN (SELECT block, slot FROM user_counts \
                WHERE block IN (SELECT block FROM user_counts GROUP BY block HAVING count(*) > 16) \
                FOR UPDATE SKIP LOCKED) RETURNING block, users) \
                INSERT INTO user_counts (block, users) SELECT block, sum(users) FROM gone GROUP BY block";
    lease.execute(query(fold)).await.map(drop)
}
