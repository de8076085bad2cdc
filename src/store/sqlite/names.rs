//! Login names on SQLite: the rows of `login_names` that its triggers cannot write, and what goes by them.

use serde_json::json;
use sqlx::{query, query_as};

use super::{SqliteLease, begin, json_ids};
use crate::model::UserId;
use crate::model::login_name::{NameKey, is_plain, keys};
use crate::store::names::{
    Candidate, ClashRow, KeyRows, MARKED_LOOKED_AT, NameRow, by_account, choose, clash, taken_field,
};
use crate::store::rows::account_columns;
use crate::store::{Credentials, NameClash, NamesInSql, Result, StoreError};

/// The account that holds the key: one look-up. Beside it the accounts whose keys are not known yet, mostly none; of many
/// (just after the migration) those that are spelled so.
pub async fn credentials(lease: &mut SqliteLease, login: &str) -> Result<Option<Credentials>> {
    let Some(key) = NameKey::of(login) else { return Ok(None) };
    let candidates: Vec<Candidate> = lease
        .rows(
            query_as(concat!(
                "SELECT ",
                account_columns!(),
                ", u.password_hash, n.rank FROM ( \
                 SELECT user_id, 0 AS rank FROM login_names WHERE name_key = ?1 AND holds UNION ALL \
                 SELECT user_id, 1 FROM login_names WHERE name_key = ?1 AND NOT holds UNION ALL \
                 SELECT user_id, 2 FROM (SELECT user_id FROM login_names_missing ORDER BY user_id DESC LIMIT ?3) UNION ALL \
                 SELECT s.id, 2 FROM users s WHERE lower(s.username) = lower(?2) \
                 AND EXISTS (SELECT 1 FROM login_names_missing m WHERE m.user_id = s.id) UNION ALL \
                 SELECT s.id, 2 FROM users s WHERE lower(s.email) = lower(?2) \
                 AND EXISTS (SELECT 1 FROM login_names_missing m WHERE m.user_id = s.id) \
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
pub async fn named<T>(lease: &mut SqliteLease, outcome: Result<T>, username: &str, email: &str) -> Result<T> {
    let Err(StoreError::Taken { field }) = outcome else { return outcome };
    let own: Vec<String> = keys(username, email).iter().map(|own| own.key.as_str().to_owned()).collect();
    let statement = "SELECT n.name_key FROM json_each(?1) AS own CROSS JOIN login_names n ON n.name_key = own.value \
                     WHERE n.holds";
    let held: Vec<(String,)> = lease.rows(query_as(statement).bind(json!(own).to_string())).await?;
    let held: Vec<String> = held.into_iter().map(|(key,)| key).collect();
    Err(StoreError::Taken { field: taken_field(username, email, &held).unwrap_or(field) })
}

/// The rows of keys as one parameter for `json_each`.
fn json_rows(rows: &KeyRows) -> String {
    let flags = rows.of_username.iter().zip(&rows.of_email);
    let rows = rows.users.iter().zip(&rows.keys).zip(flags).zip(&rows.is_older);
    let rows: Vec<_> = rows
        .map(|(((user, key), (of_username, of_email)), is_older)| {
            json!([user, key, i64::from(*of_username), i64::from(*of_email), i64::from(*is_older)])
        })
        .collect();
    json!(rows).to_string()
}

/// The rows of [`json_rows`] as a table `k`.
macro_rules! key_rows {
    () => {
        "WITH k AS MATERIALIZED (SELECT CAST(value ->> 0 AS INTEGER) AS user_id, value ->> 1 AS name_key, \
         value ->> 2 AS of_username, value ->> 3 AS of_email, value ->> 4 AS is_older FROM json_each(?1)) "
    };
}

/// Writes the keys that the triggers could not compute for accounts added in this transaction.
pub async fn add<'a>(
    lease: &mut SqliteLease,
    accounts: impl IntoIterator<Item = (UserId, &'a str, &'a str)>,
) -> Result<()> {
    let rows = KeyRows::not_plain(accounts);
    if rows.is_empty() {
        return Ok(());
    }
    claim(lease, &rows).await?;
    let unmark = "DELETE FROM login_names_missing WHERE user_id IN (SELECT value FROM json_each(?1))";
    lease.execute(query(unmark).bind(json_ids(&rows.users))).await.map(drop)
}

/// Writes the key of an e-mail address that was changed in this transaction, where the trigger could not compute it. The
/// mark stays where the username may lack its key too.
pub async fn readdress(lease: &mut SqliteLease, user: UserId, username: &str, email: &str) -> Result<()> {
    if is_plain(email) {
        return Ok(());
    }
    let forget = "UPDATE login_names SET of_email = 0 WHERE user_id = ?1 AND of_email";
    lease.execute(query(forget).bind(user)).await?;
    claim(lease, &KeyRows::not_plain([(user, "", email)])).await?;
    let tidy = "DELETE FROM login_names WHERE user_id = ?1 AND NOT of_username AND NOT of_email";
    lease.execute(query(tidy).bind(user)).await?;
    if is_plain(username) {
        lease.execute(query("DELETE FROM login_names_missing WHERE user_id = ?1").bind(user)).await?;
    }
    Ok(())
}

/// Adds keys that no other account may hold.
async fn claim(lease: &mut SqliteLease, rows: &KeyRows) -> Result<()> {
    let statement = concat!(
        key_rows!(),
        "INSERT INTO login_names (user_id, name_key, of_username, of_email) \
         SELECT user_id, name_key, of_username, of_email FROM k WHERE true \
         ON CONFLICT (user_id, name_key) DO UPDATE SET of_username = max(of_username, excluded.of_username), \
         of_email = max(of_email, excluded.of_email), holds = 1"
    );
    lease.execute(query(statement).bind(json_rows(rows))).await.map(drop)
}

/// Whether some account is marked.
pub async fn are_marked(lease: &mut SqliteLease) -> Result<bool> {
    let row: Option<(bool,)> =
        lease.row(query_as("SELECT EXISTS (SELECT 1 FROM login_names_missing)")).await?;
    Ok(row.is_some_and(|(marked,)| marked))
}

/// Completes the keys of up to `limit` marked accounts; how many these were.
pub async fn complete(lease: &mut SqliteLease, limit: u32) -> Result<u64> {
    begin(lease).await?;
    let completed = complete_in_transaction(lease, limit).await;
    lease.finish(completed).await
}

async fn complete_in_transaction(lease: &mut SqliteLease, limit: u32) -> Result<u64> {
    let take = "SELECT m.user_id, m.is_older, COALESCE(u.username, ''), COALESCE(u.email, '') \
                FROM login_names_missing m LEFT JOIN users u ON u.id = m.user_id ORDER BY m.user_id LIMIT ?1";
    let marked: Vec<(UserId, bool, String, String)> =
        lease.rows(query_as(take).bind(i64::from(limit))).await?;
    if marked.is_empty() {
        return Ok(0);
    }
    let ids: Vec<UserId> = marked.iter().map(|(user, ..)| *user).collect();
    let rows = KeyRows::all(
        marked
            .iter()
            .map(|(user, is_older, username, email)| (*user, username.as_str(), email.as_str(), *is_older)),
    );
    let (ids, rows) = (json_ids(&ids), json_rows(&rows));
    let outdated = concat!(
        key_rows!(),
        "DELETE FROM login_names WHERE user_id IN (SELECT value FROM json_each(?2)) \
         AND (user_id, name_key) NOT IN (SELECT user_id, name_key FROM k)"
    );
    lease.execute(query(outdated).bind(&rows).bind(&ids)).await?;
    let take_over = concat!(
        key_rows!(),
        "UPDATE login_names SET holds = 0 WHERE holds AND (user_id, name_key) IN ( \
         SELECT n.user_id, n.name_key FROM k CROSS JOIN login_names n ON n.name_key = k.name_key \
         WHERE k.is_older AND n.holds AND n.user_id > k.user_id)"
    );
    lease.execute(query(take_over).bind(&rows)).await?;
    let write = concat!(
        key_rows!(),
        "INSERT INTO login_names (user_id, name_key, of_username, of_email, holds) \
         SELECT k.user_id, k.name_key, k.of_username, k.of_email, \
         row_number() OVER (PARTITION BY k.name_key ORDER BY k.user_id) = 1 AND NOT EXISTS ( \
         SELECT 1 FROM login_names h WHERE h.name_key = k.name_key AND h.holds AND h.user_id <> k.user_id) \
         FROM k WHERE true \
         ON CONFLICT (user_id, name_key) DO UPDATE SET of_username = excluded.of_username, \
         of_email = excluded.of_email, holds = max(holds, excluded.holds)"
    );
    lease.execute(query(write).bind(&rows)).await?;
    let unmark = "DELETE FROM login_names_missing WHERE user_id IN (SELECT value FROM json_each(?1))";
    lease.execute(query(unmark).bind(&ids)).await?;
    Ok(marked.len() as u64)
}

/// The accounts that lack a key though their names have one. `INSERT OR REPLACE` leaves such, and other triggers that
/// were off.
macro_rules! incomplete {
    () => {
        "SELECT u.id FROM users u \
         WHERE (length(u.username) BETWEEN 1 AND 1024 AND NOT EXISTS (SELECT 1 FROM login_names n \
         WHERE n.user_id = u.id AND n.of_username AND (n.name_key = lower(u.username) \
         OR length(CAST(u.username AS BLOB)) <> length(u.username)))) \
         OR (length(u.email) BETWEEN 1 AND 1024 AND NOT EXISTS (SELECT 1 FROM login_names n \
         WHERE n.user_id = u.id AND n.of_email AND (n.name_key = lower(u.email) \
         OR length(CAST(u.email AS BLOB)) <> length(u.email))))"
    };
}

/// Whether [`mark_incomplete`] would find something: reads all accounts, and holds up no writer.
pub async fn are_incomplete(lease: &mut SqliteLease) -> Result<bool> {
    let statement = concat!(
        "SELECT EXISTS (",
        incomplete!(),
        ") OR EXISTS (SELECT 1 FROM login_names n WHERE NOT EXISTS (SELECT 1 FROM users u WHERE u.id = n.user_id))"
    );
    let row: Option<(bool,)> = lease.row(query_as(statement)).await?;
    Ok(row.is_some_and(|(incomplete,)| incomplete))
}

/// Marks the accounts that lack a key though their names have one, and drops the keys of accounts that are gone; how many
/// of both.
pub async fn mark_incomplete(lease: &mut SqliteLease) -> Result<u64> {
    begin(lease).await?;
    let marked = async {
        let orphans = "DELETE FROM login_names WHERE NOT EXISTS (SELECT 1 FROM users u WHERE u.id = login_names.user_id)";
        let orphans = lease.execute(query(orphans)).await?.rows_affected();
        let mark = concat!("INSERT OR IGNORE INTO login_names_missing (user_id) ", incomplete!());
        Ok(orphans + lease.execute(query(mark)).await?.rows_affected())
    };
    let marked = marked.await;
    lease.finish(marked).await
}

/// Marks these accounts, whose keys are to be computed again.
pub async fn mark(lease: &mut SqliteLease, users: &[UserId]) -> Result<()> {
    let statement = "INSERT OR IGNORE INTO login_names_missing (user_id) \
                     SELECT id FROM users WHERE id IN (SELECT value FROM json_each(?1))";
    lease.execute(query(statement).bind(json_ids(users))).await.map(drop)
}

pub async fn clashes(lease: &mut SqliteLease, after: UserId, limit: u32) -> Result<Vec<NameClash>> {
    let rows: Vec<ClashRow> = lease
        .rows(
            query_as(
                "SELECT n.user_id, u.username, u.email, n.of_username, h.user_id, hu.username, hu.email, h.of_username \
                 FROM (SELECT * FROM login_names WHERE NOT holds AND user_id > ?1 ORDER BY user_id, name_key LIMIT ?2) AS n \
                 CROSS JOIN users u ON u.id = n.user_id \
                 LEFT JOIN login_names h ON h.name_key = n.name_key AND h.holds LEFT JOIN users hu ON hu.id = h.user_id \
                 ORDER BY n.user_id, n.name_key",
            )
            .bind(after)
            .bind(i64::from(limit)),
        )
        .await?;
    Ok(rows.into_iter().map(clash).collect())
}

/// The accounts and keys of a query of ids.
macro_rules! names_of {
    ($page:literal) => {
        concat!(
            "SELECT u.id, u.username, u.email, \
             EXISTS (SELECT 1 FROM login_names_missing m WHERE m.user_id = u.id), n.name_key, \
             COALESCE(n.of_username, 0), COALESCE(n.of_email, 0) \
             FROM users u LEFT JOIN login_names n ON n.user_id = u.id WHERE u.id IN (",
            $page,
            ")"
        )
    };
}

pub async fn after(lease: &mut SqliteLease, after: UserId, limit: u32) -> Result<Vec<NamesInSql>> {
    let statement = names_of!("SELECT p.id FROM users p WHERE p.id > ?1 ORDER BY p.id LIMIT ?2");
    let rows: Vec<NameRow> = lease.rows(query_as(statement).bind(after).bind(i64::from(limit))).await?;
    Ok(by_account(rows))
}

pub async fn of(lease: &mut SqliteLease, users: &[UserId]) -> Result<Vec<NamesInSql>> {
    let statement = names_of!("SELECT value FROM json_each(?1)");
    let rows: Vec<NameRow> = lease.rows(query_as(statement).bind(json_ids(users))).await?;
    Ok(by_account(rows))
}
