//! A start at a bad time: SQL or Redis is not there, or neither, or SQL has never been set up.

use std::time::Duration;

use serde_json::json;

use crate::support::http::Api;
use crate::support::mint::{access_token, secret_variable};
use crate::support::poll::eventually;
use crate::support::postgres::PrivatePostgres;
use crate::support::process::{Presenced, PresencedOptions};
use crate::support::redis::RedisServer;
use crate::support::sql::Sql;

#[tokio::test]
async fn a_start_without_sql_serves_what_needs_none_and_is_ready_when_it_comes() {
    let mut server = PrivatePostgres::start().await;
    let database = server.database().await;
    let redis = RedisServer::start(&[]).await;
    let options = PresencedOptions {
        database_url: Some(database.url.clone()),
        redis_url: Some(redis.url()),
        ttl: Some(Duration::from_mins(1)),
        env: vec![secret_variable()],
        ..PresencedOptions::default()
    };
    server.kill().await;

    // Never set up: nothing but its own state can be told, and that at once.
    let service = Presenced::start(options.clone()).await;
    let api = Api::new(service.base_url());
    assert_eq!(api.get("/healthz", None).await.0, 200);
    let (status, body, _) = api.get("/readyz", None).await;
    assert_eq!((status.as_u16(), &body["checks"]["redis"]), (503, &json!("ok")), "{body}");
    let (status, _, headers) = api.heartbeat(&access_token(1, "phone")).await;
    assert_eq!(status, 503, "Redis has no fence yet, and only SQL knows who may come");
    assert!(headers.contains_key("retry-after"));
    server.restart().await;
    eventually(Duration::from_secs(15), async || {
        let (status, body, _) = api.get("/readyz", None).await;
        match service.printed("admin password: ") {
            Some(password) if status == 200 => Ok(password),
            other => Err((status, body, other)),
        }
    })
    .await;
    let sql = Sql::open(&database.url).await;
    sql.seed(2, 5).await;
    eventually(Duration::from_secs(5), async || {
        let (status, body, _) = api.heartbeat(&access_token(2, "phone")).await;
        if status == 200 { Ok(()) } else { Err(body) }
    })
    .await;

    // A restart of the service while SQL is away: the fence stands in Redis, and heartbeats need no more.
    service.kill9().await;
    server.kill().await;
    let service = Presenced::start(options).await;
    let api = Api::new(service.base_url());
    for user in [2, 3] {
        let (status, body, _) = api.heartbeat(&access_token(user, "phone")).await;
        assert_eq!(status, 200, "{body}");
    }
    let (status, body, _) = api.get("all-users/", Some(&access_token(2, "phone"))).await;
    assert_eq!(status, 503, "{body}");
    server.restart().await;
    eventually(Duration::from_secs(15), async || {
        let online = sql_number(&database.url).await;
        if online == "2" { Ok(()) } else { Err(online) }
    })
    .await;
    assert_eq!(service.terminate().await, 0);
}

async fn sql_number(url: &str) -> String {
    let sql = Sql::open(url).await;
    sql.rows("SELECT count(*)::text FROM users WHERE online_status = 'online'").await.concat().concat()
}

/// Redis is away at the start, alone or with SQL: the log says so, `readyz` names each, and it is ready when they come.
async fn starts_without_redis(sql_too: bool) {
    let mut server = PrivatePostgres::start().await;
    let database = server.database().await;
    let mut redis = RedisServer::start(&[]).await;
    redis.kill().await;
    if sql_too {
        server.kill().await;
    }
    let service = Presenced::start(PresencedOptions {
        database_url: Some(database.url.clone()),
        redis_url: Some(redis.url()),
        env: vec![secret_variable()],
        ..PresencedOptions::default()
    })
    .await;
    let api = Api::new(service.base_url());
    let (status, body, _) = api.get("/readyz", None).await;
    assert_eq!(status, 503, "{body}");
    assert_ne!(body["checks"]["redis"], "ok");
    assert_eq!(body["checks"]["database"] == "ok", !sql_too, "{body}");
    let (status, body, headers) = api.heartbeat(&access_token(1, "phone")).await;
    assert!(status == 503 && headers.contains_key("retry-after"), "{body}");
    let said = |words: &str| service.stderr().matches(words).count();
    assert_eq!(said("Redis does not answer yet"), 1);
    if sql_too {
        eventually(Duration::from_secs(15), async || match said("waiting for the database") {
            1 => Ok(()),
            other => Err(other),
        })
        .await;
        server.restart().await;
        // One of the two is not enough, and is told apart.
        eventually(Duration::from_secs(15), async || {
            let (status, body, _) = api.get("/readyz", None).await;
            if body["checks"]["database"] == "ok" && status == 503 { Ok(()) } else { Err(body) }
        })
        .await;
    }
    redis.restart().await;
    eventually(Duration::from_secs(15), async || {
        let (status, body, _) = api.get("/readyz", None).await;
        if status == 200 { Ok(()) } else { Err(body) }
    })
    .await;
    // The account `admin`, which the first start makes.
    eventually(Duration::from_secs(15), async || {
        let (status, body, _) = api.heartbeat(&access_token(1, "phone")).await;
        if status == 200 { Ok(()) } else { Err(body) }
    })
    .await;
    assert!(
        said("Redis does not answer yet") == 1 && said("waiting for the database") <= 2,
        "{}",
        service.stderr()
    );
    assert_eq!(service.terminate().await, 0);
}

#[tokio::test]
async fn a_start_without_redis_says_so_and_is_ready_when_it_comes() {
    starts_without_redis(false).await;
}

#[tokio::test]
async fn a_start_without_redis_and_sql_says_so_and_is_ready_when_both_have_come() {
    starts_without_redis(true).await;
}
