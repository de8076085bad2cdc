//! The embedded server: a private `redis-server` child that keeps its data in the data folder and listens on a unix socket
//! alone.
//!
//! Only this user can reach the socket, because the folder around it has mode 0700. The child hangs on a tether: a shell
//! that holds the child and reads a pipe whose other end is ours. However this process ends, `kill -9` included, the pipe
//! closes and the shell ends the server, which writes its data first. It runs in a process group of its own, so that a
//! Ctrl-C on the terminal reaches this process alone and we can finish writing.

mod client;
mod former;
mod place;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use tokio::process::{Child, ChildStdin, Command};

use self::client::Answer;
use self::place::{Home, Place};
use super::{LiveError, Result};
use crate::files;

/// How long a start, or the end of a former server, may take. Loading a large data set takes its time.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long a server may take to write its data at the end, where nothing else is said.
const FAREWELL: Duration = Duration::from_secs(3);
/// How long a command waits for the server of a service that is starting.
const RUNNING_PATIENCE: Duration = Duration::from_secs(5);
/// Between two looks at a server that starts or ends.
const PAUSE: Duration = Duration::from_millis(10);

/// `"$@"` is the server and its arguments. The pipe comes as standard input, which a shell takes from what it puts into
/// the background: hence the copy on 3. Standard output is the lock of [`former`], which the server alone may hold.
/// Ends with the server, or ends it. A hang-up must not end it before: the system sends one to the group where this process
/// dies while the server is stopped.
const TETHER: &str = r#"umask 077
trap '' HUP
exec 3<&0
"$@" </dev/null 3<&- & server=$!
exec >/dev/null
{ cat <&3 >/dev/null; kill -TERM "$server" 2>/dev/null; } & watcher=$!
wait "$server"
kill "$watcher" 2>/dev/null"#;

/// How a URL begins that names a socket by its path as it is. For this room alone: in URLs of an operator a path is
/// percent-encoded.
pub(super) const SOCKET_SCHEME: &str = "unix:";

/// The running child.
pub struct EmbeddedRedis {
    home: Home,
    place: Place,
    tether: Child,
    /// Our end of the pipe. Apart from the child, because waiting for a child closes its standard input.
    line: Option<ChildStdin>,
}

impl EmbeddedRedis {
    /// Starts the server with its data under `folder`, which must be this process's alone. Ends a former server on these
    /// data first.
    ///
    /// # Errors
    /// [`LiveError::Embedded`] with what to do: no `redis-server` on the PATH, a folder that cannot be written or belongs
    /// to another user, something else in the socket's place, a former server that does not end, a server that does not
    /// come up (its log lies beside its data).
    pub async fn start(folder: &Path) -> Result<Self> {
        files::create_folder(folder)?;
        files::secure(folder)?;
        let home = Home::open(folder)?;
        let lock = former::end(&home).await?;
        let place = Place::choose(&home)?;
        Self::launch(home, place, lock).await
    }

    /// Starts the server again where it was, after it has ended by itself: clients find it at the same socket.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub async fn start_again(self) -> Result<Self> {
        let Self { home, place, tether, line } = self;
        drop((tether, line));
        let lock = former::end(&home).await?;
        place.restore(&home)?;
        Self::launch(home, place, lock).await
    }

    async fn launch(home: Home, place: Place, lock: File) -> Result<Self> {
        place.make_room().await?;
        let mut tether = spawn(&home, &place, lock)?;
        let line = tether.stdin.take();
        let mut server = Self { home, place, tether, line };
        server.wait_until_up().await?;
        Ok(server)
    }

    /// The path of the socket that it listens on: short enough for every client.
    pub fn socket(&self) -> &Path {
        self.place.socket()
    }

    /// What [`super::Options::url`] takes to reach it.
    pub fn url(&self) -> String {
        url_of(self.socket())
    }

    /// The URL of the server that another process on this machine runs on `folder`.
    ///
    /// # Errors
    /// [`LiveError::Embedded`] where none answers within 5 s.
    pub async fn url_of_running(folder: &Path) -> Result<String> {
        let home = Home::open(folder)?;
        let start = Instant::now();
        loop {
            for socket in place::candidates(&home) {
                // The folder's own socket is the right one whatever the server calls the folder: it may run in a container.
                let is_ours = match client::ask(&socket, "PING").await {
                    Answer::Text(_) if socket.starts_with(home.folder()) => true,
                    Answer::Text(_) => client::keeps_data_in(&socket, &home).await,
                    Answer::Absent | Answer::Silent => false,
                };
                if is_ours {
                    return Ok(url_of(&socket));
                }
            }
            if start.elapsed() > RUNNING_PATIENCE {
                return Err(former::not_found(&home));
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Returns when the server ends by itself.
    pub async fn ended(&mut self) {
        let _ = self.tether.wait().await;
    }

    /// Ends the server and waits until its data is written.
    pub async fn stop(self) {
        self.stop_within(FAREWELL).await;
    }

    /// [`Self::stop`], waiting for `patience` at most.
    pub async fn stop_within(mut self, patience: Duration) {
        drop(self.line.take());
        if tokio::time::timeout(patience, self.tether.wait()).await.is_err() {
            tracing::warn!("the embedded redis-server is still writing; it ends by itself");
        }
    }

    async fn wait_until_up(&mut self) -> Result<()> {
        let log = self.home.folder().join("redis.log");
        let mut start = Instant::now();
        while start.elapsed() < PATIENCE {
            // It answers before it has loaded its data, which may take its time.
            match client::ask(self.socket(), "PING").await {
                Answer::Text(text) if text.starts_with(b"-LOADING") => start = Instant::now(),
                Answer::Text(_) if client::keeps_data_in(self.socket(), &self.home).await => return Ok(()),
                _ => {}
            }
            if let Ok(Some(status)) = self.tether.try_wait() {
                return Err(LiveError::Embedded(format!(
                    "redis-server ended at once ({status}); {} says why",
                    log.display()
                )));
            }
            tokio::time::sleep(PAUSE).await;
        }
        Err(LiveError::Embedded(format!(
            "redis-server did not answer at {} within {} s; {} says why",
            self.socket().display(),
            PATIENCE.as_secs(),
            log.display()
        )))
    }
}

fn url_of(socket: &Path) -> String {
    // Never lossy: `place` gives no path that is not UTF-8.
    format!("{SOCKET_SCHEME}{}", socket.display())
}

/// Starts the server in its folder, so that no argument names the folder, whatever characters that has.
fn spawn(home: &Home, place: &Place, lock: File) -> Result<Child> {
    let mut command = Command::new("sh");
    command.arg("-c").arg(TETHER).arg("tether").arg(program()?);
    for (option, value) in [
        ("--port", "0"),
        ("--unixsocketperm", "600"),
        ("--pidfile", former::PID_FILE),
        ("--appendonly", "yes"),
        ("--appendfsync", "everysec"),
        ("--save", ""),
        ("--daemonize", "no"),
        ("--logfile", "redis.log"),
    ] {
        command.arg(option).arg(value);
    }
    command.arg("--unixsocket").arg(place.as_argument());
    command.current_dir(home.folder()).stdin(Stdio::piped()).stdout(lock).stderr(Stdio::null());
    command
        .process_group(0)
        .spawn()
        .map_err(|error| LiveError::Embedded(format!("cannot start a shell for redis-server: {error}")))
}

/// The absolute path of `redis-server`: the child starts in another folder, which a relative PATH would be looked up in.
fn program() -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut programs = std::env::split_paths(&path).map(|folder| folder.join("redis-server"));
    programs.find(|file| file.is_file()).and_then(|file| std::path::absolute(file).ok()).ok_or_else(|| {
        LiveError::Embedded(
            "redis-server is not on the PATH: install it (Debian: apt-get install redis-server; macOS: brew install \
             redis), or set REDIS_URL to a Redis of your own"
                .to_string(),
        )
    })
}
