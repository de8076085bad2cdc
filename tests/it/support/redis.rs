//! A private redis-server for one test.

use std::{process::Command, time::Duration};

use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
};

use super::{
    poll::eventually,
    tether::{self, Start, Tether},
};

/// Far more than a start takes, even on a machine that is busy with something else.
const STARTS_WITHIN: Duration = Duration::from_secs(20);

/// A running redis-server on a loopback port of its own, with a data folder of its own. Ends with the value, and with
/// the test process however that ends.
#[derive(Debug)]
pub struct RedisServer {
    // Before the folder: fields drop in order, and a server must be gone before its data is.
    tether: Option<Tether>,
    folder: TempDir,
    port: u16,
    arguments: Vec<String>,
}

impl RedisServer {
    /// Starts a server that keeps nothing on disk, unless `arguments` say otherwise (`--appendonly yes`, …); they come
    /// last and win.
    pub async fn start(arguments: &[&str]) -> Self {
        let mut server = Self {
            tether: None,
            folder: tether::folder("redis"),
            port: 0,
            arguments: arguments.iter().map(ToString::to_string).collect(),
        };
        // Between the look for a free port and its use another process may take it. Then the server says so and ends.
        for _ in 0..10 {
            server.port = tether::free_port();
            if server.launch().await.is_ok() {
                return server;
            }
        }
        panic!("no redis-server after ten ports; the last said:\n{}", server.output());
    }

    /// `redis://127.0.0.1:<port>`
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// Where its data are.
    pub fn folder(&self) -> &std::path::Path {
        self.folder.path()
    }

    /// The id of the process that serves, or served last.
    pub fn pid(&self) -> u32 {
        self.tether().pid()
    }

    /// Runs redis-cli and returns what it prints, without the last newline. An error reply is an answer too.
    pub fn cli(&self, arguments: &[&str]) -> String {
        let output = Command::new("redis-cli")
            .args(["-h", "127.0.0.1", "-p", &self.port.to_string()])
            .args(arguments)
            .output()
            .expect("redis-cli is installed: scripts/install test");
        let text =
            String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        text.trim_end().to_owned()
    }

    /// Stops the server in its tracks: connections stay open and nobody answers.
    pub fn pause(&self) {
        self.tether().signal("STOP");
    }

    /// Ends a [`pause`](Self::pause).
    pub fn resume(&self) {
        self.tether().signal("CONT");
    }

    /// `kill -9`, and waits until the process is gone.
    pub async fn kill(&self) {
        self.tether().signal("KILL");
        self.tether().ended(STARTS_WITHIN).await;
    }

    /// SIGTERM, on which Redis saves where it is configured to, and waits until the process is gone.
    pub async fn terminate(&self) {
        self.tether().signal("TERM");
        self.tether().ended(STARTS_WITHIN).await;
    }

    /// Starts the server anew on the same port and data folder, after a `kill -9` if it still ran. What it knows then
    /// is what its arguments made it keep: nothing at all by default.
    pub async fn restart(&mut self) {
        self.tether = None;
        if let Err(output) = self.launch().await {
            panic!("redis-server does not come back:\n{output}");
        }
    }

    /// [`restart`](Self::restart) with an empty data folder: what a lost disk leaves.
    pub async fn restart_empty(&mut self) {
        self.tether = None;
        self.folder = tether::folder("redis");
        self.restart().await;
    }

    /// What the server has logged.
    pub fn output(&self) -> String {
        self.tether.as_ref().map(Tether::output).unwrap_or_default()
    }

    fn tether(&self) -> &Tether {
        self.tether.as_ref().expect("a started server")
    }

    /// Starts the server on `self.port` and waits until it is the one that answers there; `Err` where it ended instead.
    async fn launch(&mut self) -> Result<(), String> {
        let folder = self.folder.path().to_str().expect("a temporary folder with a plain name");
        let port = self.port.to_string();
        let own =
            ["--port", &port, "--bind", "127.0.0.1", "--dir", folder, "--save", "", "--appendonly", "no"];
        let command: Vec<String> = ["redis-server"]
            .into_iter()
            .chain(own)
            .map(ToOwned::to_owned)
            .chain(self.arguments.iter().cloned())
            .collect();
        let start =
            Start { folder: self.folder.path(), signal: "KILL", user: None, env: &[], command: &command };
        let tether = self.tether.insert(Tether::start(&start));
        eventually(STARTS_WITHIN, async || {
            if tether.exit_code().is_some() {
                return Ok(Err(tether.output()));
            }
            match serving_process(self.port).await {
                Ok(pid) if pid == tether.pid() => Ok(Ok(())),
                seen => Err(format!("{seen:?}\n{}", tether.output())),
            }
        })
        .await
    }
}

/// The id of the process that answers on this port, if that is a Redis which has loaded its data: `INFO` is answered before,
/// `PING` is not.
async fn serving_process(port: u16) -> std::io::Result<u32> {
    let mut stream = BufReader::new(TcpStream::connect(("127.0.0.1", port)).await?);
    stream.write_all(b"PING\r\nINFO server\r\n").await?;
    let mut line = String::new();
    stream.read_line(&mut line).await?;
    if line.starts_with("-LOADING") {
        return Err(std::io::Error::other(line));
    }
    line.clear();
    stream.read_line(&mut line).await?;
    let length = line.trim().strip_prefix('$').and_then(|length| length.parse().ok());
    let Some(length) = length else { return Err(std::io::Error::other(line)) };
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await?;
    String::from_utf8_lossy(&body)
        .lines()
        .find_map(|line| line.strip_prefix("process_id:")?.trim().parse().ok())
        .ok_or_else(|| std::io::Error::other("no process_id"))
}
