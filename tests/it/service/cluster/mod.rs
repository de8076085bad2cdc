//! The service on a Redis Cluster and behind sentinels, under a steady load, while primaries die, hang, are replaced, and
//! slots move.

mod crowd;
mod failover;
mod hung;
mod lost;
mod plain;
mod resharding;
mod sentinel;

use std::process::{Command, Stdio};
use std::time::Duration;

use crowd::Crowd;

use super::assert_alternates;
use crate::support::http::Api;
use crate::support::metrics::Scrape;
use crate::support::mint::secret_variable;
use crate::support::poll::eventually;
use crate::support::postgres::{Postgres, TestDatabase};
use crate::support::process::{Presenced, PresencedOptions};
use crate::support::sql::Sql;

/// What the service uses on a cluster where nothing else is said.
const SHARDS: u32 = 64;

/// Two instances on one Redis, whatever that is, and one PostgreSQL.
struct Stage {
    instances: Vec<Presenced>,
    apis: Vec<Api>,
    sql: Sql,
    redis_url: String,
    ttl: Duration,
    database: TestDatabase,
}

impl Stage {
    /// Users 1 to `users` exist, user 1 is an admin.
    async fn start(redis_url: String, users: i64, ttl: Duration) -> Self {
        let database = Postgres::database().await;
        let options = presenced::store::Options::default();
        presenced::store::open(&database.url, &options).await.unwrap().migrate().await.unwrap();
        let sql = Sql::open(&database.url).await;
        sql.seed(1, users).await;
        // Those who register come after them.
        sql.rows("SELECT CAST(setval(pg_get_serial_sequence('users', 'id'), 100000) AS text)").await;
        let mut stage = Self { instances: vec![], apis: vec![], sql, redis_url, ttl, database };
        for _ in 0..2 {
            stage.start_another().await;
        }
        stage
    }

    async fn start_another(&mut self) {
        let instance = Presenced::start(PresencedOptions {
            database_url: Some(self.database.url.clone()),
            redis_url: Some(self.redis_url.clone()),
            ttl: Some(self.ttl),
            env: vec![secret_variable()],
            ..PresencedOptions::default()
        })
        .await;
        self.apis.push(Api::new(instance.base_url()));
        self.instances.push(instance);
    }

    /// Exit code and output of `presenced doctor`.
    async fn doctor(&self) -> (i32, String) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_presenced"));
        let ttl = format!("{}ms", self.ttl.as_millis());
        command
            .arg("doctor")
            .env("DATABASE_URL", &self.database.url)
            .env("REDIS_URL", &self.redis_url)
            .env("PRESENCE_TTL", ttl)
            .stdin(Stdio::null());
        let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
        let said =
            String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        (output.status.code().unwrap(), said)
    }

    /// Each row: user, from, to, reason, at (ms), `recorded_at` (ms); in order.
    async fn histories(&self) -> Vec<Vec<String>> {
        let (at, recorded_at) = (self.sql.ms("at"), self.sql.ms("recorded_at"));
        let query = format!(
            "SELECT CAST(user_id AS text), from_status, to_status, reason, {at}, {recorded_at} FROM presence_transitions \
             ORDER BY user_id, id"
        );
        self.sql.rows(&query).await
    }

    /// Waits until nothing waits for SQL and nobody is on hold, by the word of `/metrics`.
    async fn recorded(&self) {
        eventually(Duration::from_secs(20), async || {
            let waiting = Scrape::of(&self.apis[0]).await.get("presence_transitions_waiting");
            if waiting == Some(0.0) { Ok(()) } else { Err(waiting) }
        })
        .await;
    }

    /// What must be so in the end: the doctor finds nothing, histories alternate, and who was heard all the while was never
    /// taken offline. Returns how many acknowledged transitions the history lacks.
    async fn judge(&self, crowd: &Crowd) -> usize {
        self.recorded().await;
        let (code, said) = self.doctor().await;
        assert_eq!(code, 0, "{said}");
        let histories = self.histories().await;
        assert_alternates(&histories);
        crowd.missing(&histories)
    }
}

/// Waits until readyz says so of each instance.
async fn all_ready(stage: &Stage) {
    for api in &stage.apis {
        eventually(Duration::from_secs(30), async || {
            let (status, body, _) = api.get("/readyz", None).await;
            if status == 200 { Ok(()) } else { Err(body) }
        })
        .await;
    }
}
