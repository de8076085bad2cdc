//! What both databases share of bringing the schema up to date.

use sqlx::migrate::{AppliedMigration, MigrateError, Migrator};

use super::StoreError;
use super::lease::{Dialect, store_error};

/// Where sqlx keeps the list of applied migrations.
pub const TABLE: &str = "_sqlx_migrations";

/// Maps an error; an absent database is [`StoreError::Unavailable`] here as everywhere.
pub fn migrate_error<DB: Dialect>(error: MigrateError) -> StoreError {
    match error {
        MigrateError::Execute(source) => match store_error::<DB>(source) {
            StoreError::Database(source) => StoreError::Migrate(MigrateError::Execute(*source)),
            other => other,
        },
        MigrateError::ExecuteMigration(source, version) => match store_error::<DB>(source) {
            StoreError::Database(source) => {
                StoreError::Migrate(MigrateError::ExecuteMigration(*source, version))
            }
            other => other,
        },
        other => StoreError::Migrate(other),
    }
}

/// The names of the migrations that were not applied `before`, as `0001 schema`.
pub fn applied_since(migrations: &Migrator, before: &[AppliedMigration]) -> Vec<String> {
    let known = |version| before.iter().any(|applied| applied.version == version);
    migrations
        .iter()
        .filter(|migration| !known(migration.version))
        .map(|migration| format!("{:04} {}", migration.version, migration.description))
        .collect()
}
