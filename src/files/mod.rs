//! Folders and files for their owner alone.
//!
//! Creates folders with mode 0700 and files with mode 0600, tightens what is open to other users, and refuses what belongs to
//! another user. Knows nothing of what they hold.

mod error;

use std::fs::{self, DirBuilder, Metadata, OpenOptions, Permissions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::Mode;

pub use error::FileError;

/// The bits of a mode that admit other users than the owner.
const OTHERS: u32 = 0o077;
/// The bit of a folder in which users can remove and rename only what is their own.
const STICKY: u32 = 0o1000;
/// The mode of a private folder.
const FOLDER: u32 = 0o700;
/// The mode of a private file.
const FILE: u32 = 0o600;
/// How many levels of folders [`secure`] descends: deeper than presenced and redis-server nest theirs.
const DEPTH: u32 = 4;

type Result<T> = std::result::Result<T, FileError>;

/// Sets the umask of the process to 0077, so that no file it or its children create is open to other users, whatever
/// mode they ask for. For the beginning of `main`: the umask belongs to all threads.
pub fn restrict_umask() {
    rustix::process::umask(Mode::RWXG | Mode::RWXO);
}

/// The id of the user that the process acts as.
pub fn user() -> u32 {
    rustix::process::geteuid().as_raw()
}

/// Creates a folder and those above it that are missing, each with mode 0700. Leaves existing ones as they are.
///
/// # Errors
/// [`FileError::Io`].
pub fn create_folder(path: &Path) -> Result<()> {
    DirBuilder::new().recursive(true).mode(FOLDER).create(path).map_err(FileError::io("create", path))
}

/// Creates one folder with mode 0700 where nothing is yet; the folder above it must exist.
///
/// # Errors
/// [`ErrorKind::AlreadyExists`] where something of that name exists, a dangling link included.
pub fn create_new_folder(path: &Path) -> io::Result<()> {
    DirBuilder::new().mode(FOLDER).create(path)
}

/// What the name of an entry says about the folder around it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entry {
    /// Only presenced makes such an entry: the folder is presenced's.
    Proof,
    /// Presenced makes such an entry, and other programs may.
    Known,
    /// Presenced makes no such entry.
    Unknown,
}

/// Makes an existing folder private, and refuses one that is not this process's own: it belongs to another user, or it is
/// open and seems to have another purpose.
///
/// # Errors
/// [`FileError`] with the reason. A shared folder such as `/tmp` is left as it was.
pub fn claim_folder(path: &Path, entry: impl Fn(&str) -> Entry) -> Result<()> {
    let found = fs::metadata(path).map_err(FileError::io("look at", path))?;
    if !found.is_dir() {
        return Err(FileError::Kind { path: path.into(), wanted: "a folder" });
    }
    check_owner(path, &found)?;
    if found.mode() & OTHERS != 0 && is_shared(path, &found, entry)? {
        return Err(FileError::Shared { path: path.into(), mode: found.mode() & 0o7777 });
    }
    warn(path, tighten(path, &found)?);
    Ok(())
}

/// Whether others use the folder too: it is sticky, as `/tmp` is, or it holds what is unknown and nothing that proves that
/// it is presenced's.
fn is_shared(path: &Path, found: &Metadata, entry: impl Fn(&str) -> Entry) -> Result<bool> {
    if found.mode() & STICKY != 0 {
        return Ok(true);
    }
    let mut is_shared = false;
    for found in fs::read_dir(path).map_err(FileError::io("list", path))? {
        let name = found.map_err(FileError::io("list", path))?.file_name();
        let name = name.to_string_lossy();
        match entry(&name) {
            Entry::Proof => return Ok(false),
            Entry::Known => {}
            // Volumes begin with the first, and file managers and version control leave the others.
            Entry::Unknown => is_shared |= name != "lost+found" && !name.starts_with('.'),
        }
    }
    Ok(is_shared)
}

/// Logs that other users had access to what is in the path.
fn warn(path: &Path, was: Option<u32>) {
    if let Some(was) = was {
        tracing::warn!(path = %path.display(), mode = format!("{was:04o}"), "was open to other users and is private now");
    }
}

/// Makes a file private, or a folder with all that is in it. Does nothing where the path does not exist. A link is followed
/// where both it and its target belong to this user.
///
/// # Errors
/// [`FileError::Owner`] where something belongs to another user; others with the reason.
pub fn secure(path: &Path) -> Result<()> {
    secure_to(path, DEPTH)
}

fn secure_to(path: &Path, depth: u32) -> Result<()> {
    let Some(mut found) = existing(path, fs::symlink_metadata(path))? else { return Ok(()) };
    check_owner(path, &found)?;
    if found.is_symlink() {
        let Some(target) = existing(path, fs::metadata(path))? else { return Ok(()) };
        check_owner(path, &target)?;
        found = target;
    }
    tighten(path, &found)?;
    if found.is_dir() && depth > 0 {
        for entry in fs::read_dir(path).map_err(FileError::io("list", path))? {
            secure_to(&entry.map_err(FileError::io("list", path))?.path(), depth - 1)?;
        }
    }
    Ok(())
}

/// Creates an empty file with mode 0600, or makes the existing one private. One of another user is accepted where that
/// user has closed it to others already, or this process may close it.
///
/// # Errors
/// [`FileError::Owner`] where it is open and belongs to another user; others with the reason.
pub fn create_file(path: &Path) -> Result<()> {
    match OpenOptions::new().write(true).create_new(true).mode(FILE).open(path) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => tighten_file(path),
        made => made.map(drop).map_err(FileError::io("create", path)),
    }
}

/// Makes an existing file private, as [`create_file`] does. Does nothing where the path does not exist.
///
/// # Errors
/// As [`create_file`].
pub fn tighten_file(path: &Path) -> Result<()> {
    if let Some(found) = existing(path, fs::metadata(path))? {
        warn(path, tighten(path, &found)?);
    }
    Ok(())
}

/// Checks that a folder is private to this user and is no link, so that only this user can have put anything into it.
///
/// # Errors
/// [`FileError`] with the reason.
pub fn check_private_folder(path: &Path) -> Result<()> {
    let found = fs::symlink_metadata(path).map_err(FileError::io("look at", path))?;
    if !found.is_dir() {
        return Err(FileError::Kind { path: path.into(), wanted: "a folder" });
    }
    check_owner(path, &found)?;
    match found.mode() & 0o7777 {
        mode if mode & OTHERS != 0 => Err(FileError::Open { path: path.into(), mode }),
        _ => Ok(()),
    }
}

/// Whether a folder protects its entries from other users: it belongs to this user or root, and others cannot write to it
/// or, as in `/tmp`, cannot rename what is not theirs.
pub fn protects_entries(folder: &Path) -> bool {
    fs::metadata(folder).is_ok_and(|found| {
        let is_sticky = found.mode() & STICKY != 0;
        found.is_dir() && [0, user()].contains(&found.uid()) && (found.mode() & 0o022 == 0 || is_sticky)
    })
}

/// The lowest folder above `path` in which every user can rename what belongs to others, where there is one.
pub fn exposed_above(path: &Path) -> Option<&Path> {
    let is_exposed = |folder: &&Path| {
        fs::metadata(folder)
            .is_ok_and(|found| found.is_dir() && found.mode() & 0o002 != 0 && found.mode() & STICKY == 0)
    };
    path.ancestors().skip(1).find(is_exposed)
}

/// Writes a private file in one step, so that it is there whole or not at all. Leaves one that exists as it is.
///
/// # Errors
/// Those of the filesystem.
pub fn write_once(file: &Path, text: &str) -> io::Result<()> {
    let draft = draft(file, text)?;
    let linked = match fs::hard_link(&draft, file) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
        other => other,
    };
    fs::remove_file(&draft)?;
    linked
}

/// Writes a private file in one step, in the place of one that exists.
///
/// # Errors
/// Those of the filesystem.
pub fn write(file: &Path, text: &str) -> io::Result<()> {
    fs::rename(draft(file, text)?, file)
}

fn draft(file: &Path, text: &str) -> io::Result<PathBuf> {
    let draft = file.with_extension(format!("{}.tmp", std::process::id()));
    let mut writing = OpenOptions::new().write(true).create(true).truncate(true).mode(FILE).open(&draft)?;
    writing.write_all(text.as_bytes())?;
    writing.sync_all()?;
    Ok(draft)
}

/// `None` where the path does not exist: files come and go while a server runs.
fn existing(path: &Path, found: io::Result<Metadata>) -> Result<Option<Metadata>> {
    match found {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        other => other.map(Some).map_err(FileError::io("look at", path)),
    }
}

fn check_owner(path: &Path, found: &Metadata) -> Result<()> {
    let (owner, user) = (found.uid(), user());
    if owner == user { Ok(()) } else { Err(FileError::Owner { path: path.into(), owner, user }) }
}

/// Closes a file or folder to other users, and returns its mode where that was open. One that is closed already is not
/// touched, so that a mode of 0400 stays.
fn tighten(path: &Path, found: &Metadata) -> Result<Option<u32>> {
    let was = found.mode() & 0o7777;
    if was & OTHERS == 0 {
        return Ok(None);
    }
    let mode = if found.is_dir() { FOLDER } else { FILE };
    match fs::set_permissions(path, Permissions::from_mode(mode)) {
        Err(error) if error.kind() == ErrorKind::PermissionDenied => check_owner(path, found)?,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        other => other.map_err(FileError::io("change the mode of", path))?,
    }
    // Some filesystems accept the change and keep their own modes.
    match existing(path, fs::metadata(path))?.map(|now| now.mode() & 0o7777) {
        Some(mode) if mode & OTHERS != 0 => Err(FileError::Open { path: path.into(), mode }),
        _ => Ok(Some(was)),
    }
}

#[cfg(test)]
mod tests;
