//! Password hashes on SQLite, where they are more than a column of their account.

use sqlx::query_as;

use super::SqliteLease;
use crate::store::{PasswordHash, Result};

/// Reads accounts from the newest on until it has found enough: all of them where there is none.
pub async fn foreign(lease: &mut SqliteLease, own: &str, limit: u32) -> Result<Vec<PasswordHash>> {
    let rows: Vec<(String,)> = lease
        .rows(
            query_as(
                "SELECT password_hash FROM users WHERE substr(password_hash, 1, length(?1)) <> ?1 AND password_hash <> '' AND substr(password_hash, 1, 1) <> '!' \
                 ORDER BY id DESC LIMIT ?2",
            )
            .bind(own)
            .bind(i64::from(limit)),
        )
        .await?;
    Ok(rows.into_iter().map(|(hash,)| PasswordHash(hash)).collect())
}
