//! The embedded server: a private `redis-server` child, its data in the data folder.
//!
//! It hangs on a tether: a shell that holds the child and reads a pipe whose other end is ours. However this process ends,
//! `kill -9` included, the pipe closes and the shell ends the server, which writes its data first. In a process
//! group of its own, so that a Ctrl-C on the terminal reaches us alone and we can finish writing.

use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::process::{Child, ChildStdin, Command};

use super::{LiveError, Result};

/// How long a start, or the end of a former server, may take. Loading a large data set takes its time.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long a server may take to write its data at the end, where nothing else is said.
const FAREWELL: Duration = Duration::from_secs(3);

/// `"$@"` is the server and its arguments. The pipe comes as standard input, which a shell takes from what it puts into
/// the background: hence the copy on 3. Ends with the server, or ends it.
const TETHER: &str = r#"exec 3<&0
"$@" </dev/null 3<&- & server=$!
{ cat <&3 >/dev/null; kill -TERM "$server" 2>/dev/null; } & watcher=$!
wait "$server"
kill "$watcher" 2>/dev/null"#;

/// The running child.
pub struct EmbeddedRedis {
    port: u16,
    tether: Child,
    /// Our end of the pipe. Apart from the child, because waiting for a child closes its standard input.
    line: Option<ChildStdin>,
}

impl EmbeddedRedis {
    /// Starts the server with its data under `folder`, which must be this process's alone.
    ///
    /// # Errors
    /// [`LiveError::Embedded`] with what to do: no `redis-server` on the PATH, the folder cannot be written, no port,
    /// a server that does not come up (its log lies beside its data).
    pub async fn start(folder: &Path) -> Result<Self> {
        std::fs::create_dir_all(folder).map_err(|error| {
            LiveError::Embedded(format!(
                "cannot create {}: {error}; set PRESENCE_DATA_DIR to a folder that can be written",
                folder.display()
            ))
        })?;
        let folder = folder.canonicalize().map_err(|error| LiveError::Embedded(error.to_string()))?;
        let port_file = folder.join("port");
        let former =
            std::fs::read_to_string(&port_file).ok().and_then(|port| port.trim().parse::<u16>().ok());
        if let Some(port) = former {
            end_former(port, &folder).await?;
        }
        let port = former.filter(|port| is_free(*port)).map_or_else(free_port, Ok)?;
        std::fs::write(&port_file, port.to_string())
            .map_err(|error| LiveError::Embedded(format!("cannot write {}: {error}", port_file.display())))?;
        let mut tether = spawn(&folder, port)?;
        let line = tether.stdin.take();
        let mut server = Self { port, tether, line };
        server.wait_until_up(&folder).await?;
        Ok(server)
    }

    /// The port on 127.0.0.1: the same at every start, as long as nobody else has taken it.
    pub const fn port(&self) -> u16 {
        self.port
    }

    /// Where it answers.
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
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

    async fn wait_until_up(&mut self, folder: &Path) -> Result<()> {
        let mut start = Instant::now();
        while start.elapsed() < PATIENCE {
            // It answers before it has loaded its data, which may take its time.
            let answer = ask(self.port, "PING").await;
            if answer.as_deref().is_some_and(|answer| answer.starts_with("-LOADING")) {
                start = Instant::now();
            } else if answer.is_some() && is_ours(self.port, folder).await == Some(true) {
                return Ok(());
            }
            if let Ok(Some(status)) = self.tether.try_wait() {
                return Err(LiveError::Embedded(format!(
                    "redis-server ended at once ({status}); {} says why",
                    folder.join("redis.log").display()
                )));
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Err(LiveError::Embedded(format!(
            "redis-server did not answer on port {} within {} s; {} says why",
            self.port,
            PATIENCE.as_secs(),
            folder.join("redis.log").display()
        )))
    }
}

fn spawn(folder: &Path, port: u16) -> Result<Child> {
    let find = |name: &str| {
        let path = std::env::var_os("PATH")?;
        std::env::split_paths(&path).map(|folder| folder.join(name)).find(|file| file.is_file())
    };
    let program: PathBuf = find("redis-server").ok_or_else(|| {
        LiveError::Embedded(
            "redis-server is not on the PATH: install it (Debian: apt-get install redis-server; macOS: brew install \
             redis), or set REDIS_URL to a Redis of your own"
                .to_string(),
        )
    })?;
    let mut command = Command::new("sh");
    command.arg("-c").arg(TETHER).arg("tether").arg(program);
    for (option, value) in [
        ("--port", port.to_string().as_str()),
        ("--bind", "127.0.0.1"),
        ("--dir", &folder.display().to_string()),
        ("--appendonly", "yes"),
        ("--appendfsync", "everysec"),
        ("--save", ""),
        ("--daemonize", "no"),
        ("--logfile", "redis.log"),
    ] {
        command.arg(option).arg(value);
    }
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).process_group(0);
    command
        .spawn()
        .map_err(|error| LiveError::Embedded(format!("cannot start a shell for redis-server: {error}")))
}

/// Ends a server of a former life that still runs on these data; leaves a stranger on that port alone.
async fn end_former(port: u16, folder: &Path) -> Result<()> {
    let start = Instant::now();
    loop {
        if is_ours(port, folder).await != Some(true) {
            return Ok(());
        }
        if start.elapsed() > PATIENCE {
            return Err(LiveError::Embedded(format!(
                "a redis-server of a former start still runs on port {port} and does not end; end it by hand: redis-cli \
                 -p {port} SHUTDOWN"
            )));
        }
        let _ = ask(port, "SHUTDOWN").await;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Whether the server on that port keeps its data in this folder; `None` where none answers.
async fn is_ours(port: u16, folder: &Path) -> Option<bool> {
    let answer = ask(port, "CONFIG GET dir").await?;
    Some(answer.lines().any(|line| Path::new(line.trim()) == folder))
}

/// Sends one inline command; `None` where nobody listens or answers. Plain enough to need no client, which would
/// keep reconnecting.
async fn ask(port: u16, command: &str) -> Option<String> {
    let exchange = async {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.ok()?;
        stream.write_all(format!("{command}\r\n").as_bytes()).await.ok()?;
        let mut answer = vec![0; 4096];
        let length = stream.read(&mut answer).await.ok()?;
        Some(String::from_utf8_lossy(&answer[..length]).into_owned())
    };
    tokio::time::timeout(Duration::from_secs(1), exchange).await.ok().flatten()
}

fn is_free(port: u16) -> bool {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok()
}

fn free_port() -> Result<u16> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .and_then(|listener| listener.local_addr())
        .map(|address| address.port())
        .map_err(|error| LiveError::Embedded(format!("no port is free on 127.0.0.1: {error}")))
}
