//! The end of the process: by a signal, within its bound and without a loss, whatever hangs; and by a task that has died.

use std::time::Duration;

use reqwest::Method;
use sqlx::{Connection, PgConnection};
use tokio::io::AsyncReadExt;
use tokio::time::Instant;

use super::degraded::crowd::{Beat, Crowd};
use super::{Database, Scene, assert_alternates};
use crate::support::http::{Api, send};
use crate::support::mint::{access_token, secret_variable};
use crate::support::poll::eventually;
use crate::support::postgres::PrivatePostgres;
use crate::support::process::{Presenced, PresencedOptions};
use crate::support::redis::RedisServer;
use crate::support::tether;

const SOON: Duration = Duration::from_secs(10);
const LONG: Duration = Duration::from_mins(1);
/// The bound of the ends that are tested at their bound.
const BOUND: Duration = Duration::from_secs(4);
const BOUNDED: (&str, &str) = ("PRESENCE_SHUTDOWN_TIMEOUT", "4s");

/// SIGTERM; how long it took to end, which it does with code 0.
async fn end(service: &Presenced) -> Duration {
    let begun = Instant::now();
    assert_eq!(service.terminate().await, 0, "{}", service.stderr());
    begun.elapsed()
}

/// Everyone whose heartbeat was acknowledged, and who stayed, is in the history once.
async fn everyone_is_in_sql(scene: &Scene, beats: &[Beat]) {
    let mut told: Vec<i64> = beats.iter().filter(|beat| beat.status == 200).map(|beat| beat.user).collect();
    told.sort_unstable();
    told.dedup();
    assert!(told.len() > 100, "{told:?}");
    let histories = scene.histories().await;
    assert_alternates(&histories);
    let mut found: Vec<i64> = histories.iter().map(|row| row[0].parse().unwrap()).collect();
    found.sort_unstable();
    assert_eq!(found, told, "SQL has each once");
}

fn options(scene: &Scene) -> PresencedOptions {
    PresencedOptions {
        database_url: Some(scene.database_url()),
        redis_url: Some(scene.redis.url()),
        ttl: Some(LONG),
        env: vec![secret_variable()],
        ..PresencedOptions::default()
    }
}

/// A crowd that is under way.
async fn crowd(scene: &Scene) -> Crowd {
    let crowd = Crowd::start(&scene.api, 600, 24, Duration::from_millis(30));
    eventually(SOON, async || {
        let live: i64 = scene.redis.cli(&["ZCOUNT", "presence:{0}:live", "(0", "+inf"]).parse().unwrap();
        if live > 150 { Ok(()) } else { Err(live) }
    })
    .await;
    crowd
}

#[tokio::test]
async fn an_end_under_load_leaves_nothing_to_whoever_comes_next() {
    for database in [Database::Sqlite, Database::Postgres] {
        let scene = Scene::start(database, 600, LONG, &[]).await;
        let crowd = crowd(&scene).await;
        let took = end(&scene.service).await;
        assert!(took < Duration::from_secs(3), "nothing hangs: {took:?}");
        let beats = crowd.end().await;
        assert!(beats.iter().all(|beat| matches!(beat.status, 0 | 200)), "in flight means answered");
        assert_eq!(scene.redis.cli(&["XLEN", "presence:{0}:transitions"]), "0", "all of it is in SQL");
        everyone_is_in_sql(&scene, &beats).await;
        let names = scene.redis.cli(&["XINFO", "CONSUMERS", "presence:{0}:transitions", "persist"]);
        assert_eq!(names, "", "its name is off the group");
    }
}

#[tokio::test]
async fn a_slow_request_in_flight_is_answered_before_the_end() {
    let scene = Scene::start(Database::Postgres, 2, LONG, &[]).await;
    let token = access_token(1, "phone");
    assert_eq!(scene.api.heartbeat(&token).await.0, 200);
    // Someone else holds the table.
    let mut other = PgConnection::connect(&scene.database_url()).await.unwrap();
    sqlx::raw_sql("BEGIN; LOCK TABLE users IN ACCESS EXCLUSIVE MODE").execute(&mut other).await.unwrap();
    let request = scene.api.request(Method::GET, "admin/users/", Some(&token));
    let slow = tokio::spawn(async move { send(request).await });
    eventually(SOON, async || {
        let waiting = "SELECT count(*)::text FROM pg_locks WHERE NOT granted AND database = (SELECT oid FROM pg_database \
             WHERE datname = current_database())";
        let waiting = scene.sql.number(waiting).await;
        if waiting > 0 { Ok(()) } else { Err(waiting) }
    })
    .await;
    scene.service.signal("TERM");
    eventually(SOON, async || {
        let log = scene.service.stderr();
        if log.contains("no more connections are accepted") { Ok(()) } else { Err(log) }
    })
    .await;
    assert!(!slow.is_finished());
    sqlx::raw_sql("ROLLBACK").execute(&mut other).await.unwrap();
    let (status, body, _) = slow.await.unwrap();
    assert_eq!(status, 200, "{body}");
    assert_eq!(scene.service.ended().await, 0);
}

#[tokio::test]
async fn a_hung_redis_does_not_hold_up_the_end() {
    let scene = Scene::start(Database::Sqlite, 600, LONG, &[BOUNDED]).await;
    let crowd = crowd(&scene).await;
    scene.redis.pause();
    eventually(SOON, async || if crowd.refused() > 0 { Ok(()) } else { Err(()) }).await;
    let took = end(&scene.service).await;
    assert!(took < BOUND, "{took:?}");
    scene.redis.resume();
    let beats = crowd.end().await;
    let (another, _) = another(&scene).await;
    eventually(SOON, async || {
        let waiting = scene.redis.cli(&["XLEN", "presence:{0}:transitions"]);
        if waiting == "0" { Ok(()) } else { Err(waiting) }
    })
    .await;
    // Some heartbeats without an answer may have counted; none with one may be missing.
    let histories = scene.histories().await;
    assert_alternates(&histories);
    for beat in beats.iter().filter(|beat| beat.status == 200) {
        let rows = histories.iter().filter(|row| row[0] == beat.user.to_string());
        assert_eq!(rows.count(), 1, "{beat:?}");
    }
    assert_eq!(another.terminate().await, 0);
}

async fn another(scene: &Scene) -> (Presenced, Api) {
    let service = Presenced::start(options(scene)).await;
    let api = Api::new(service.base_url());
    (service, api)
}

#[tokio::test]
async fn a_hung_database_does_not_hold_up_the_end_and_another_instance_takes_over() {
    let postgres = PrivatePostgres::start().await;
    let database = postgres.database().await;
    let redis = RedisServer::start(&[]).await;
    let scene = Scene::start_at(redis, database.url.clone(), 600, LONG, &[BOUNDED]).await;
    let (another, _) = another(&scene).await;
    postgres.pause();
    let crowd = crowd(&scene).await;
    eventually(SOON, async || {
        let pending = scene.redis.cli(&["XPENDING", "presence:{0}:transitions", "persist"]);
        if pending.starts_with('0') { Err(pending) } else { Ok(()) }
    })
    .await;
    let took = end(&scene.service).await;
    assert!(took < BOUND, "{took:?}");
    let beats = crowd.end().await;
    postgres.resume();
    eventually(Duration::from_secs(20), async || {
        let waiting = scene.redis.cli(&["XLEN", "presence:{0}:transitions"]);
        if waiting == "0" { Ok(()) } else { Err(waiting) }
    })
    .await;
    everyone_is_in_sql(&scene, &beats).await;
    assert_eq!(another.terminate().await, 0);
}

#[tokio::test]
async fn the_bound_holds_where_everything_hangs_at_any_time() {
    let postgres = PrivatePostgres::start().await;
    let database = postgres.database().await;
    let redis = RedisServer::start(&[]).await;
    let scene = Scene::start_at(redis, database.url.clone(), 600, LONG, &[BOUNDED]).await;
    let crowd = crowd(&scene).await;
    postgres.pause();
    scene.redis.pause();
    eventually(SOON, async || if crowd.refused() > 0 { Ok(()) } else { Err(()) }).await;
    let took = end(&scene.service).await;
    assert!(took < BOUND, "{took:?}");
    crowd.end().await;
    let took = end_of_a_start(&scene).await;
    assert!(took < Duration::from_secs(1), "{took:?}");
    postgres.resume();
    scene.redis.resume();
}

/// SIGTERM to a start that waits for both; how long it took to end.
async fn end_of_a_start(scene: &Scene) -> Duration {
    let (folder, port) = (tether::folder("start"), tether::free_port());
    let address = format!("127.0.0.1:{port}");
    let mut service = tokio::process::Command::new(env!("CARGO_BIN_EXE_presenced"))
        .env("PRESENCE_LISTEN", &address)
        .env("PRESENCE_DATA_DIR", folder.path())
        .env("PRESENCE_SHUTDOWN_TIMEOUT", "1s")
        .env("DATABASE_URL", scene.database_url())
        .env("REDIS_URL", scene.redis.url())
        .envs([secret_variable()])
        .stdout(std::process::Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    eventually(SOON, async || tokio::net::TcpStream::connect(&address).await.map(drop)).await;
    let begun = Instant::now();
    tether::signal(service.id().unwrap(), "TERM");
    assert!(service.wait().await.unwrap().success());
    let mut said = String::new();
    service.stdout.take().unwrap().read_to_string(&mut said).await.unwrap();
    assert_eq!(said, "", "it has not begun");
    begun.elapsed()
}

/// `docs/decisions/0001`: the process ends, says which task it was, and leaves nothing half alive.
#[tokio::test]
async fn a_task_that_dies_ends_the_process_and_is_named() {
    let redis = RedisServer::start(&[]).await;
    for (task, said) in [
        ("sweep", "the loop 'sweep' has panicked"),
        ("listen", "the loop 'listen' has panicked"),
        ("persist", "the loop 'persist' has panicked"),
        ("reconcile", "the loop 'reconcile' has panicked"),
        ("accounts", "the loop 'accounts' has panicked"),
        ("session_ends", "the loop 'session_ends' has panicked"),
        ("last_seen", "the loop 'last_seen' has panicked"),
        ("http", "an accept loop has ended"),
        ("keys", "the keeper of the issuers' keys has ended"),
        ("group_commit", "a worker of the group commit has died"),
    ] {
        // Each has a database of its own.
        redis.cli(&["FLUSHALL"]);
        let options = PresencedOptions {
            redis_url: Some(redis.url()),
            env: vec![secret_variable(), ("PRESENCE_PANIC_IN".to_owned(), task.to_owned())],
            ..PresencedOptions::default()
        };
        let (code, output) = match Presenced::try_start(options).await {
            Err(ended) => ended,
            Ok(service) => {
                if task == "group_commit" {
                    let (status, body, _) =
                        Api::new(service.base_url()).heartbeat(&access_token(1, "x")).await;
                    assert_eq!(status, 503, "{body}");
                }
                (service.ended().await, service.stderr())
            }
        };
        assert_eq!(code, 1, "{task}: {output}");
        assert!(output.contains(said) && output.contains("this is a defect"), "{task}: {output}");
    }
}
