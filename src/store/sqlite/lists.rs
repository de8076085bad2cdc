//! Lists of accounts on SQLite: one statement each, and the counts that make one cheap.

use sqlx::{QueryBuilder, query, query_as};

use super::{SqliteLease, accounts, begin, json_ids, text};
use crate::model::{Millis, OnlineStatus, Place, UserId};
use crate::store::list_query::{self, Dialect};
use crate::store::listing::{ListRow, block, listed};
use crate::store::texts::fits;
use crate::store::{AccountFilter, AccountList, Result};

impl Dialect for sqlx::Sqlite {
    const HOLDS: [&'static str; 2] = ["instr(n.name_key, ", ") > 0"];

    fn bind_number(sql: &mut QueryBuilder<Self>, number: i64) {
        sql.push_bind(number);
    }

    fn bind_text(sql: &mut QueryBuilder<Self>, text: String) {
        sql.push_bind(text);
    }

    fn bind_instant(sql: &mut QueryBuilder<Self>, at: Millis) {
        sql.push_bind(text(at));
    }

    fn push_is_one_of(sql: &mut QueryBuilder<Self>, users: &[UserId]) {
        sql.push("u.id IN (SELECT value FROM json_each(").push_bind(json_ids(users)).push("))");
    }

    /// An object, whose keys and values come without a further look into it. The limit keeps the rows in a table of their own,
    /// and the type of the cast lets it have an index; without either, each account would be compared with every correction.
    fn push_corrections(sql: &mut QueryBuilder<Self>, corrections: &[(UserId, OnlineStatus)]) {
        let statuses: serde_json::Map<String, serde_json::Value> =
            corrections.iter().map(|(user, status)| (user.to_string(), status.as_str().into())).collect();
        sql.push(" LEFT JOIN (SELECT CAST(key AS INTEGER) AS user_id, value AS status FROM json_each(");
        sql.push_bind(serde_json::Value::Object(statuses).to_string());
        sql.push(") LIMIT -1) AS correction ON correction.user_id = u.id");
    }
}

pub async fn all(
    lease: &mut SqliteLease,
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
    lease: &mut SqliteLease,
    since: Millis,
    place: Place<(Millis, UserId)>,
    askers: &[UserId],
) -> Result<AccountList> {
    let mut statement = list_query::present(since, place, askers);
    let rows: Vec<ListRow> = lease.rows(statement.build_query_as()).await?;
    listed(rows, place.size(), |account| std::cmp::Reverse((account.last_seen, account.id)))
}

/// Every number as it is: of each block that holds somebody, and of all.
macro_rules! found {
    () => {
        concat!(
            "SELECT id / ",
            block!(),
            " AS block, count(*) AS users FROM users GROUP BY 1 UNION ALL SELECT -1, count(*) FROM users"
        )
    };
}

/// How many numbers are wrong.
pub async fn wrong_counts(lease: &mut SqliteLease) -> Result<u64> {
    let statement = concat!(
        "WITH found AS (",
        found!(),
        ") SELECT count(*) FROM found f FULL JOIN user_counts c ON c.block = f.block \
         WHERE COALESCE(f.users, 0) <> COALESCE(c.users, 0)"
    );
    let row: Option<(i64,)> = lease.row(query_as(statement)).await?;
    Ok(row.map_or(0, |(wrong,)| wrong.unsigned_abs()))
}

/// Counts everybody again: nobody else writes meanwhile.
pub async fn count_anew(lease: &mut SqliteLease) -> Result<()> {
    begin(lease).await?;
    let counted = async {
        lease.execute(query("DELETE FROM user_counts")).await?;
        lease.execute(query(concat!("INSERT INTO user_counts (block, users) ", found!()))).await.map(drop)
    };
    let counted = counted.await;
    lease.finish(counted).await
}
