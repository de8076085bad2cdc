//! The embedded default beyond this machine: not with a password that has stood on a screen.
//!
//! Whoever starts the embedded default sees the password of the account `admin` once, and with him every log that keeps
//! standard output. On loopback that is a convenience; to the world the service opens only with a password that somebody
//! has chosen, or who says that he knows. A file in the data folder holds the hash of the generated password while it
//! is in use.

use std::sync::Arc;

use anyhow::Context as _;

use super::backing;
use super::data_folder::DataFolder;
use super::settings::Settings;
use crate::files;
use crate::store::Store;

/// Ends a first start that would listen beyond this machine with a password made here, before it makes anything.
pub(super) fn refuse_first_start(settings: &Settings) -> anyhow::Result<()> {
    let would_generate = settings.admin_password.is_none() && !DataFolder::of(settings)?.database().exists();
    if is_at_stake(settings) && would_generate { admit(settings, &first_start(settings)) } else { Ok(()) }
}

/// Ends a start that would listen beyond this machine while the password is the generated one, or is about to be made.
/// Without SQL that cannot be told, and such a start waits for it: nobody is answered before.
pub(super) async fn refuse_generated_password(
    settings: &Settings,
    store: &Arc<dyn Store>,
    database_is_ready: bool,
) -> anyhow::Result<()> {
    if settings.database_url.is_some() || !(database_is_ready || is_at_stake(settings)) {
        return Ok(());
    }
    if !database_is_ready {
        backing::migrate_in_time(store).await?;
    }
    let generated = is_generated(settings, store).await?;
    if !is_at_stake(settings) {
        return Ok(());
    }
    if generated {
        return admit(settings, &later_start(settings));
    }
    let makes_one = settings.admin_password.is_none() && store.administrator().await?.is_none();
    if makes_one { admit(settings, &first_start(settings)) } else { Ok(()) }
}

/// Keeps the hash of the password that has just been made.
pub(super) async fn note_generated_password(
    settings: &Settings,
    store: &Arc<dyn Store>,
) -> anyhow::Result<()> {
    if settings.database_url.is_some() {
        return Ok(());
    }
    let file = DataFolder::of(settings)?.generated_password();
    let Some(hash) = admins_hash(store).await? else { return Ok(()) };
    // What an earlier database has left behind.
    remove(&file)?;
    files::write_once(&file, &hash).with_context(|| format!("cannot write {}", file.display()))
}

/// Whether the account `admin` still has the password that was made for it. The file goes with the password.
async fn is_generated(settings: &Settings, store: &Arc<dyn Store>) -> anyhow::Result<bool> {
    let file = DataFolder::of(settings)?.generated_password();
    let kept = match std::fs::read_to_string(&file) {
        Ok(hash) => hash,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", file.display())),
    };
    if admins_hash(store).await?.is_some_and(|hash| hash == kept) {
        return Ok(true);
    }
    remove(&file)?;
    Ok(false)
}

async fn admins_hash(store: &Arc<dyn Store>) -> anyhow::Result<Option<String>> {
    let credentials =
        store.credentials("admin").await.context("the account 'admin' could not be looked up")?;
    Ok(credentials.map(|credentials| credentials.password_hash.0))
}

/// Whether the embedded database is about to be opened to others than this machine's.
fn is_at_stake(settings: &Settings) -> bool {
    settings.database_url.is_none() && settings.doors.are_exposed()
}

fn admit(settings: &Settings, why: &str) -> anyhow::Result<()> {
    anyhow::ensure!(
        settings.doors.allow_generated_password,
        "{why}; or listen on this machine only (PRESENCE_LISTEN=127.0.0.1:{}), or allow it with \
         PRESENCE_ALLOW_GENERATED_PASSWORD=true (--allow-generated-password)",
        settings.doors.listen.port()
    );
    tracing::warn!(
        address = %settings.doors.listen,
        "open beyond this machine with the generated password of the account 'admin': change it soon"
    );
    Ok(())
}

fn first_start(settings: &Settings) -> String {
    format!(
        "refusing to listen on {}, which is open beyond this machine, with a generated password for the account 'admin': \
         choose one with PRESENCE_ADMIN_PASSWORD",
        settings.doors.listen
    )
}

fn later_start(settings: &Settings) -> String {
    format!(
        "refusing to listen on {}, which is open beyond this machine, while the account 'admin' has the password that was \
         generated for it: change it with presenced reset-password --username admin --password-stdin",
        settings.doors.listen
    )
}

fn remove(file: &std::path::Path) -> anyhow::Result<()> {
    match std::fs::remove_file(file) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", file.display()))
        }
        _ => Ok(()),
    }
}
