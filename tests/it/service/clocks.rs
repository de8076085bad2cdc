//! Invariant 7: no clock but Redis's decides the end of a session.

use std::time::Duration;

use serde_json::json;

use super::{Database, Scene};
use crate::support::clock::ShiftedClock;
use crate::support::http::{Api, PASSWORD, Tokens};
use crate::support::mint::access_token;
use crate::support::poll::eventually;
use crate::support::postgres::PrivatePostgres;
use crate::support::process::{Presenced, PresencedOptions};
use crate::support::redis::RedisServer;

const WITHIN: Duration = Duration::from_secs(1);
const SHIFT: i64 = 20 * 60;

/// Adds an account beside those that were added with ids of their own.
async fn register(scene: &Scene, name: &str) {
    if scene.database_url().starts_with("postgres") {
        scene
            .sql
            .rows("SELECT setval(pg_get_serial_sequence('users', 'id'), (SELECT max(id) FROM users))::text")
            .await;
    }
    scene.api.register(name).await;
}

/// Waits until the tokens of a session are refused, its access token with this status.
async fn refused(scene: &Scene, tokens: &Tokens, expected: u16) {
    eventually(WITHIN, async || {
        let (status, body, _) = scene.api.heartbeat(&tokens.access).await;
        if status == expected { Ok(()) } else { Err((status, body)) }
    })
    .await;
    let refresh = json!({"refresh": tokens.refresh});
    assert_eq!(scene.api.post("token/refresh/", None, &refresh).await.0, expected);
}

async fn sessions_end_though_the_databases_clock_is_wrong(shift: i64) {
    let clock = ShiftedClock::new();
    clock.set(shift);
    let server = PrivatePostgres::start_with(clock.env()).await;
    let database = server.database().await;
    let redis = RedisServer::start(&[]).await;
    let scene = Scene::start_at(redis, database.url.clone(), 1, Duration::from_secs(20), &[]).await;
    let now = chrono::Utc::now().timestamp();
    let off =
        scene.sql.number("SELECT CAST(extract(epoch FROM clock_timestamp()) AS bigint)::text").await - now;
    assert!((off - shift).abs() < 60, "the clock of PostgreSQL is off by {off} s");

    let mut ended = Vec::new();
    let admin = access_token(1, "");
    for name in ["ada", "bob", "eve"] {
        register(&scene, name).await;
        let tokens = scene.api.login(name).await;
        assert_eq!(scene.api.heartbeat(&tokens.access).await.0, 200);
        let id = tokens.user_id();
        match name {
            "ada" => {
                let edit = json!({"password": "another long passphrase"});
                assert_eq!(scene.api.patch(&format!("admin/users/{id}/"), Some(&admin), &edit).await.0, 200);
            }
            "bob" => {
                let hash = "(SELECT password_hash FROM users WHERE username = 'ada')";
                scene.sql.run(&format!("UPDATE users SET password_hash = {hash} WHERE id = {id}")).await;
            }
            _ => {
                scene.sql.run(&format!("UPDATE users SET status = 'banned' WHERE id = {id}")).await;
                refused(&scene, &tokens, 403).await;
                scene.sql.run(&format!("UPDATE users SET status = 'active' WHERE id = {id}")).await;
            }
        }
        refused(&scene, &tokens, 401).await;
        ended.push(tokens);
    }
    // Redis has been told of all of them, by its own clock; then it loses its data.
    eventually(Duration::from_secs(5), async || {
        let untold =
            scene.sql.number("SELECT count(*)::text FROM login_sessions WHERE end_told_at IS NULL").await;
        if untold == 0 { Ok(()) } else { Err(untold) }
    })
    .await;
    scene.redis.cli(&["FLUSHALL"]);
    for tokens in &ended {
        eventually(Duration::from_secs(10), async || match scene.api.heartbeat(&tokens.access).await {
            (status, ..) if status == 401 => Ok(()),
            (status, body, _) if status == 503 => Err(body),
            (status, body, _) => panic!("answered {status}: {body}"),
        })
        .await;
    }
}

#[tokio::test]
async fn sessions_end_though_the_databases_clock_is_behind() {
    sessions_end_though_the_databases_clock_is_wrong(-SHIFT).await;
}

#[tokio::test]
async fn sessions_end_though_the_databases_clock_is_ahead() {
    sessions_end_though_the_databases_clock_is_wrong(SHIFT).await;
}

/// Two tabs at two instances, one of which has a clock that is behind: what one of them dates the other judges.
async fn instances_whose_clocks_differ_judge_a_session_alike(database: Database) {
    let clock = ShiftedClock::new();
    let bound = ("PRESENCE_SESSION_MAX_AGE", "10m");
    let scene = Scene::start(database, 1, Duration::from_mins(1), &[bound]).await;
    clock.set(-SHIFT);
    let mut env = clock.env();
    env.push(crate::support::mint::secret_variable());
    env.push((bound.0.to_owned(), bound.1.to_owned()));
    let behind = Presenced::start(PresencedOptions {
        database_url: Some(scene.database_url()),
        redis_url: Some(scene.redis.url()),
        env,
        ..PresencedOptions::default()
    })
    .await;
    let behind = Api::new(behind.base_url());
    register(&scene, "ada").await;
    let tokens = behind.login_with("ada", PASSWORD).await;
    let refresh = json!({"refresh": tokens.refresh});
    // Where its time is off at all, its access token has expired for the other.
    assert_eq!(scene.api.heartbeat(&tokens.access).await.0, 401, "the clock of this instance is not behind");

    let (status, body, _) = behind.post("token/refresh/", None, &refresh).await;
    assert_eq!(status, 200, "{body}");
    let (status, body, _) = scene.api.post("token/refresh/", None, &refresh).await;
    assert_eq!(status, 200, "two tabs within the grace, of a session that is some seconds old: {body}");
    let listed = scene.api.get("me/sessions/", body["access"].as_str()).await.1;
    let created = listed["sessions"][0]["created_at"].as_str().unwrap();
    let age = chrono::Utc::now() - chrono::DateTime::parse_from_rfc3339(created).unwrap().to_utc();
    assert!(age.num_seconds().abs() < 60, "{listed}");
}

#[tokio::test]
async fn instances_whose_clocks_differ_judge_a_session_alike_on_sqlite() {
    instances_whose_clocks_differ_judge_a_session_alike(Database::Sqlite).await;
}

#[tokio::test]
async fn instances_whose_clocks_differ_judge_a_session_alike_on_postgres() {
    instances_whose_clocks_differ_judge_a_session_alike(Database::Postgres).await;
}
