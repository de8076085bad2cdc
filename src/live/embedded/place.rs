//! Where the server's socket is: in the server's own folder or, where that cannot hold one, in a private folder elsewhere.
//!
//! A path that is too long for a socket address, and a filesystem without sockets, are the reasons for the second. Either
//! folder has mode 0700 and belongs to this user, so that no other user can connect, or put a socket in its place.

use std::ffi::OsStr;
use std::io::ErrorKind;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::client::{self, Answer};
use super::{LiveError, Result};
use crate::files::{self, FileError};

/// The socket's name in its folder.
const SOCKET: &str = "redis.sock";
/// The socket that is made to see whether a folder can hold one. Not longer than [`SOCKET`].
const PROBE: &str = "probe.sock";
/// Where the socket's path is noted for other processes.
const NOTE: &str = "socket-path";
/// How the name of a private folder elsewhere begins.
const PREFIX: &str = "presenced-";
/// The longest path of a socket, in bytes. An address holds 104 on macOS and 108 on Linux; redis-server uses two fewer.
const LONGEST: usize = 102;

/// The server's folder.
pub(super) struct Home {
    folder: PathBuf,
    canonical: PathBuf,
}

impl Home {
    /// Names a folder that exists.
    ///
    /// # Errors
    /// [`LiveError::Embedded`] where its name is not UTF-8, or it cannot be found.
    pub(super) fn open(folder: &Path) -> Result<Self> {
        let look = |error| LiveError::File(FileError::io("look at", folder)(error));
        let absolute = std::path::absolute(folder).map_err(look)?;
        let canonical = absolute.canonicalize().map_err(look)?;
        if absolute.to_str().is_none() {
            return Err(LiveError::Embedded(format!(
                "the name of the folder {} is not UTF-8: choose another",
                folder.display()
            )));
        }
        Ok(Self { folder: absolute, canonical })
    }

    /// As it was named, made absolute: links stay, which may be shorter.
    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    /// As the system, and so the server, names it.
    pub(super) fn canonical(&self) -> &Path {
        &self.canonical
    }

    fn socket(&self) -> PathBuf {
        self.folder.join(SOCKET)
    }

    fn note(&self) -> PathBuf {
        self.folder.join(NOTE)
    }
}

/// Where a running server of this folder may listen, most likely first.
pub(super) fn candidates(home: &Home) -> Vec<PathBuf> {
    let noted = std::fs::read_to_string(home.note()).ok().map(PathBuf::from);
    let mut sockets: Vec<PathBuf> = noted.into_iter().chain([home.socket()]).collect();
    sockets.retain(|socket| fits(socket) && is_private(socket));
    sockets.dedup();
    sockets
}

fn fits(socket: &Path) -> bool {
    socket.as_os_str().len() <= LONGEST
}

/// Whether it is a socket of this user, in a folder of this user alone.
fn is_private(socket: &Path) -> bool {
    let is_ours = std::fs::symlink_metadata(socket)
        .is_ok_and(|found| found.file_type().is_socket() && found.uid() == files::user());
    // The data folder may be reached through a link of the operator's.
    let folder = socket.parent().and_then(|folder| folder.canonicalize().ok());
    is_ours && folder.is_some_and(|folder| files::check_private_folder(&folder).is_ok())
}

/// Where the server listens. When dropped, it removes the socket that a killed server leaves behind, the folder around it
/// where that was made for it, and the note.
pub(super) struct Place {
    socket: PathBuf,
    /// The folder elsewhere, where there is one.
    elsewhere: Option<PathBuf>,
    note: PathBuf,
}

impl Place {
    /// Chooses a place that can hold the socket, and notes it. No server runs on this folder.
    ///
    /// # Errors
    /// [`LiveError::Embedded`] where there is none, with what to do.
    pub(super) fn choose(home: &Home) -> Result<Self> {
        remove_former(home);
        let socket = home.socket();
        let place = if fits(&socket) && holds_sockets(home.folder()) {
            Self { socket, elsewhere: None, note: home.note() }
        } else {
            let folder = make_elsewhere(bases())?;
            Self { socket: folder.join(SOCKET), elsewhere: Some(folder), note: home.note() }
        };
        place.write_note()?;
        Ok(place)
    }

    /// Makes an existing place good again: something may have removed the folder elsewhere, or the note.
    ///
    /// # Errors
    /// [`LiveError::Embedded`] where another user has taken the folder's place.
    pub(super) fn restore(&self, home: &Home) -> Result<()> {
        if let Some(folder) = &self.elsewhere {
            match files::create_new_folder(folder) {
                Err(error) if error.kind() != ErrorKind::AlreadyExists => {
                    return Err(FileError::io("create", folder)(error).into());
                }
                _ => files::check_private_folder(folder)?,
            }
        } else {
            files::secure(home.folder())?;
        }
        self.write_note()
    }

    fn write_note(&self) -> Result<()> {
        let text = self.socket.to_str().unwrap_or_default();
        files::write(&self.note, text).map_err(|error| FileError::io("write", &self.note)(error).into())
    }

    /// Removes the socket that a killed server has left.
    ///
    /// # Errors
    /// [`LiveError::Embedded`] where something else is in its place: it is left as it is.
    pub(super) async fn make_room(&self) -> Result<()> {
        let socket = &self.socket;
        let found = match std::fs::symlink_metadata(socket) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            other => other.map_err(FileError::io("look at", socket))?,
        };
        if !found.file_type().is_socket() {
            return Err(FileError::Kind { path: socket.clone(), wanted: "a socket" }.into());
        }
        if found.uid() != files::user() {
            let (owner, user) = (found.uid(), files::user());
            return Err(FileError::Owner { path: socket.clone(), owner, user }.into());
        }
        if client::ask(socket, "PING").await != Answer::Absent {
            return Err(LiveError::Embedded(format!(
                "another process listens at {}, where the embedded redis-server would: end it",
                socket.display()
            )));
        }
        std::fs::remove_file(socket).map_err(|error| FileError::io("remove", socket)(error).into())
    }

    pub(super) fn socket(&self) -> &Path {
        &self.socket
    }

    /// The socket as the server's argument: the server starts in its own folder, and needs no path to that.
    pub(super) fn as_argument(&self) -> &OsStr {
        if self.elsewhere.is_some() { self.socket.as_os_str() } else { OsStr::new(SOCKET) }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        remove_socket(&self.socket, self.elsewhere.as_deref());
        // A folder that a server still uses, which is slow to end, is removed by the next start.
        if !self.elsewhere.as_ref().is_some_and(|folder| folder.exists()) {
            let _ = std::fs::remove_file(&self.note);
        }
    }
}

/// Removes a socket where it is one and nobody listens, and the folder that was made for it.
fn remove_socket(socket: &Path, elsewhere: Option<&Path>) {
    let is_left_behind =
        || UnixStream::connect(socket).is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused);
    // What is not there any more, or is in use, stays so.
    if is_private(socket) && is_left_behind() {
        let _ = std::fs::remove_file(socket);
    }
    if let Some(folder) = elsewhere.filter(|folder| files::check_private_folder(folder).is_ok()) {
        let _ = std::fs::remove_dir(folder);
    }
}

/// Removes the folder elsewhere that a killed process has noted. One in which a server listens is that of another data
/// folder, of which this one is a copy.
fn remove_former(home: &Home) {
    let Ok(text) = std::fs::read_to_string(home.note()) else { return };
    let socket = PathBuf::from(text);
    let folder = socket.parent().filter(|folder| is_elsewhere(folder));
    if folder.is_some() && socket.file_name() == Some(OsStr::new(SOCKET)) {
        remove_socket(&socket, folder);
    }
}

fn is_elsewhere(folder: &Path) -> bool {
    folder.file_name().is_some_and(|name| name.as_bytes().starts_with(PREFIX.as_bytes()))
}

/// Whether the folder's filesystem has sockets: those that containers and virtual machines share with their host may not.
fn holds_sockets(folder: &Path) -> bool {
    let probe = folder.join(PROBE);
    let _ = std::fs::remove_file(&probe);
    let bound = UnixListener::bind(&probe);
    let _ = std::fs::remove_file(&probe);
    if let Err(error) = &bound {
        tracing::info!(folder = %folder.display(), %error, "no socket can be made here; it is made in a folder elsewhere");
    }
    bound.is_ok()
}

/// Folders in which a private one can be made, best first. The folder of the login session is removed with that, which a
/// service may outlive.
fn bases() -> Vec<PathBuf> {
    let session = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
    [Some(std::env::temp_dir()), session, Some("/tmp".into())].into_iter().flatten().collect()
}

/// Makes a new private folder that a socket's path can lead through.
fn make_elsewhere(bases: Vec<PathBuf>) -> Result<PathBuf> {
    let mut reasons = Vec::new();
    for base in bases {
        match make_in(&base) {
            Ok(folder) => return Ok(folder),
            Err(reason) => reasons.push(format!("{}: {reason}", base.display())),
        }
    }
    Err(LiveError::Embedded(format!(
        "the path of the data folder is too long for a socket, or its filesystem has none, and no private folder could be made \
         elsewhere ({}): set PRESENCE_DATA_DIR to a shorter path, or TMPDIR to a folder that can be written",
        reasons.join("; ")
    )))
}

fn make_in(base: &Path) -> std::result::Result<PathBuf, String> {
    let folder = base.join(format!("{PREFIX}{}", random_name().map_err(|error| error.to_string())?));
    if !base.is_absolute() || folder.to_str().is_none() {
        return Err("it is no absolute path in UTF-8".into());
    }
    if !fits(&folder.join(SOCKET)) {
        return Err("its path is too long".into());
    }
    if !files::protects_entries(base) {
        return Err("other users could rename what is in it".into());
    }
    files::create_new_folder(&folder).map_err(|error| error.to_string())?;
    files::check_private_folder(&folder).map_err(|error| error.to_string())?;
    Ok(folder)
}

fn random_name() -> std::io::Result<String> {
    let mut bytes = [0; 6];
    getrandom::fill(&mut bytes).map_err(std::io::Error::from)?;
    Ok(URL_SAFE_NO_PAD.encode(bytes))
}
