//! Password hashes on PostgreSQL, where they are more than a column of their account.

use sqlx::query_as;

use super::PgLease;
use crate::store::{PasswordHash, Result};

/// Reads accounts from the newest on until it has found enough: all of them where there is none.
pub async fn foreign(lease: &mut PgLease, own: &str, limit: u32) -> Result<Vec<PasswordHash>> {
    let rows: Vec<(String,)> = lease
        .rows(
            query_as(
                "SELECT password_hash FROM users WHERE left(password_hash, length($1)) <> $1 AND password_hash !~ '^(!|$)' \
                 ORDER BY id DESC LIMIT $2",
            )
            .bind(own)
            .bind(i64::from(limit)),
        )
        .await?;
    Ok(rows.into_iter().map(|(hash,)| PasswordHash(hash)).collect())
}
