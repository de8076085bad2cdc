//! What is measured: the service with everything on, as processes that end with the run.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, ensure};

use crate::load::{Load, Pace, Requests};
use crate::plan::Plan;
use crate::process::Watched;
use crate::support::http::Api;
use crate::support::metrics::Scrape;
use crate::support::mint::secret_variable;
use crate::support::poll::eventually;
use crate::support::postgres::{PrivatePostgres, TestDatabase};
use crate::support::process::{Presenced, PresencedOptions};
use crate::support::redis::RedisServer;
use crate::support::sql::Sql;

/// The longest that PostgreSQL may need to take what a million logins have made.
const DRAINS_WITHIN: Duration = Duration::from_mins(10);

/// A service with a Redis and a PostgreSQL of its own; persister, sweeper, write-behind and metrics are on.
pub struct Scene {
    // In the order in which they end.
    service: Presenced,
    /// A client of the service.
    pub api: Api,
    /// The Redis of this service alone, or the primaries of its cluster.
    pub redis: Vec<RedisServer>,
    /// Plain SQL beside the service.
    pub sql: Sql,
    _database: TestDatabase,
    postgres: PrivatePostgres,
}

impl Scene {
    /// Accounts 1 to `users` exist, the first is an administrator. `env` is for the service.
    pub async fn start(users: i64, env: &[(&str, &str)]) -> anyhow::Result<Self> {
        let redis = RedisServer::start(&[]).await;
        let url = redis.url();
        Self::start_on(vec![redis], url, users, env).await
    }

    /// [`Self::start`] on this Redis.
    pub async fn start_on(
        redis: Vec<RedisServer>,
        redis_url: String,
        users: i64,
        env: &[(&str, &str)],
    ) -> anyhow::Result<Self> {
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
        let own = env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        let service = Presenced::start(PresencedOptions {
            database_url: Some(database.url.clone()),
            redis_url: Some(redis_url),
            env: std::iter::once(secret_variable()).chain(own).collect(),
            ..PresencedOptions::default()
        })
        .await;
        let api = Api::new(service.base_url());
        Ok(Self { service, api, redis, sql, _database: database, postgres })
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
        let redis = self.redis.iter().map(|redis| ("redis", redis.pid()));
        let others = [("presenced", self.service.pid()), ("postgres", self.postgres.pid())];
        redis.chain(others).map(|(name, pid)| Watched { name: name.into(), pid }).collect()
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
            looks.tick().await; // each costs Redis and SQL a question
            match Scrape::of(&self.api).await.get("presence_transitions_waiting") {
                Some(0.0) => Ok(()),
                waiting => Err(waiting),
            }
        })
        .await;
    }

    /// How many users are present, by the service's own word.
    pub async fn present(&self) -> f64 {
        Scrape::of(&self.api).await.value("presence_users_present")
    }

    /// Forgets what Redis has counted of its commands.
    pub fn forget_commands(&self) {
        for redis in &self.redis {
            redis.cli(&["CONFIG", "RESETSTAT"]);
        }
    }

    /// How often Redis has run this command since, and how many µs that took in all.
    pub fn command(&self, name: &str) -> (f64, f64) {
        let (mut calls, mut micros) = (0.0, 0.0);
        for redis in &self.redis {
            let stats = redis.cli(&["INFO", "commandstats"]);
            let prefix = format!("cmdstat_{name}:");
            let line = stats.lines().find_map(|line| line.strip_prefix(&prefix)).unwrap_or_default();
            let figure = |name: &str| -> f64 {
                let found = line.split(',').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='));
                found.and_then(|text| text.trim().parse().ok()).unwrap_or(0.0)
            };
            calls += figure("calls");
            micros += figure("usec");
        }
        (calls, micros)
    }

    /// What Redis has in memory, bytes.
    pub fn redis_memory(&self) -> anyhow::Result<f64> {
        let mut sum = 0.0;
        for redis in &self.redis {
            let info = redis.cli(&["INFO", "memory"]);
            let line = info.lines().find_map(|line| line.strip_prefix("used_memory:"));
            sum += line.context("INFO memory has no used_memory")?.trim().parse::<f64>()?;
        }
        Ok(sum)
    }

    /// Ends the service in an orderly way, then the others.
    pub async fn end(self) -> anyhow::Result<()> {
        let code = self.service.terminate().await;
        ensure!(code == 0, "presenced ended with code {code}:\n{}", self.service.stderr());
        Ok(())
    }
}

fn address_of(service: &Presenced) -> anyhow::Result<SocketAddr> {
    let url = service.base_url();
    url.trim_start_matches("http://").parse().with_context(|| format!("{url} is no plain address"))
}
