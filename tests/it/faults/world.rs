//! The servers of a run: several instances of the service, their Redis, and one PostgreSQL behind a proxy.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, RwLock};
use std::time::Duration;

use tempfile::TempDir;

use super::fault::Copy;
use super::ledger::Row;
use super::servers::Servers;
use crate::support::clock::ShiftedClock;
use crate::support::http::Api;
use crate::support::mint::{access_token, secret_variable};
use crate::support::poll::eventually;
use crate::support::postgres::PrivatePostgres;
use crate::support::process::{Presenced, PresencedOptions};
use crate::support::proxy::Proxy;
use crate::support::sql::Sql;

/// How many instances run.
pub const INSTANCES: usize = 3;
/// How many accounts there are; the first is the administrator, who is not part of the crowd.
pub const USERS: i64 = 300;
/// By how much a record's instant must differ from its transition's to tell of a stepped clock, ms: no fault lasts as long.
const CLOCK_WAS_STEPPED_MS: i64 = 60_000;
/// The TTL: short, so that lives end often.
pub const TTL: Duration = Duration::from_millis(1_500);

/// Where the instances are at the moment; shared with the crowd.
pub type Addresses = Arc<RwLock<Vec<Api>>>;

pub struct World {
    // Fields drop in order: the instances go before what they stand on.
    pub instances: Vec<Presenced>,
    pub addresses: Addresses,
    pub redis: Servers,
    pub sql: Sql,
    pub sql_proxy: Proxy,
    pub postgres: PrivatePostgres,
    /// SQL's own clock.
    pub sql_clock: ShiftedClock,
    /// The database without the proxy before it.
    pub direct_url: String,
    options: PresencedOptions,
    copies: TempDir,
}

impl World {
    pub async fn start(redis: Servers) -> Self {
        let sql_clock = ShiftedClock::new();
        let postgres = PrivatePostgres::start_with(sql_clock.env()).await;
        let database = postgres.database().await;
        let sql_proxy = Proxy::before(postgres.port()).await;
        let store =
            presenced::store::open(&database.url, &presenced::store::Options::default()).await.unwrap();
        store.migrate().await.unwrap();
        let sql = Sql::open(&database.url).await;
        sql.seed(1, USERS).await;
        let behind = |port: u16, url: &str, proxy: &Proxy| {
            url.replace(&format!(":{port}"), &format!(":{}", proxy.port()))
        };
        let options = PresencedOptions {
            database_url: Some(behind(postgres.port(), &database.url, &sql_proxy)),
            redis_url: Some(redis.url()),
            ttl: Some(TTL),
            // After a loss Redis is told of every session that ended within it: those of a few rounds, not of a hundred.
            env: vec![
                secret_variable(),
                ("PRESENCE_ACCESS_TTL".to_owned(), "1m".to_owned()),
                ("PRESENCE_SHARDS".to_owned(), redis.shards().to_string()),
            ],
            ..PresencedOptions::default()
        };
        let mut instances = Vec::new();
        for _ in 0..INSTANCES {
            instances.push(Presenced::start(options.clone()).await);
        }
        let addresses = instances.iter().map(|instance| Api::new(instance.base_url())).collect();
        Self {
            instances,
            addresses: Arc::new(RwLock::new(addresses)),
            redis,
            sql,
            sql_proxy,
            postgres,
            sql_clock,
            direct_url: database.url.clone(),
            options,
            copies: crate::support::tether::folder("copies"),
        }
    }

    /// Starts an instance in the place of one that has ended.
    pub async fn start_again(&mut self, index: usize) {
        let instance = Presenced::start(self.options.clone()).await;
        self.addresses.write().unwrap()[index] = Api::new(instance.base_url());
        self.instances[index] = instance;
    }

    /// Copies what each Redis server has on its disk at this moment, as a backup would.
    pub fn copy_redis(&self) -> Copy {
        let at = super::crowd::now();
        let path = self.copies.path().join(at.to_string());
        for (node, server) in self.redis.nodes().iter().enumerate() {
            copy_folder(&server.folder().join("appendonlydir"), &path.join(node.to_string()));
        }
        Copy { at, path }
    }

    /// Waits until every instance answers and finds both servers.
    pub async fn is_whole(&self) {
        self.redis.are_well().await;
        for index in 0..INSTANCES {
            eventually(Duration::from_secs(20), async || {
                let api = self.addresses.read().unwrap()[index].clone();
                let (status, body, _) = api.get("/readyz", None).await;
                if status == 200 { Ok(()) } else { Err(body) }
            })
            .await;
        }
    }

    /// Waits until nobody is present any more, in Redis and in SQL, and nothing is on its way.
    pub async fn settle(&self) -> Result<(), String> {
        let deadline = tokio::time::Instant::now() + Duration::from_secs(25);
        loop {
            let present =
                self.sql.number("SELECT count(*)::text FROM users WHERE online_status <> 'offline'").await;
            let mut left = vec![present.to_string()];
            let mut pending = Vec::new();
            for shard in 0..self.redis.shards() {
                let stream = format!("presence:{{{shard}}}:transitions");
                let live = format!("presence:{{{shard}}}:live");
                left.push(self.redis.cli(shard, &["ZCOUNT", &live, "(0", "+inf"]));
                left.push(self.redis.cli(shard, &["XLEN", &stream]));
                pending.push(self.redis.cli(shard, &["XPENDING", &stream, "persist"]));
            }
            // A group that is gone with the data has nothing pending either.
            let is_empty = |pending: &String| pending.starts_with('0') || pending.contains("NOGROUP");
            if left.iter().all(|left| left == "0") && pending.iter().all(is_empty) {
                return Ok(());
            }
            if tokio::time::Instant::now() > deadline {
                return Err(format!(
                    "it does not settle: present in SQL, then live and stream of each shard: {left:?}"
                ));
            }
            super::fault::last(20).await;
        }
    }

    /// What the service says of everybody, as a dashboard asks.
    pub async fn statuses(&self) -> HashMap<i64, String> {
        let api = self.addresses.read().unwrap()[0].clone();
        // A request from the time of a fault may still be found to have failed.
        let body = eventually(Duration::from_secs(5), async || {
            let (status, body, _) = api.get("admin/users/?per_page=1000", Some(&access_token(1, ""))).await;
            if status == 200 && body["degraded"].is_null() { Ok(body) } else { Err(status) }
        })
        .await;
        let users = body["results"].as_array().unwrap();
        users
            .iter()
            .map(|user| (user["id"].as_i64().unwrap(), user["online_status"].as_str().unwrap().to_owned()))
            .collect()
    }

    /// What the instances and Redis have logged.
    pub fn said(&self) -> String {
        let instances = self.instances.iter().map(|one| format!("presenced {}\n{}", one.pid(), one.stderr()));
        instances.chain([self.redis.output()]).collect()
    }

    /// The newest row of the history.
    pub async fn last_row(&self) -> i64 {
        self.sql.number("SELECT coalesce(max(id), 0)::text FROM presence_transitions").await
    }

    /// The rows of the history after that one, by user.
    pub async fn rows_after(&self, id: i64) -> HashMap<i64, Vec<Row>> {
        let (at, recorded_at) = (self.sql.ms("at"), self.sql.ms("recorded_at"));
        let query = format!(
            "SELECT user_id::text, from_status, to_status, reason, {at}, {recorded_at}, \
             split_part(split_part(stream_id, '/', 2), '-', 1) FROM presence_transitions WHERE id > {id} \
             ORDER BY user_id, id"
        );
        let mut rows: HashMap<i64, Vec<Row>> = HashMap::new();
        for row in self.sql.rows(&query).await {
            let number = |index: usize| row[index].parse::<i64>().unwrap();
            // By SQL's clock, which a fault may have stepped by minutes: then it says nothing of when that was.
            let recorded_at = Some(number(5)).filter(|at| (at - number(6)).abs() < CLOCK_WAS_STEPPED_MS);
            rows.entry(number(0)).or_default().push(Row {
                from: row[1].clone(),
                to: row[2].clone(),
                reason: row[3].clone(),
                at: number(4),
                recorded_at: recorded_at.unwrap_or_else(|| number(6)),
                appended: number(6),
            });
        }
        rows
    }
}

pub fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}
