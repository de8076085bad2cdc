//! The data folder: what the embedded parts keep, for this user alone.
//!
//! Every command that uses it prepares it first: the folder gets mode 0700 and what presenced keeps in it 0600. What belongs
//! to another user, or cannot be closed to others, is refused.

use std::fs::{File, TryLockError};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::Context as _;

use super::backing;
use super::settings::{SECRET_BYTES, Secret, Settings};
use crate::files::{self, Entry};

/// The embedded database.
const SQLITE: &str = "presence.db";
/// The folder of the embedded redis-server.
const REDIS: &str = "redis";
/// The secret that signs tokens, where the settings have none.
const JWT_SECRET: &str = "jwt-secret";
/// The hash of the generated password of the account `admin`.
const GENERATED_PASSWORD: &str = "generated-admin-password";
/// The file whose lock makes the folder one process's alone.
const LOCK: &str = "lock";

/// The data folder's place.
pub(super) struct DataFolder {
    path: PathBuf,
}

/// Keeps a data folder one process's alone, for as long as it lives.
pub(super) struct FolderLock {
    _file: File,
}

impl DataFolder {
    /// The folder of the settings; nothing is done to it yet. A relative one is under the folder in which the process started.
    ///
    /// # Errors
    /// Where it has no name, or that folder is gone.
    pub(super) fn of(settings: &Settings) -> anyhow::Result<Self> {
        let path = std::path::absolute(&settings.data_dir);
        Ok(Self { path: path.context("PRESENCE_DATA_DIR (--data-dir) names no folder")? })
    }

    /// Makes the folder where it is missing, and closes it and what presenced keeps in it to other users.
    ///
    /// # Errors
    /// Where it cannot be made, or is not private to this user and cannot be made so, with what to do.
    pub(super) fn prepare(&self) -> anyhow::Result<()> {
        let wrong = || {
            format!(
                "the data folder {} cannot be used; PRESENCE_DATA_DIR (--data-dir) chooses another",
                self.path.display()
            )
        };
        // The driver of SQLite takes no other.
        let is_utf_8 = self.path.to_str().is_some();
        anyhow::ensure!(is_utf_8, "{}: its name is not UTF-8", wrong());
        if !self.path.exists() {
            files::create_folder(&self.path).with_context(wrong)?;
        }
        files::claim_folder(&self.path, entry).with_context(wrong)?;
        // Once nobody else can change what is in it.
        for entry in std::fs::read_dir(&self.path).with_context(wrong)? {
            let entry = entry.with_context(wrong)?;
            if self::entry(&entry.file_name().to_string_lossy()) != Entry::Unknown {
                files::secure(&entry.path()).with_context(wrong)?;
            }
        }
        Ok(())
    }

    /// Prepares the folder and locks it; `None` where another process has the lock.
    ///
    /// # Errors
    /// As [`Self::prepare`].
    pub(super) fn try_lock(&self) -> anyhow::Result<Option<FolderLock>> {
        self.prepare()?;
        let path = self.path.join(LOCK);
        let file = File::options().write(true).create(true).truncate(false).mode(0o600).open(&path);
        let file = file.with_context(|| format!("cannot write {}: set PRESENCE_DATA_DIR", path.display()))?;
        match file.try_lock() {
            Ok(()) => Ok(Some(FolderLock { _file: file })),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(error).context("cannot lock the data folder"),
        }
    }

    /// [`Self::try_lock`] for a service, which needs the lock.
    ///
    /// # Errors
    /// As [`Self::prepare`], and where another process has the lock.
    pub(super) fn lock(&self) -> anyhow::Result<FolderLock> {
        if let Some(folder) = files::exposed_above(&self.path) {
            tracing::warn!(
                folder = %folder.display(),
                "every user can put another folder in the place of the data folder, which is below this one: chmod o-w it"
            );
        }
        self.try_lock()?.with_context(|| {
            format!(
                "another presenced uses the folder {}: end it, or give this one a folder of its own with PRESENCE_DATA_DIR",
                self.path.display()
            )
        })
    }

    /// The file of the embedded database.
    pub(super) fn database(&self) -> PathBuf {
        self.path.join(SQLITE)
    }

    /// The folder of the embedded redis-server.
    pub(super) fn redis(&self) -> PathBuf {
        self.path.join(REDIS)
    }

    /// The file that says that the account `admin` has the password that was generated for it.
    pub(super) fn generated_password(&self) -> PathBuf {
        self.path.join(GENERATED_PASSWORD)
    }

    /// The secret that signs tokens: the setting's, or one generated at the first start and kept.
    ///
    /// # Errors
    /// Where a secret cannot be kept, or the one that is kept is too short.
    pub(super) fn jwt_secret(&self, settings: &Settings) -> anyhow::Result<Secret> {
        if let Some(secret) = &settings.tokens.jwt_secret {
            return Ok(secret.clone());
        }
        let file = self.path.join(JWT_SECRET);
        self.prepare()?;
        if !file.exists() {
            if settings.database_url.is_some() && settings.redis_url.is_some() {
                tracing::warn!(
                    file = %file.display(),
                    "PRESENCE_JWT_SECRET is not set: one is generated into the data folder. Instances that work side by \
                     side need the same"
                );
            }
            backing::random_text().and_then(|secret| files::write_once(&file, &secret)).with_context(
                || format!("cannot keep a generated secret in {}: set PRESENCE_JWT_SECRET", file.display()),
            )?;
        }
        read_secret(&file)
    }
}

/// Reads the generated secret back: of two first starts at once one wrote it.
fn read_secret(file: &Path) -> anyhow::Result<Secret> {
    let secret = std::fs::read_to_string(file)
        .with_context(|| format!("cannot read {}: set PRESENCE_JWT_SECRET", file.display()))?;
    anyhow::ensure!(
        secret.trim().len() >= SECRET_BYTES,
        "{} holds less than {SECRET_BYTES} bytes, which is no secret: delete it to have another made (everyone signs in \
         anew), or set PRESENCE_JWT_SECRET",
        file.display()
    );
    Ok(Secret::new(secret.trim().to_string()))
}

/// What an entry of the data folder is by its name. Copies and drafts of presenced's files are presenced's too.
fn entry(name: &str) -> Entry {
    if [SQLITE, JWT_SECRET].contains(&name) {
        Entry::Proof
    } else if [REDIS, LOCK].contains(&name)
        || [SQLITE, JWT_SECRET, GENERATED_PASSWORD].iter().any(|kept| name.starts_with(kept))
    {
        Entry::Known
    } else {
        Entry::Unknown
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_presenced_keeps_is_known_by_its_name() {
        for (names, expected) in [
            (&["presence.db", "jwt-secret"][..], Entry::Proof),
            (&["presence.db-wal", "presence.db.bak", "jwt-secret.7.tmp", "redis", "lock"], Entry::Known),
            (&["notes", "redis.conf", "lockfile", ".ssh"], Entry::Unknown),
        ] {
            for name in names {
                assert_eq!(entry(name), expected, "{name}");
            }
        }
    }
}
