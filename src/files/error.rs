//! Why a file or folder is not used, and what to do about it.

use std::io;
use std::path::{Path, PathBuf};

/// What keeps a file or folder from being private.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// It belongs to another user, who could read and replace it.
    #[error(
        "{} belongs to user {owner}, but this process runs as user {user}: run presenced as user {owner}, or give it to this \
         one (chown -R {user} {})",
        path.display(),
        path.display()
    )]
    Owner {
        /// What was looked at.
        path: PathBuf,
        /// The id of the user that it belongs to.
        owner: u32,
        /// The id of the user that the process acts as.
        user: u32,
    },
    /// It is open to other users and seems to have another purpose.
    #[error(
        "{} is open to other users (mode {mode:04o}) and holds what presenced did not put there: choose a folder for presenced \
         alone; where this is one, close it to others first (chmod 700)",
        path.display()
    )]
    Shared {
        /// The folder.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// It is open to other users, and stays so.
    #[error(
        "{} is open to other users (mode {mode:04o}) and could not be closed: where its filesystem has no modes, choose a \
         folder on one that has; otherwise chmod go= {}",
        path.display(),
        path.display()
    )]
    Open {
        /// What was looked at.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// Something else is in its place.
    #[error("{} is not {wanted}: move it away", path.display())]
    Kind {
        /// What was looked at.
        path: PathBuf,
        /// What it should be.
        wanted: &'static str,
    },
    /// The system refused.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was attempted, as a verb.
        action: &'static str,
        /// On which path.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
}

impl FileError {
    /// Gives an error of the system the action and the path that it is about.
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { action, path, source }
    }
}
