//! Login names on PostgreSQL: the rows of `login_names` that its triggers cannot write, and what goes by them.

use sqlx::{query, query_as};

use super::{PgLease, begin};
use crate::model::UserId;
use crate::model::login_name::{NameKey, is_plain, keys};
use crate::store::names::{
    Candidate, ClashRow, KeyRows, MARKED_LOOKED_AT, NameRow, by_account, choose, clash, taken_field,
};
use crate::store::rows::account_columns;
use crate::store::{Credentials, NameClash, NamesInSql, Result, StoreError};

/// The account that holds the key: one look-up. Beside it the accounts whose keys are not known yet, mostly none; of many
/// (just after the migration) those that are spelled so.
pub async fn credentials(lease: &mut PgLease, login: &str) -> Result<Option<Credentials>> {
    let Some(key) = NameKey::of(login) else { return Ok(None) };
    let candidates: Vec<Candidate> = lease
        .rows(
            query_as(concat!(
                "SELECT ",
                account_columns!(),
                ", u.password_hash, n.rank FROM ( \
                 SELECT user_id, 0 AS rank FROM login_names WHERE name_key = $1 AND holds UNION ALL \
                 SELECT user_id, 1 FROM login_names WHERE name_key = $1 AND NOT holds UNION ALL \
                 (SELECT user_id, 2 FROM login_names_missing ORDER BY user_id DESC LIMIT $3) UNION ALL \
                 SELECT s.id, 2 FROM (SELECT id FROM users WHERE lower(username COLLATE \"C\") = lower($2 COLLATE \"C\") \
                 OR lower(email COLLATE \"C\") = lower($2 COLLATE \"C\") OFFSET 0) AS s \
                 WHERE EXISTS (SELECT FROM login_names_missing m WHERE m.user_id = s.id) \
                 ) AS n JOIN users u ON u.id = n.user_id"
            ))
            .bind(key.as_str())
            .bind(login)
            .bind(MARKED_LOOKED_AT),
        )
        .await?;
    choose(candidates, &key)
}

/// Names the field of a new account that another has, where a refusal only says that some key is held.
pub async fn named<T>(lease: &mut PgLease, outcome: Result<T>, username: &str, email: &str) -> Result<T> {
    let Err(StoreError::Taken { field }) = outcome else { return outcome };
    let own: Vec<String> = keys(username, email).iter().map(|own| own.key.as_str().to_owned()).collect();
    let statement = "SELECT name_key FROM login_names WHERE holds AND name_key = ANY ($1)";
    let held: Vec<(String,)> = lease.rows(query_as(statement).bind(own)).await?;
    let held: Vec<String> = held.into_iter().map(|(key,)| key).collect();
    Err(StoreError::Taken { field: taken_field(username, email, &held).unwrap_or(field) })
}

/// Writes the keys that the triggers could not compute for accounts added in this transaction.
pub async fn add<'a>(
    lease: &mut PgLease,
    accounts: impl IntoIterator<Item = (UserId, &'a str, &'a str)>,
) -> Result<()> {
    let rows = KeyRows::not_plain(accounts);
    if rows.is_empty() {
        return Ok(());
    }
    claim(lease, &rows).await?;
    let unmark = "DELETE FROM login_names_missing WHERE user_id = ANY ($1)";
    lease.execute(query(unmark).bind(rows.users)).await.map(drop)
}

/// Writes the key of an e-mail address that was changed in this transaction, where the trigger could not compute it. The
/// mark stays where the username may lack its key too.
pub async fn readdress(lease: &mut PgLease, user: UserId, username: &str, email: &str) -> Result<()> {
    if is_plain(email) {
        return Ok(());
    }
    let forget = "UPDATE login_names SET of_email = false WHERE user_id = $1 AND of_email";
    lease.execute(query(forget).bind(user)).await?;
    claim(lease, &KeyRows::not_plain([(user, "", email)])).await?;
    let tidy = "DELETE FROM login_names WHERE user_id = $1 AND NOT of_username AND NOT of_email";
    lease.execute(query(tidy).bind(user)).await?;
    if is_plain(username) {
        lease.execute(query("DELETE FROM login_names_missing WHERE user_id = $1").bind(user)).await?;
    }
    Ok(())
}

/// Adds keys that no other account may hold.
async fn claim(lease: &mut PgLease, rows: &KeyRows) -> Result<()> {
    let statement = "INSERT INTO login_names AS n (user_id, name_key, of_username, of_email) \
                     SELECT * FROM unnest($1::bigint[], $2::text[], $3::boolean[], $4::boolean[]) \
                     ON CONFLICT (user_id, name_key) DO UPDATE SET of_username = n.of_username OR excluded.of_username, \
                     of_email = n.of_email OR excluded.of_email, holds = true";
    let inserted =
        query(statement).bind(&rows.users).bind(&rows.keys).bind(&rows.of_username).bind(&rows.of_email);
    lease.execute(inserted).await.map(drop)
}

/// Completes the keys of up to `limit` marked accounts that nobody else is at; how many these were.
pub async fn complete(lease: &mut PgLease, limit: u32) -> Result<u64> {
    let any: Option<(bool,)> = lease.row(query_as("SELECT EXISTS (SELECT FROM login_names_missing)")).await?;
    if !any.is_some_and(|(any,)| any) {
        return Ok(0);
    }
    begin(lease).await?;
    let completed = complete_in_transaction(lease, limit).await;
    lease.finish(completed).await
}

async fn complete_in_transaction(lease: &mut PgLease, limit: u32) -> Result<u64> {
    // The mark goes first: whoever renames an account meanwhile waits for this transaction, and marks it again.
    let take = "DELETE FROM login_names_missing WHERE user_id IN (SELECT user_id FROM login_names_missing \
                ORDER BY user_id LIMIT $1 FOR UPDATE SKIP LOCKED) RETURNING user_id, is_older";
    let marked: Vec<(UserId, bool)> = lease.rows(query_as(take).bind(i64::from(limit))).await?;
    if marked.is_empty() {
        return Ok(0);
    }
    let older: std::collections::HashMap<UserId, bool> = marked.iter().copied().collect();
    let ids: Vec<UserId> = older.keys().copied().collect();
    let names: Vec<(UserId, String, String)> =
        lease.rows(query_as("SELECT id, username, email FROM users WHERE id = ANY ($1)").bind(&ids)).await?;
    let rows = KeyRows::all(names.iter().map(|(user, username, email)| {
        (*user, username.as_str(), email.as_str(), older.get(user).copied().unwrap_or_default())
    }));
    let outdated = "DELETE FROM login_names n WHERE n.user_id = ANY ($1) AND NOT EXISTS (SELECT FROM \
                    unnest($2::bigint[], $3::text[]) AS k (user_id, name_key) \
                    WHERE k.user_id = n.user_id AND k.name_key = n.name_key)";
    lease.execute(query(outdated).bind(&ids).bind(&rows.users).bind(&rows.keys)).await?;
    let take_over = "UPDATE login_names n SET holds = false FROM unnest($1::bigint[], $2::text[], $3::boolean[]) \
                     AS k (user_id, name_key, is_older) \
                     WHERE k.is_older AND n.holds AND n.name_key = k.name_key AND n.user_id > k.user_id";
    lease.execute(query(take_over).bind(&rows.users).bind(&rows.keys).bind(&rows.is_older)).await?;
    let write = "INSERT INTO login_names AS n (user_id, name_key, of_username, of_email, holds) \
                 SELECT k.user_id, k.name_key, k.of_username, k.of_email, \
                 row_number() OVER (PARTITION BY k.name_key ORDER BY k.user_id) = 1 AND NOT EXISTS ( \
                 SELECT FROM login_names h WHERE h.name_key = k.name_key AND h.holds AND h.user_id <> k.user_id) \
                 FROM unnest($1::bigint[], $2::text[], $3::boolean[], $4::boolean[]) \
                 AS k (user_id, name_key, of_username, of_email) ORDER BY k.name_key COLLATE \"C\" \
                 ON CONFLICT (user_id, name_key) DO UPDATE SET of_username = excluded.of_username, \
                 of_email = excluded.of_email, holds = n.holds OR excluded.holds";
    let written =
        query(write).bind(&rows.users).bind(&rows.keys).bind(&rows.of_username).bind(&rows.of_email);
    lease.execute(written).await?;
    Ok(marked.len() as u64)
}

/// Marks the accounts that lack a key though their names have one, and drops the keys of accounts that are gone; how many
/// of both. Triggers that were off leave such.
pub async fn mark_incomplete(lease: &mut PgLease) -> Result<u64> {
    begin(lease).await?;
    let marked = async {
        lease.execute(query("SET LOCAL statement_timeout = 0")).await?;
        let orphans =
            "DELETE FROM login_names n WHERE NOT EXISTS (SELECT FROM users u WHERE u.id = n.user_id)";
        let orphans = lease.execute(query(orphans)).await?.rows_affected();
        let mark = "INSERT INTO login_names_missing (user_id) SELECT u.id FROM users u \
                    WHERE (u.username <> '' AND octet_length(u.username) <= 1024 AND NOT EXISTS ( \
                    SELECT FROM login_names n WHERE n.user_id = u.id AND n.of_username \
                    AND (n.name_key = lower(u.username COLLATE \"C\") OR NOT presence_is_ascii(u.username)))) \
                    OR (u.email <> '' AND octet_length(u.email) <= 1024 AND NOT EXISTS ( \
                    SELECT FROM login_names n WHERE n.user_id = u.id AND n.of_email \
                    AND (n.name_key = lower(u.email COLLATE \"C\") OR NOT presence_is_ascii(u.email)))) \
                    ON CONFLICT (user_id) DO NOTHING";
        Ok(orphans + lease.execute(query(mark)).await?.rows_affected())
    };
    let marked = marked.await;
    lease.finish(marked).await
}

/// Marks these accounts, whose keys are to be computed again.
pub async fn mark(lease: &mut PgLease, users: &[UserId]) -> Result<()> {
    let statement = "INSERT INTO login_names_missing AS m (user_id) SELECT id FROM users WHERE id = ANY ($1) \
                     ON CONFLICT (user_id) DO UPDATE SET is_older = m.is_older";
    lease.execute(query(statement).bind(users)).await.map(drop)
}

pub async fn clashes(lease: &mut PgLease, after: UserId, limit: u32) -> Result<Vec<NameClash>> {
    let rows: Vec<ClashRow> = lease
        .rows(
            query_as(
                "SELECT n.user_id, u.username, u.email, n.of_username, h.user_id, hu.username, hu.email, h.of_username \
                 FROM login_names n JOIN users u ON u.id = n.user_id \
                 LEFT JOIN login_names h ON h.name_key = n.name_key AND h.holds LEFT JOIN users hu ON hu.id = h.user_id \
                 WHERE NOT n.holds AND n.user_id > $1 ORDER BY n.user_id, n.name_key LIMIT $2",
            )
            .bind(after)
            .bind(i64::from(limit)),
        )
        .await?;
    Ok(rows.into_iter().map(clash).collect())
}

/// The accounts and keys of `page`, a query of ids.
macro_rules! names_of {
    ($page:literal) => {
        concat!(
            "SELECT u.id, u.username, u.email, \
             EXISTS (SELECT FROM login_names_missing m WHERE m.user_id = u.id), n.name_key, \
             COALESCE(n.of_username, false), COALESCE(n.of_email, false) \
             FROM users u LEFT JOIN login_names n ON n.user_id = u.id WHERE u.id IN (",
            $page,
            ")"
        )
    };
}

pub async fn after(lease: &mut PgLease, after: UserId, limit: u32) -> Result<Vec<NamesInSql>> {
    let statement = names_of!("SELECT p.id FROM users p WHERE p.id > $1 ORDER BY p.id LIMIT $2");
    let rows: Vec<NameRow> = lease.rows(query_as(statement).bind(after).bind(i64::from(limit))).await?;
    Ok(by_account(rows))
}

pub async fn of(lease: &mut PgLease, users: &[UserId]) -> Result<Vec<NamesInSql>> {
    let rows: Vec<NameRow> =
        lease.rows(query_as(names_of!("SELECT unnest($1::bigint[])")).bind(users)).await?;
    Ok(by_account(rows))
}
