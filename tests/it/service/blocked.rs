//! The account rule on three instances: how soon a plain `UPDATE users` counts everywhere, and what may not delay it.

use std::time::Duration;

use tokio::time::Instant;

use super::degraded::crowd::Crowd;
use super::{Database, Scene};
use crate::support::http::Api;
use crate::support::mint::access_token;
use crate::support::poll::eventually;
use crate::support::postgres::PrivatePostgres;
use crate::support::process::Presenced;
use crate::support::redis::RedisServer;

/// What the contract allows.
const WITHIN: Duration = Duration::from_secs(1);
/// How often it is tried.
const ROUNDS: usize = 200;
const USERS: i64 = 300;

/// Three instances over one scene.
struct Three {
    scene: Scene,
    others: [Presenced; 2],
}

impl Three {
    async fn start(database: Database) -> Self {
        Self::over(Scene::start(database, USERS, Duration::from_mins(2), &[]).await).await
    }

    async fn over(scene: Scene) -> Self {
        let ttl = Duration::from_mins(2);
        let others = [scene.start_another(ttl).await, scene.start_another(ttl).await];
        Self { scene, others }
    }

    fn apis(&self) -> [Api; 3] {
        let [one, two] = &self.others;
        [self.scene.api.clone(), Api::new(one.base_url()), Api::new(two.base_url())]
    }

    /// Changes the user and returns how long it took from the commit until every instance answered his heartbeats with
    /// `expected` and every one reads him as he then is.
    async fn lag(&self, user: i64, assignment: &str, expected: u16) -> Duration {
        let began = Instant::now();
        self.scene.sql.run(&format!("UPDATE users SET {assignment} WHERE id = {user}")).await;
        let asking = self.apis().map(|api| async move { counts_at(&api, user, expected).await });
        let counted = futures_util::future::join_all(asking).await;
        // From before the statement was sent: the commit lies somewhere in between.
        counted.into_iter().max().expect("three instances") - began
    }
}

/// When an instance refuses (or takes) the user and reads him as offline (or online).
async fn counts_at(api: &Api, user: i64, expected: u16) -> Instant {
    let (own, admin) = (access_token(user, ""), access_token(1, "desk"));
    let path = format!("admin/users/{user}/online-status/");
    eventually(Duration::from_secs(20), async || {
        let (status, body, _) = api.heartbeat(&own).await;
        if status != expected {
            return Err((status, body));
        }
        let (status, body, _) = api.get(&path, Some(&admin)).await;
        if body["is_online"] == (expected == 200) { Ok(Instant::now()) } else { Err((status, body)) }
    })
    .await
}

fn shown(what: &str, mut lags: Vec<Duration>) -> Duration {
    lags.sort_unstable();
    let at = |percent: usize| lags[(lags.len() * percent / 100).min(lags.len() - 1)];
    println!("{what}: {} times, p50 {:?}, p99 {:?}, worst {:?}", lags.len(), at(50), at(99), at(100));
    at(100)
}

async fn counts_on_three_instances(database: Database, name: &str) {
    let three = Three::start(database).await;
    let crowd = Crowd::start(&three.scene.api, USERS, 4, Duration::from_millis(40));
    let blocks = ["status = 'suspended'", "is_active = false", "status = 'banned'", "status = 'inactive'"];
    let (mut blocked, mut unblocked) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        let user = 2 + i64::try_from(round).unwrap() % 5;
        let again = three.lag(user, "status = 'active', is_active = true", 200).await;
        blocked.push(three.lag(user, blocks[round % blocks.len()], 403).await);
        if round >= 5 {
            unblocked.push(again);
        }
        let held = three.scene.redis.cli(&["EXISTS", &format!("presence:{{0}}:user:{user}")]);
        assert_eq!(held, "0", "round {round}");
    }
    crowd.end().await;
    let block = shown(&format!("{name}: UPDATE to 403 and offline on three instances"), blocked);
    let unblock = shown(&format!("{name}: UPDATE to 200 and online on three instances"), unblocked);
    assert!(block < WITHIN, "{block:?}");
    assert!(unblock < WITHIN, "{unblock:?}");
    // Each block took the user offline once, however many instances saw it.
    for user in 2..7 {
        eventually(Duration::from_secs(10), async || {
            let history = three.scene.history(user).await;
            let blocks = history.iter().filter(|row| row[2] == "blocked").count();
            if blocks == ROUNDS / 5 { Ok(()) } else { Err((user, blocks)) }
        })
        .await;
    }
    super::assert_alternates(&three.scene.histories().await);
}

#[tokio::test]
async fn a_plain_update_counts_within_a_second_on_three_instances_on_postgres() {
    Box::pin(counts_on_three_instances(Database::Postgres, "PostgreSQL")).await;
}

#[tokio::test]
async fn a_plain_update_counts_within_a_second_on_three_instances_on_sqlite() {
    Box::pin(counts_on_three_instances(Database::Sqlite, "SQLite")).await;
}

#[tokio::test]
async fn an_instance_that_was_paused_comes_back_with_no_stale_permission() {
    let three = Three::start(Database::Postgres).await;
    let pause = std::env::var("PRESENCE_TEST_PAUSE").map_or(Duration::from_secs(5), |pause| {
        humantime::parse_duration(&pause).expect("PRESENCE_TEST_PAUSE is a time such as 60s")
    });
    let [_, _, paused] = three.apis();
    // Permitted there, and its connection kept: whatever it remembers, it remembers this.
    for user in [2, 3] {
        assert_eq!(paused.heartbeat(&access_token(user, "")).await.0, 200);
    }
    three.others[1].pause();
    three.scene.sql.run("UPDATE users SET status = 'suspended' WHERE id = 2").await;
    counts_at(&three.scene.api, 2, 403).await;
    tokio::time::sleep(pause).await;
    three.others[1].resume();
    assert_eq!(paused.heartbeat(&access_token(2, "")).await.0, 403, "the very first one");
    assert_eq!(paused.heartbeat(&access_token(3, "")).await.0, 200);

    // With all of them asleep nobody can have told Redis; the first to wake up does, within the second.
    three.others[0].pause();
    three.others[1].pause();
    three.scene.service.pause();
    three.scene.sql.run("UPDATE users SET status = 'suspended' WHERE id = 3").await;
    tokio::time::sleep(pause).await;
    three.others[1].resume();
    let woken = Instant::now();
    let lag = counts_at(&paused, 3, 403).await - woken;
    assert!(lag < WITHIN, "{lag:?}");
    three.others[0].resume();
    three.scene.service.resume();
}

#[tokio::test]
async fn a_change_counts_though_its_wake_up_is_lost_and_the_database_restarts() {
    let mut server = PrivatePostgres::start().await;
    let database = server.database().await;
    let redis = RedisServer::start(&[]).await;
    let scene = Scene::start_at(redis, database.url.clone(), USERS, Duration::from_mins(2), &[]).await;
    let three = Three::over(scene).await;
    let mut lags = Vec::new();
    for round in 0..20 {
        let user = 2 + round;
        three.lag(user, "status = 'active'", 200).await;
        // Whoever listens is cut off, with the notice under way.
        let cut = "SELECT CAST(count(pg_terminate_backend(pid)) AS text) FROM pg_stat_activity \
                   WHERE application_name = 'presenced' AND pid <> pg_backend_pid()";
        three.scene.sql.rows(cut).await;
        lags.push(three.lag(user, "status = 'suspended'", 403).await);
    }
    assert!(shown("every connection cut just before", lags) < WITHIN);

    server.kill().await;
    server.restart().await;
    let sql = crate::support::sql::Sql::open(&database.url).await;
    sql.run("UPDATE users SET status = 'suspended' WHERE id = 100").await;
    let began = Instant::now();
    for api in three.apis() {
        let lag = counts_at(&api, 100, 403).await - began;
        // Connections are asked for anew every quarter of a second.
        assert!(lag < WITHIN, "{lag:?} after the database came back");
    }
}
