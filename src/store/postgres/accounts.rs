//! Accounts on PostgreSQL: the rows of `users`.

use sqlx::error::DatabaseError;
use sqlx::{AssertSqlSafe, QueryBuilder, query, query_as};

use super::{PgLease, begin, names, trail, upkeep};
use crate::model::{Account, Actor, Deed, UserId};
use crate::store::administrators::can_administer;
use crate::store::rows::{AccountRow, account_columns, convert, no_row};
use crate::store::texts::{check_new, check_patch};
use crate::store::{AccountPatch, NewAccount, PasswordHash, Result, StoreError};

pub async fn create(lease: &mut PgLease, new: &NewAccount, by: Option<&Actor>) -> Result<Account> {
    check_new(new)?;
    match try_create(lease, new, by).await {
        // Rows that came with ids of their own have left the sequence behind.
        Err(error) if is_id_taken(&error) => {
            upkeep::raise_ids(lease, 0).await?;
            try_create(lease, new, by).await
        }
        created => created,
    }
}

async fn try_create(lease: &mut PgLease, new: &NewAccount, by: Option<&Actor>) -> Result<Account> {
    begin(lease).await?;
    let created = async {
        let account = insert(lease, new).await?;
        names::add(lease, [(account.id, new.username.as_str(), new.email.as_str())]).await?;
        if let Some(by) = by {
            trail::add(lease, by, &Deed::of_account(None, Some(&account), false)).await?;
        }
        Ok(account)
    };
    let created = created.await;
    let created = lease.finish(created).await;
    names::named(lease, created, &new.username, &new.email).await
}

/// Whether the id that the sequence gave is another account's.
fn is_id_taken(error: &StoreError) -> bool {
    match error {
        StoreError::Database(source) => {
            source.as_database_error().and_then(DatabaseError::constraint) == Some("users_pkey")
        }
        _ => false,
    }
}

async fn insert(lease: &mut PgLease, new: &NewAccount) -> Result<Account> {
    let row: Option<AccountRow> = lease
        .row(
            query_as(concat!(
                "INSERT INTO users AS u (username, email, password_hash, role, status) VALUES ($1, $2, $3, $4, $5) ",
                "RETURNING ",
                account_columns!()
            ))
            .bind(&new.username)
            .bind(&new.email)
            .bind(&new.password_hash.0)
            .bind(new.role.as_str())
            .bind(new.status.as_str()),
        )
        .await?;
    row.ok_or_else(no_row)?.try_into()
}

/// The oldest account that can administer.
pub async fn administrator(lease: &mut PgLease) -> Result<Option<Account>> {
    let row: Option<AccountRow> = lease
        .row(query_as(concat!(
            "SELECT ",
            account_columns!(),
            " FROM users u WHERE u.role = 'admin' AND u.may_be_present ORDER BY u.id LIMIT 1"
        )))
        .await?;
    row.map(Account::try_from).transpose()
}

pub async fn by_ids(lease: &mut PgLease, ids: &[UserId]) -> Result<Vec<Account>> {
    let rows: Vec<AccountRow> = lease
        .rows(
            query_as(concat!("SELECT ", account_columns!(), " FROM users u WHERE u.id = ANY ($1)")).bind(ids),
        )
        .await?;
    convert(rows)
}

pub async fn update(
    lease: &mut PgLease,
    id: UserId,
    patch: &AccountPatch,
    by: Option<&Actor>,
) -> Result<Option<Account>> {
    check_patch(patch)?;
    begin(lease).await?;
    let updated = update_in_transaction(lease, id, patch, by).await;
    let updated = lease.finish(updated).await;
    // The username stays as it is, so only the e-mail address can be another account's.
    updated.map_err(|error| match error {
        StoreError::Taken { .. } => StoreError::Taken { field: "email" },
        other => other,
    })
}

async fn update_in_transaction(
    lease: &mut PgLease,
    id: UserId,
    patch: &AccountPatch,
    by: Option<&Actor>,
) -> Result<Option<Account>> {
    let (before, administrators) = held(lease, id, patch.may_end_an_administration(), Hold::Change).await?;
    let Some(before) = before else { return Ok(None) };
    let Some(after) = apply(lease, id, patch).await? else { return Ok(None) };
    if after.email != before.email {
        names::readdress(lease, id, &after.username, &after.email).await?;
    }
    trail::refuse_the_last(&administrators, &before, Some(&after))?;
    if let Some(by) = by {
        let deed = Deed::of_account(Some(&before), Some(&after), patch.password_hash.is_some());
        if !deed.changes.is_empty() {
            trail::add(lease, by, &deed).await?;
        }
    }
    Ok(Some(after))
}

/// What rows are locked for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Hold {
    /// A change of what no foreign key refers to: logins go on.
    Change,
    /// A deletion.
    Deletion,
}

/// The account, locked until the transaction ends; and, where one administrator less may come of it, with all accounts that
/// can administer: of two calls that take the administration from each other at the same time the second one sees what the
/// first has done. All rows are locked at once, or none: where another transaction holds one, the call is tried again.
async fn held(
    lease: &mut PgLease,
    id: UserId,
    with_administrators: bool,
    hold: Hold,
) -> Result<(Option<Account>, Vec<UserId>)> {
    const HELD: &str = concat!(
        "SELECT ",
        account_columns!(),
        " FROM users u WHERE u.id = $1 OR ($2 AND u.role = 'admin' AND u.may_be_present) "
    );
    let mode = if hold == Hold::Change { "FOR NO KEY UPDATE NOWAIT" } else { "FOR UPDATE NOWAIT" };
    let statement = format!("{HELD}{mode}");
    let rows: Vec<AccountRow> =
        lease.rows(query_as(AssertSqlSafe(statement)).bind(id).bind(with_administrators)).await?;
    let accounts: Vec<Account> = convert(rows)?;
    let administrators = accounts.iter().filter(|account| can_administer(account)).map(|account| account.id);
    let administrators = administrators.collect();
    Ok((accounts.into_iter().find(|account| account.id == id), administrators))
}

async fn apply(lease: &mut PgLease, id: UserId, patch: &AccountPatch) -> Result<Option<Account>> {
    let mut sql = QueryBuilder::new("UPDATE users AS u SET updated_at = now()");
    if let Some(email) = &patch.email {
        sql.push(", email = ").push_bind(email.clone());
    }
    if let Some(role) = patch.role {
        sql.push(", role = ").push_bind(role.as_str());
    }
    if let Some(status) = patch.status {
        sql.push(", status = ").push_bind(status.as_str());
    }
    if let Some(is_active) = patch.is_active {
        sql.push(", is_active = ").push_bind(is_active);
    }
    if let Some(hash) = &patch.password_hash {
        sql.push(", password_hash = ").push_bind(hash.0.clone());
    }
    sql.push(" WHERE u.id = ").push_bind(id).push(concat!(" RETURNING ", account_columns!()));
    lease.row::<AccountRow>(sql.build_query_as()).await?.map(Account::try_from).transpose()
}

/// The account goes first: a batch that holds it has committed by then, so that its rows of the history are visible to the
/// trigger that deletes them.
pub async fn delete(lease: &mut PgLease, id: UserId, by: Option<&Actor>) -> Result<bool> {
    begin(lease).await?;
    let deleted = delete_in_transaction(lease, id, by).await;
    lease.finish(deleted).await
}

async fn delete_in_transaction(lease: &mut PgLease, id: UserId, by: Option<&Actor>) -> Result<bool> {
    let (before, administrators) = held(lease, id, true, Hold::Deletion).await?;
    let Some(before) = before else { return Ok(false) };
    trail::refuse_the_last(&administrators, &before, None)?;
    // So that the cascade waits for no session.
    lease.execute(query("SELECT FROM login_sessions WHERE user_id = $1 FOR UPDATE NOWAIT").bind(id)).await?;
    lease.execute(query("DELETE FROM users WHERE id = $1").bind(id)).await?;
    if let Some(by) = by {
        trail::add(lease, by, &Deed::of_account(Some(&before), None, false)).await?;
    }
    Ok(true)
}

/// Puts another hash of the same password in place: no session ends by it.
pub async fn replace_hash(
    lease: &mut PgLease,
    id: UserId,
    old: &PasswordHash,
    new: &PasswordHash,
) -> Result<bool> {
    let statement = "UPDATE users SET password_hash = $3, password_rehashes = password_rehashes + 1 \
                     WHERE id = $1 AND password_hash = $2";
    let replaced = lease.execute(query(statement).bind(id).bind(&old.0).bind(&new.0)).await?;
    Ok(replaced.rows_affected() > 0)
}
