//! The whole service under real conditions: crowds, time, other keys, strangers, and its own end.

mod blocked;
#[cfg(target_os = "linux")]
mod clocks;
mod cluster;
mod commands;
mod crowd;
mod degraded;
mod doctor;
mod doors;
mod embedded;
mod ending;
mod fence;
mod first_start;
mod flood;
mod foreign_text;
mod import;
mod lost;
mod masses;
mod metrics;
mod others;
mod per_user;
mod private;
mod punctual;
mod secret_files;
mod security_log;
mod shared;
mod start;
mod statements;
mod storm;
mod strangers;
mod upgrade;

use std::time::Duration;

use tempfile::TempDir;

use crate::support::http::Api;
use crate::support::mint::secret_variable;
use crate::support::postgres::{Postgres, TestDatabase};
use crate::support::process::{Presenced, PresencedOptions};
use crate::support::redis::RedisServer;
use crate::support::sql::Sql;

/// Which database a test runs on.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Database {
    Sqlite,
    Postgres,
}

/// A service with a Redis of its own and a seeded database.
pub struct Scene {
    pub service: Presenced,
    pub redis: RedisServer,
    pub sql: Sql,
    pub api: Api,
    url: String,
    /// What goes with the scene, where that is its own.
    database: Option<TestDatabase>,
    folder: Option<TempDir>,
}

impl Scene {
    /// Users 1 to `users` exist, user 1 is an admin, and the service runs with these variables besides.
    pub async fn start(database: Database, users: i64, ttl: Duration, env: &[(&str, &str)]) -> Self {
        Self::start_on(RedisServer::start(&[]).await, database, users, ttl, env).await
    }

    /// [`Self::start`] on this Redis.
    pub async fn start_on(
        redis: RedisServer,
        database: Database,
        users: i64,
        ttl: Duration,
        env: &[(&str, &str)],
    ) -> Self {
        let folder = crate::support::tether::folder("scene");
        let (url, test_database) = match database {
            Database::Sqlite => (format!("sqlite://{}", folder.path().join("presence.db").display()), None),
            Database::Postgres => {
                let database = Postgres::database().await;
                (database.url.clone(), Some(database))
            }
        };
        let mut scene = Self::start_at(redis, url, users, ttl, env).await;
        (scene.database, scene.folder) = (test_database, Some(folder));
        scene
    }

    /// [`Self::start_on`] this Redis and this empty database, which are somebody else's.
    pub async fn start_at(
        redis: RedisServer,
        url: String,
        users: i64,
        ttl: Duration,
        env: &[(&str, &str)],
    ) -> Self {
        let store = presenced::store::open(&url, &presenced::store::Options::default()).await.unwrap();
        store.migrate().await.unwrap();
        let sql = Sql::open(&url).await;
        sql.seed(1, users).await;
        let mut variables = vec![secret_variable()];
        variables.extend(env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
        let service = Presenced::start(PresencedOptions {
            database_url: Some(url.clone()),
            redis_url: Some(redis.url()),
            ttl: Some(ttl),
            env: variables,
            ..PresencedOptions::default()
        })
        .await;
        let api = Api::new(service.base_url());
        Self { service, redis, sql, api, url, database: None, folder: None }
    }

    /// One more instance on the same Redis and SQL.
    pub async fn start_another(&self, ttl: Duration) -> Presenced {
        Presenced::start(PresencedOptions {
            database_url: Some(self.url.clone()),
            redis_url: Some(self.redis.url()),
            ttl: Some(ttl),
            env: vec![secret_variable()],
            ..PresencedOptions::default()
        })
        .await
    }

    pub fn database_url(&self) -> String {
        self.url.clone()
    }

    /// A user's history: from, to, reason, at (ms), `recorded_at` (ms); in order.
    pub async fn history(&self, user: i64) -> Vec<Vec<String>> {
        let (at, recorded_at) = (self.sql.ms("at"), self.sql.ms("recorded_at"));
        let query = format!(
            "SELECT from_status, to_status, reason, {at}, {recorded_at} FROM presence_transitions WHERE user_id = {user} \
             ORDER BY id"
        );
        self.sql.rows(&query).await
    }

    /// Every user's history, as [`Self::history`] with the user's id before.
    pub async fn histories(&self) -> Vec<Vec<String>> {
        let (at, recorded_at) = (self.sql.ms("at"), self.sql.ms("recorded_at"));
        let query = format!(
            "SELECT CAST(user_id AS text), from_status, to_status, reason, {at}, {recorded_at} FROM presence_transitions \
             ORDER BY user_id, id"
        );
        self.sql.rows(&query).await
    }
}

/// Fails where a history does not begin offline, does not chain, or stands still.
pub fn assert_alternates(histories: &[Vec<String>]) {
    let mut last: Option<(&str, &str)> = None;
    for row in histories {
        let before = match last {
            Some((user, status)) if user == row[0] => status,
            _ => "offline",
        };
        assert_eq!(row[1], before, "user {} was {before}: {row:?}", row[0]);
        assert_ne!(row[1], row[2], "{row:?}");
        last = Some((&row[0], &row[2]));
    }
}
