//! What is measured: the service with everything on, and floors beside it, as processes that end with the run.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use tempfile::TempDir;
use tokio::net::TcpStream;

use crate::floor::Door;
use crate::load::{Load, Pace, Requests};
use crate::plan::Plan;
use crate::process::Watched;
use crate::support::mint::secret_variable;
use crate::support::poll::eventually;
use crate::support::postgres::{PrivatePostgres, TestDatabase};
use crate::support::process::{Presenced, PresencedOptions};
use crate::support::redis::RedisServer;
use crate::support::sql::Sql;
use crate::support::tether::{self, Start, Tether};

/// The longest that PostgreSQL may need to take what a million logins have made.
const DRAINS_WITHIN: Duration = Duration::from_mins(10);

/// A service with a Redis and a PostgreSQL of its own; persister, sweeper, write-behind and metrics are on.
pub struct Scene {
    // In the order in which they end.
    service: Presenced,
    /// The Redis of this service alone.
    pub redis: RedisServer,
    /// Plain SQL beside the service.
    pub sql: Sql,
    _database: TestDatabase,
    postgres: PrivatePostgres,
}

impl Scene {
    /// Accounts 1 to `users` exist, the first is an administrator. `env` is for the service.
    pub async fn start(users: i64, env: &[(&str, &str)]) -> anyhow::Result<Self> {
        let mut postgres = PrivatePostgres::start().await;
        // Only a commit's own time says when others could see it; it is kept from the next start on.
        let server = Sql::open(&postgres.url()).await;
        server.run("ALTER SYSTEM SET track_commit_timestamp = on").await;
        drop(server);
        postgres.restart().await;
        let database = postgres.database().await;
        let store = presenced::store::open(&database.url, &presenced::store::Options::default()).await?;
        store.migrate().await?;
        drop(store);
        let sql = Sql::open(&database.url).await;
        // Accounts that were always there, and not a million changes to be followed.
        sql.run("ALTER TABLE users DISABLE TRIGGER USER").await;
        sql.seed(1, users).await;
        sql.run("ALTER TABLE users ENABLE TRIGGER USER").await;
        sql.run("ANALYZE users").await;
        let redis = RedisServer::start(&[]).await;
        let own = env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        let service = Presenced::start(PresencedOptions {
            database_url: Some(database.url.clone()),
            redis_url: Some(redis.url()),
            env: std::iter::once(secret_variable()).chain(own).collect(),
            ..PresencedOptions::default()
        })
        .await;
        Ok(Self { service, redis, sql, _database: database, postgres })
    }

    /// Where the service listens.
    pub fn address(&self) -> anyhow::Result<SocketAddr> {
        address_of(&self.service)
    }

    /// The service's process.
    pub fn pid(&self) -> u32 {
        self.service.pid()
    }

    /// Whose CPU counts.
    pub fn watched(&self) -> Vec<Watched> {
        vec![
            Watched { name: "presenced".into(), pid: self.service.pid() },
            Watched { name: "redis".into(), pid: self.redis.pid() },
            Watched { name: "postgres".into(), pid: self.postgres.pid() },
        ]
    }

    /// A load on the service by the plan.
    pub fn load(&self, plan: &Plan, connections: usize, requests: &Requests) -> anyhow::Result<Load> {
        Ok(Load {
            address: self.address()?,
            connections,
            requests: requests.clone(),
            pace: Pace::Closed,
            warm_up: plan.warm_up(),
            window: plan.window,
            watch: self.watched(),
        })
    }

    /// Brings these users online by a heartbeat each, and waits until SQL has it.
    pub async fn bring_online(&self, first: i64, users: i64) -> anyhow::Result<()> {
        let load = Load {
            address: self.address()?,
            connections: 256,
            requests: Requests::heartbeats(first, users),
            pace: Pace::Once,
            warm_up: Duration::ZERO,
            window: Duration::ZERO,
            watch: vec![],
        };
        load.run()?;
        self.drained().await;
        Ok(())
    }

    /// Waits until no transition waits for SQL.
    pub async fn drained(&self) {
        let mut looks = tokio::time::interval(Duration::from_millis(100));
        eventually(DRAINS_WITHIN, async || {
            looks.tick().await; // each is a process of its own
            match self.redis.cli(&["XLEN", "presence:{0}:transitions"]).as_str() {
                "0" => Ok(()),
                left => Err(left.to_owned()),
            }
        })
        .await;
    }

    /// Ends the service in an orderly way, then the others.
    pub async fn end(self) -> anyhow::Result<()> {
        let code = self.service.terminate().await;
        ensure!(code == 0, "presenced ended with code {code}:\n{}", self.service.stderr());
        Ok(())
    }
}

/// Where a service listens.
pub fn address_of(service: &Presenced) -> anyhow::Result<SocketAddr> {
    let url = service.base_url();
    url.trim_start_matches("http://").parse().with_context(|| format!("{url} is no plain address"))
}

/// A floor as a process of its own.
pub struct Floor {
    tether: Tether,
    _folder: TempDir,
    address: SocketAddr,
    /// How many threads it has.
    pub threads: usize,
}

impl Floor {
    /// Starts one.
    pub async fn start(threads: usize, door: Door) -> anyhow::Result<Self> {
        let program = std::env::current_exe()?.to_string_lossy().into_owned();
        for _ in 0..10 {
            let folder = tether::folder("floor");
            let port = tether::free_port();
            let command =
                [program.clone(), "floor".into(), port.to_string(), threads.to_string(), door.word().into()];
            let start =
                Start { folder: folder.path(), signal: "KILL", user: None, env: &[], command: &command };
            let tether = Tether::start(&start);
            let address = SocketAddr::from(([127, 0, 0, 1], port));
            let serves = eventually(Duration::from_secs(20), async || {
                match (tether.exit_code(), TcpStream::connect(address).await) {
                    // Somebody else has taken the port meanwhile.
                    (Some(code), _) => Ok(Err(code)),
                    (None, Ok(_)) => Ok(Ok(())),
                    (None, Err(error)) => Err(error.to_string()),
                }
            })
            .await;
            if serves.is_ok() {
                return Ok(Self { tether, _folder: folder, address, threads });
            }
        }
        anyhow::bail!("no floor after ten ports")
    }

    /// A load of heartbeats by the plan.
    pub fn load(&self, plan: &Plan, connections: usize, requests: &Requests) -> Load {
        Load {
            address: self.address,
            connections,
            requests: requests.clone(),
            pace: Pace::Closed,
            warm_up: plan.warm_up(),
            window: plan.window,
            watch: vec![Watched { name: "floor".into(), pid: self.tether.pid() }],
        }
    }
}

/// The floor with one thread and with two; which of them is the bound is found out for each number of connections.
pub struct Floors([Floor; 2]);

impl Floors {
    /// Starts both.
    pub async fn start() -> anyhow::Result<Self> {
        Ok(Self([Floor::start(1, Door::Token).await?, Floor::start(2, Door::Token).await?]))
    }

    /// The one that answers more, by a short look.
    pub fn best(&self, plan: &Plan, connections: usize, requests: &Requests) -> anyhow::Result<&Floor> {
        let look = |floor: &Floor| -> anyhow::Result<f64> {
            let window = plan.window.min(Duration::from_secs(3));
            Ok(Load { window, ..floor.load(plan, connections, requests) }.run()?.per_second)
        };
        let (one, two) = (look(&self.0[0])?, look(&self.0[1])?);
        println!("floor, {connections} connections: {one:.0}/s with one thread, {two:.0}/s with two");
        Ok(&self.0[usize::from(two > one)])
    }
}
