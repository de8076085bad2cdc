//! Accounts on SQLite: the rows of `users`.

use sqlx::{QueryBuilder, query, query_as};

use super::{SqliteLease, begin, json_ids, names, trail};
use crate::model::{Account, Actor, Deed, UserId};
use crate::store::rows::{AccountRow, account_columns, convert, no_row};
use crate::store::texts::{check_new, check_patch};
use crate::store::{AccountPatch, NewAccount, PasswordHash, Result, StoreError};

/// SQLite resolves no alias in `RETURNING` and knows the table by its name there.
const RETURNING: &str = " RETURNING id, username, email, role, status, is_active, online_status, last_seen";

pub async fn create(lease: &mut SqliteLease, new: &NewAccount, by: Option<&Actor>) -> Result<Account> {
    check_new(new)?;
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

async fn insert(lease: &mut SqliteLease, new: &NewAccount) -> Result<Account> {
    let mut sql =
        QueryBuilder::new("INSERT INTO users (username, email, password_hash, role, status) VALUES (");
    let mut values = sql.separated(", ");
    values
        .push_bind(new.username.clone())
        .push_bind(new.email.clone())
        .push_bind(new.password_hash.0.clone());
    values.push_bind(new.role.as_str()).push_bind(new.status.as_str());
    sql.push(")").push(RETURNING);
    lease.row::<AccountRow>(sql.build_query_as()).await?.ok_or_else(no_row)?.try_into()
}

/// The oldest account that can administer.
pub async fn administrator(lease: &mut SqliteLease) -> Result<Option<Account>> {
    let row: Option<AccountRow> = lease
        .row(query_as(concat!(
            "SELECT ",
            account_columns!(),
            " FROM users u WHERE u.role = 'admin' AND u.may_be_present ORDER BY u.id LIMIT 1"
        )))
        .await?;
    row.map(Account::try_from).transpose()
}

pub async fn by_ids(lease: &mut SqliteLease, ids: &[UserId]) -> Result<Vec<Account>> {
    let rows: Vec<AccountRow> = lease
        .rows(
            query_as(concat!(
                "SELECT ",
                account_columns!(),
                " FROM users u WHERE u.id IN (SELECT value FROM json_each(?1))"
            ))
            .bind(json_ids(ids)),
        )
        .await?;
    convert(rows)
}

pub async fn update(
    lease: &mut SqliteLease,
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
    lease: &mut SqliteLease,
    id: UserId,
    patch: &AccountPatch,
    by: Option<&Actor>,
) -> Result<Option<Account>> {
    let administrators = trail::administrators(lease, patch.may_end_an_administration()).await?;
    let Some(before) = by_ids(lease, &[id]).await?.pop() else { return Ok(None) };
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

async fn apply(lease: &mut SqliteLease, id: UserId, patch: &AccountPatch) -> Result<Option<Account>> {
    let mut sql = QueryBuilder::new("UPDATE users SET updated_at = strftime('%Y-%m-%dT%H:%M:%fZ', 'now')");
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
    sql.push(" WHERE id = ").push_bind(id).push(RETURNING);
    lease.row::<AccountRow>(sql.build_query_as()).await?.map(Account::try_from).transpose()
}

pub async fn delete(lease: &mut SqliteLease, id: UserId, by: Option<&Actor>) -> Result<bool> {
    begin(lease).await?;
    let deleted = delete_in_transaction(lease, id, by).await;
    lease.finish(deleted).await
}

async fn delete_in_transaction(lease: &mut SqliteLease, id: UserId, by: Option<&Actor>) -> Result<bool> {
    let administrators = trail::administrators(lease, true).await?;
    let Some(before) = by_ids(lease, &[id]).await?.pop() else { return Ok(false) };
    trail::refuse_the_last(&administrators, &before, None)?;
    lease.execute(query("DELETE FROM users WHERE id = ?1").bind(id)).await?;
    if let Some(by) = by {
        trail::add(lease, by, &Deed::of_account(Some(&before), None, false)).await?;
    }
    Ok(true)
}

/// Puts another hash of the same password in place: no session ends by it.
pub async fn replace_hash(
    lease: &mut SqliteLease,
    id: UserId,
    old: &PasswordHash,
    new: &PasswordHash,
) -> Result<bool> {
    let statement = "UPDATE users SET password_hash = ?3, password_rehashes = password_rehashes + 1 \
                     WHERE id = ?1 AND password_hash = ?2";
    let replaced = lease.execute(query(statement).bind(id).bind(&old.0).bind(&new.0)).await?;
    Ok(replaced.rows_affected() > 0)
}
