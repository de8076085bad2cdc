//! Password hashes on SQLite, where they are more than a column of their account.

use sqlx::query_as;

use super::SqliteLease;
use crate::store::{PasswordHash, Result};

/// The condition is the index's, to the letter.
pub async fn foreign(lease: &mut SqliteLease, limit: u32) -> Result<Vec<PasswordHash>> {
    let rows: Vec<(String,)> = lease
        .rows(
            query_as(
                "SELECT password_hash FROM users WHERE substr(password_hash, 1, 31) <> '$argon2id$v=19$m=19456,t=2,p=1$' \
                 AND substr(password_hash, 1, 1) NOT IN ('', '!') ORDER BY id DESC LIMIT ?1",
            )
            .bind(i64::from(limit)),
        )
        .await?;
    Ok(rows.into_iter().map(|(hash,)| PasswordHash(hash)).collect())
}
