//! A real set of sentinels for one test: a primary, two replicas, and three who watch them.

use std::process::Command;
use std::time::Duration;

use tempfile::TempDir;

use super::poll::eventually;
use super::redis::RedisServer;
use super::tether::{self, Start, Tether};

const AGREES_WITHIN: Duration = Duration::from_mins(1);
/// What the sentinels call it.
pub const SERVICE: &str = "presence";

/// Servers and sentinels on loopback. They end with the value, and with the test process however that ends.
#[derive(Debug)]
pub struct SentinelSet {
    pub servers: Vec<RedisServer>,
    pub sentinels: Vec<Sentinel>,
}

/// A sentinel.
#[derive(Debug)]
pub struct Sentinel {
    // Before the folder: fields drop in order.
    tether: Tether,
    _folder: TempDir,
    pub port: u16,
}

impl SentinelSet {
    /// Starts all, and returns when the sentinels know each other and the replicas follow.
    pub async fn start() -> Self {
        let primary = RedisServer::start(&["--repl-diskless-sync-delay", "0"]).await;
        let port = primary.port().to_string();
        let mut servers = vec![primary];
        for _ in 0..2 {
            let arguments = ["--repl-diskless-sync-delay", "0", "--replicaof", "127.0.0.1", &port];
            servers.push(RedisServer::start(&arguments).await);
        }
        let sentinels = (0..3).map(|_| Sentinel::start(servers[0].port())).collect();
        let set = Self { servers, sentinels };
        eventually(AGREES_WITHIN, async || {
            for sentinel in &set.sentinels {
                let about = sentinel.cli(&["SENTINEL", "MASTER", SERVICE]);
                let field = |name: &str| about.lines().skip_while(|line| *line != name).nth(1);
                if (field("num-other-sentinels"), field("num-slaves")) != (Some("2"), Some("2")) {
                    return Err(about);
                }
            }
            Ok(())
        })
        .await;
        set.follows(2).await;
        set
    }

    /// `redis-sentinel://…`, with each sentinel.
    pub fn url(&self) -> String {
        let others: Vec<String> =
            self.sentinels[1..].iter().map(|other| format!("&node=127.0.0.1:{}", other.port)).collect();
        let first = self.sentinels[0].port;
        format!("redis-sentinel://127.0.0.1:{first}/0?sentinelServiceName={SERVICE}{}", others.concat())
    }

    /// The server that this sentinel calls the primary.
    pub fn primary_by(&self, sentinel: usize) -> usize {
        let said = self.sentinels[sentinel].cli(&["SENTINEL", "GET-MASTER-ADDR-BY-NAME", SERVICE]);
        let port = said.lines().nth(1).and_then(|port| port.parse().ok());
        self.servers.iter().position(|server| Some(server.port()) == port).unwrap_or_else(|| panic!("{said}"))
    }

    /// Waits until so many replicas follow the primary, by the primary's word.
    pub async fn follows(&self, replicas: usize) {
        eventually(AGREES_WITHIN, async || {
            let info = self.servers[self.primary_by(2)].cli(&["INFO", "replication"]);
            let online = info.lines().filter(|line| line.contains("state=online")).count();
            if info.contains("role:master") && online == replicas { Ok(()) } else { Err(info) }
        })
        .await;
    }
}

impl Sentinel {
    fn start(primary: u16) -> Self {
        let (folder, port) = (tether::folder("sentinel"), tether::free_port());
        let file = folder.path().join("sentinel.conf");
        let text = format!(
            "port {port}\nbind 127.0.0.1\ndir {}\nsentinel monitor {SERVICE} 127.0.0.1 {primary} 2\n\
             sentinel down-after-milliseconds {SERVICE} 1500\nsentinel failover-timeout {SERVICE} 4000\n\
             sentinel parallel-syncs {SERVICE} 2\n",
            folder.path().display()
        );
        std::fs::write(&file, text).expect("an own folder is writable");
        let command = ["redis-server", file.to_str().expect("a plain path"), "--sentinel"];
        let command: Vec<String> = command.map(ToOwned::to_owned).to_vec();
        let tether = Tether::start(&Start {
            folder: folder.path(),
            signal: "KILL",
            user: None,
            env: &[],
            command: &command,
        });
        Self { tether, _folder: folder, port }
    }

    pub fn cli(&self, arguments: &[&str]) -> String {
        let output = Command::new("redis-cli")
            .args(["-h", "127.0.0.1", "-p", &self.port.to_string()])
            .args(arguments)
            .output()
            .expect("redis-cli is installed: scripts/install test");
        String::from_utf8_lossy(&output.stdout).trim_end().to_owned()
    }

    /// `kill -9`, and waits until the process is gone.
    pub async fn kill(&self) {
        self.tether.signal("KILL");
        self.tether.ended(Duration::from_secs(20)).await;
    }
}
