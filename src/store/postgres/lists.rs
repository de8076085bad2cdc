//! Lists of accounts on PostgreSQL: one statement each, and the counts that make one cheap.

use sqlx::{QueryBuilder, query};

use super::{PgLease, accounts, begin};
use crate::model::login_name::fold;
use crate::model::{AccountStatus, Millis, OnlineStatus, Place, UserId};
use crate::store::listing::{
    ASKS, ListRow, ON_PAGE, all_accounts, block, listed, place_begin, place_end, total_begin, total_end,
};
use crate::store::rows::account_columns;
use crate::store::texts::fits;
use crate::store::{AccountFilter, AccountList, EmailSearch, Result};

type Sql = QueryBuilder<sqlx::Postgres>;

/// Whether a key holds a text, which goes between the two.
const BEGIN_FIND: &str = "position(";
const END_FIND: &str = " IN n.name_key) > 0";

/// Only the conditions that are asked for stand in the statement, so each kind of list gets a plan of its own.
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
    let offset = match place {
        Place::Page(page) => page.offset(),
        Place::After(..) => 0,
    };
    let mut sql = Sql::new("");
    match &filter.search {
        Some(search) => push_found(&mut sql, filter, search, place, offset),
        None if filter.is_read_once() => push_read_once(&mut sql, filter, place, offset),
        None => push_in_order(&mut sql, filter, place, offset),
    }
    push_askers(&mut sql, askers);
    sql.push(total_begin!());
    if filter.is_read_once() {
        sql.push("(SELECT count(*) FROM matching)");
    } else if filter.is_open() {
        sql.push(all_accounts!());
    } else {
        sql.push("(SELECT count(*)");
        push_matching(&mut sql, filter);
        sql.push(")");
    }
    sql.push(total_end!());
    let rows: Vec<ListRow> = lease.rows(sql.build_query_as()).await?;
    listed(rows, place.size(), |account| account.id)
}

/// The page straight from the order of ids, up to its end.
fn push_in_order(sql: &mut Sql, filter: &AccountFilter, place: Place<UserId>, offset: i64) {
    let by_block = filter.is_open() && offset > 0;
    if by_block {
        sql.push(place_begin!()).push_bind(offset).push(place_end!());
    }
    push_page(sql);
    push_matching(sql, filter);
    if by_block {
        sql.push(concat!(" AND u.id >= (SELECT block * ", block!(), " FROM place)"));
    }
    if let Place::After(user, _) = place {
        sql.push(" AND u.id > ").push_bind(user);
    }
    sql.push(" ORDER BY u.id LIMIT ").push_bind(i64::from(place.size()) + 1);
    if by_block {
        sql.push(" OFFSET (SELECT ").push_bind(offset).push(" - before FROM place)");
    } else if offset > 0 {
        sql.push(" OFFSET ").push_bind(offset);
    }
}

/// The page of a search, which costs more than anything else here and finds few: all keys are looked at once, for the page
/// and the count alike. The accounts themselves are read where they are filtered, and for the page.
fn push_found(sql: &mut Sql, filter: &AccountFilter, search: &str, place: Place<UserId>, offset: i64) {
    sql.push("WITH matching AS MATERIALIZED (SELECT n.user_id AS id FROM login_names n");
    let is_filtered = filter.status.is_some() || filter.presence.is_some();
    if is_filtered {
        sql.push(" JOIN users u ON u.id = n.user_id");
        push_corrections(sql, filter);
    }
    sql.push(" WHERE ").push(BEGIN_FIND).push_bind(fold(search)).push(END_FIND);
    match filter.search_email {
        EmailSearch::No => drop(sql.push(" AND n.of_username")),
        EmailSearch::Yes => {}
        EmailSearch::IfAdmin(user) => {
            sql.push(" AND (n.of_username OR (SELECT c.role = 'admin' FROM users c WHERE c.id = ");
            sql.push_bind(user).push("))");
        }
    }
    if is_filtered {
        push_conditions(sql, filter);
    }
    // An account has two keys, both of which may match.
    if filter.search_email != EmailSearch::No {
        sql.push(" GROUP BY n.user_id");
    }
    push_page_of_matching(sql, place, offset);
}

/// The page of a filter that must look at every account: all are read once, for the page and the count alike.
fn push_read_once(sql: &mut Sql, filter: &AccountFilter, place: Place<UserId>, offset: i64) {
    sql.push("WITH matching AS MATERIALIZED (SELECT u.id");
    push_matching(sql, filter);
    push_page_of_matching(sql, place, offset);
}

/// Ends the table `matching`, and takes the page out of it.
fn push_page_of_matching(sql: &mut Sql, place: Place<UserId>, offset: i64) {
    sql.push(") ");
    push_page(sql);
    sql.push(" FROM users u WHERE u.id IN (SELECT m.id FROM matching m WHERE true");
    if let Place::After(user, _) = place {
        sql.push(" AND m.id > ").push_bind(user);
    }
    sql.push(" ORDER BY m.id LIMIT ").push_bind(i64::from(place.size()) + 1);
    sql.push(" OFFSET ").push_bind(offset).push(")");
}

pub async fn present(
    lease: &mut PgLease,
    since: Millis,
    place: Place<(Millis, UserId)>,
    askers: &[UserId],
) -> Result<AccountList> {
    const PRESENT: &str =
        " FROM users u WHERE u.may_be_present AND u.online_status <> 'offline' AND u.last_seen >= ";
    let mut sql = Sql::new("");
    push_page(&mut sql);
    sql.push(PRESENT).push_bind(since.to_utc());
    if let Place::After((seen, user), _) = place {
        sql.push(" AND (u.last_seen, u.id) < (")
            .push_bind(seen.to_utc())
            .push(", ")
            .push_bind(user)
            .push(")");
    }
    sql.push(" ORDER BY u.last_seen DESC, u.id DESC LIMIT ").push_bind(i64::from(place.size()) + 1);
    if let Place::Page(page) = place {
        sql.push(" OFFSET ").push_bind(page.offset());
    }
    push_askers(&mut sql, askers);
    sql.push(total_begin!()).push("(SELECT count(*)").push(PRESENT).push_bind(since.to_utc()).push(")");
    sql.push(total_end!());
    let rows: Vec<ListRow> = lease.rows(sql.build_query_as()).await?;
    listed(rows, place.size(), |account| std::cmp::Reverse((account.last_seen, account.id)))
}

/// The page follows, then [`push_askers`].
fn push_page(sql: &mut Sql) {
    sql.push("SELECT ").push(ON_PAGE).push(concat!(", page.* FROM (SELECT ", account_columns!()));
}

fn push_askers(sql: &mut Sql, askers: &[UserId]) {
    sql.push(") AS page UNION ALL SELECT ").push(ASKS).push(concat!(", ", account_columns!()));
    sql.push(" FROM users u WHERE u.id = ANY (").push_bind(askers.to_vec()).push(")");
}

/// `FROM` and `WHERE`, with the effective status of [`crate::store::PresenceFilter`].
fn push_matching(sql: &mut Sql, filter: &AccountFilter) {
    sql.push(" FROM users u");
    push_corrections(sql, filter);
    sql.push(" WHERE true");
    push_conditions(sql, filter);
}

/// What Redis knows and the mirror does not, beside `u`.
fn push_corrections(sql: &mut Sql, filter: &AccountFilter) {
    let corrections =
        filter.presence.as_ref().map(|presence| &presence.corrections).filter(|some| !some.is_empty());
    if let Some(corrections) = corrections {
        let (users, words): (Vec<UserId>, Vec<&str>) =
            corrections.iter().map(|(user, status)| (*user, status.as_str())).unzip();
        sql.push(" LEFT JOIN unnest(").push_bind(users).push("::bigint[], ").push_bind(words);
        sql.push("::text[]) AS correction (user_id, status) ON correction.user_id = u.id");
    }
}

/// The conditions on `u`, each behind an AND.
fn push_conditions(sql: &mut Sql, filter: &AccountFilter) {
    let has_corrections = filter.presence.as_ref().is_some_and(|presence| !presence.corrections.is_empty());
    if let Some(status) = filter.status {
        sql.push(" AND u.status = ").push_bind(AccountStatus::as_str(status));
    }
    if let Some(presence) = &filter.presence {
        sql.push(" AND CASE WHEN NOT u.may_be_present THEN 'offline'");
        if has_corrections {
            sql.push(" WHEN correction.status IS NOT NULL THEN correction.status");
        }
        if let Some(since) = presence.mirror_counts_since {
            sql.push(" WHEN u.last_seen IS NULL OR u.last_seen < ").push_bind(since.to_utc());
            sql.push(" THEN 'offline'");
        }
        sql.push(" ELSE u.online_status END = ").push_bind(OnlineStatus::as_str(presence.is));
    }
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
