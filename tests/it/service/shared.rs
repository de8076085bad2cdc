//! Invariant 13: Redis is shared with others, and may forget any single key.

use std::time::Duration;

use serde_json::json;

use super::{Database, Scene};
use crate::support::mint::{access_token, secret_variable};
use crate::support::poll::eventually;
use crate::support::process::{Presenced, PresencedOptions};
use crate::support::redis::RedisServer;

const TTL: Duration = Duration::from_secs(30);

/// A service with an SQLite file of its own on this Redis.
async fn stranger(redis: &RedisServer, prefix: &str) -> Result<Presenced, (i32, String)> {
    Presenced::try_start(PresencedOptions {
        redis_url: Some(redis.url()),
        env: vec![secret_variable(), ("PRESENCE_PREFIX".into(), prefix.into())],
        ..PresencedOptions::default()
    })
    .await
}

#[tokio::test]
async fn a_service_whose_database_is_anothers_is_refused_with_what_to_do() {
    let scene = Scene::start(Database::Postgres, 3, TTL, &[]).await;
    assert_eq!(scene.api.heartbeat(&access_token(2, "phone")).await.0, 200);
    let before = scene.redis.cli(&["ZRANGE", "presence:{0}:live", "0", "-1"]);

    let (code, output) = stranger(&scene.redis, "presence").await.unwrap_err();
    assert_eq!(code, 1, "{output}");
    assert!(output.contains("belongs to another installation"), "{output}");
    assert!(output.contains("PRESENCE_PREFIX") && output.contains("redis-cli SET"), "{output}");
    assert_eq!(scene.redis.cli(&["ZRANGE", "presence:{0}:live", "0", "-1"]), before, "it touched nothing");

    // With a prefix of its own it is a neighbour, and each has its own users.
    let neighbour = stranger(&scene.redis, "staging").await.unwrap();
    let api = crate::support::http::Api::new(neighbour.base_url());
    eventually(Duration::from_secs(10), async || match api.heartbeat(&access_token(1, "desk")).await {
        (status, ..) if status == 200 => Ok(()),
        other => Err(other),
    })
    .await;
    assert_eq!(scene.redis.cli(&["EXISTS", "staging:{0}:user:1"]), "1");
    assert_eq!(scene.redis.cli(&["EXISTS", "presence:{0}:user:1"]), "0");
    let (_, one, _) = scene.api.get("admin/users/1/online-status/", Some(&access_token(3, ""))).await;
    assert_ne!(one["online_status"], "online", "{one}");
}

#[tokio::test]
async fn commands_refuse_a_pair_that_does_not_belong_together() {
    let scene = Scene::start(Database::Sqlite, 3, TTL, &[]).await;
    assert_eq!(scene.api.heartbeat(&access_token(2, "phone")).await.0, 200);
    let other = Scene::start(Database::Sqlite, 3, TTL, &[]).await;
    let held = |scene: &Scene| scene.redis.cli(&["DBSIZE"]);
    let before = held(&scene);
    for command in [&["doctor", "--repair"][..], &["check-offline-users"]] {
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_presenced"))
            .args(command)
            .env("DATABASE_URL", other.database_url())
            .env("REDIS_URL", scene.redis.url())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && said.contains("belongs to another installation"), "{said}");
    }
    assert_eq!(held(&scene), before);
    assert_eq!(scene.api.heartbeat(&access_token(2, "phone")).await.0, 200);
}

#[tokio::test]
async fn a_redis_that_may_evict_is_named_by_the_start_and_by_the_doctor() {
    let redis = RedisServer::start(&["--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru"]).await;
    let scene = Scene::start_on(redis, Database::Sqlite, 2, TTL, &[]).await;
    let log = scene.service.stderr();
    assert!(log.contains("allkeys-lru") && log.contains("noeviction"), "{log}");
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_presenced"))
        .arg("doctor")
        .env("DATABASE_URL", scene.database_url())
        .env("REDIS_URL", scene.redis.url())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(said.contains("allkeys-lru"), "{said}");
}

#[tokio::test]
async fn a_banned_account_stays_out_and_nobody_flaps_whichever_key_is_lost() {
    let scene = Scene::start(Database::Postgres, 5, TTL, &[]).await;
    let tokens: Vec<String> = (2..=5).map(|user| access_token(user, "phone")).collect();
    for token in &tokens {
        assert_eq!(scene.api.heartbeat(token).await.0, 200);
    }
    scene.sql.run("UPDATE users SET status = 'banned' WHERE id = 2").await;
    eventually(Duration::from_secs(5), async || match scene.api.heartbeat(&tokens[0]).await.0 {
        status if status == 403 => Ok(()),
        other => Err(other),
    })
    .await;
    for key in ["blocked", "ended", "live", "transitions", "fence", "moves", "epoch", "heard"] {
        assert_eq!(scene.redis.cli(&["DEL", &format!("presence:{{0}}:{key}")]), "1", "{key}");
        for round in 0..20 {
            let (status, ..) = scene.api.heartbeat(&tokens[0]).await;
            assert!([403, 503].contains(&status.as_u16()), "{key}, round {round}: {status}");
            let (status, ..) = scene.api.heartbeat(&tokens[1]).await;
            assert_eq!(status, 200, "{key}, round {round}: a steady heartbeat goes on");
        }
        // Whole again, with all who are present, and SQL agrees.
        eventually(Duration::from_secs(10), async || {
            let (_, list, _) = scene.api.get("admin/users/online/", Some(&access_token(1, ""))).await;
            let (listed, count) =
                (list["online_users"].as_array().map_or(0, Vec::len), list["online_count"].clone());
            if count == json!(4) && listed == 4 { Ok(()) } else { Err((key, list)) }
        })
        .await;
    }
    let offline =
        "SELECT CAST(count(*) AS text) FROM presence_transitions WHERE to_status = 'offline' AND user_id > 2";
    assert_eq!(scene.sql.number(offline).await, 0, "nobody was flapped");
}

#[tokio::test]
async fn a_presence_key_that_was_deleted_by_hand_is_back_within_seconds_in_counts_and_lists_alike() {
    let scene = Scene::start(Database::Sqlite, 4, TTL, &[]).await;
    for user in 2..=4 {
        assert_eq!(scene.api.heartbeat(&access_token(user, "phone")).await.0, 200);
    }
    let deadline = scene.redis.cli(&["ZSCORE", "presence:{0}:live", "3"]);
    assert_eq!(scene.redis.cli(&["DEL", "presence:{0}:user:3"]), "1");
    eventually(Duration::from_secs(8), async || {
        let (_, list, _) = scene.api.get("all-users/?online_status=online", Some(&access_token(1, ""))).await;
        let names: Vec<String> =
            list["results"].as_array().unwrap().iter().map(|user| user["username"].to_string()).collect();
        if names.len() == 4 && list["online_count"] == 4 { Ok(()) } else { Err(list) }
    })
    .await;
    let expires = scene.redis.cli(&["PEXPIRETIME", "presence:{0}:user:3"]);
    assert_eq!(expires, deadline, "it stands until the deadline, and no longer");
}

#[tokio::test]
async fn a_status_that_an_administrator_sets_is_no_sighting() {
    let scene = Scene::start(Database::Sqlite, 3, TTL, &[("PRESENCE_LAST_SEEN_FLUSH", "1s")]).await;
    let admin = access_token(1, "");
    let path = "admin/users/2/set-online-status/";
    let (status, set, _) = scene.api.post(path, Some(&admin), &json!({"status": "online"})).await;
    assert_eq!(
        (status.as_u16(), &set["online_status"], &set["last_seen"]),
        (200, &json!("online"), &json!(null))
    );
    // The write-behind has had its turn when it has written another user's.
    let phone = access_token(3, "phone");
    eventually(Duration::from_secs(10), async || {
        assert_eq!(scene.api.heartbeat(&phone).await.0, 200);
        let seen = scene.sql.rows("SELECT last_seen FROM users WHERE id = 3").await[0][0].clone();
        let flushed = !seen.is_empty()
            && chrono::DateTime::parse_from_rfc3339(&seen).unwrap()
                > chrono::Utc::now() - chrono::TimeDelta::seconds(2)
            && !scene.redis.cli(&["EXISTS", "presence:{0}:flush"]).is_empty();
        if flushed { Ok(()) } else { Err(seen) }
    })
    .await;
    let (_, offline, _) = scene.api.post(path, Some(&admin), &json!({"status": "offline"})).await;
    assert_eq!(offline["last_seen"], json!(null));
    eventually(Duration::from_secs(5), async || {
        let rows = scene.sql.rows("SELECT online_status, last_seen FROM users WHERE id = 2").await;
        if rows[0] == ["offline", ""] { Ok(()) } else { Err(rows) }
    })
    .await;
}

#[tokio::test]
async fn ids_that_are_one_double_are_two_users() {
    let scene = Scene::start(Database::Postgres, 1, TTL, &[("PRESENCE_LAST_SEEN_FLUSH", "1s")]).await;
    let (big, near) = (1_234_567_890_123_456_789_i64, 1_234_567_890_123_456_768_i64);
    for id in [big, near] {
        scene
            .sql
            .run(&format!(
                "INSERT INTO users (id, username, email, password_hash) VALUES ({id}, 'u{id}', 'u{id}@x.example', '-')"
            ))
            .await;
    }
    let (status, beat, _) = scene.api.post("heartbeat/", Some(&access_token(big, "phone")), &json!({})).await;
    assert_eq!(status, 200, "{beat}");
    let (_, list, _) = scene.api.get("admin/users/online/", Some(&access_token(1, ""))).await;
    let ids: Vec<i64> =
        list["online_users"].as_array().unwrap().iter().map(|user| user["id"].as_i64().unwrap()).collect();
    assert!(ids.contains(&big) && !ids.contains(&near), "{ids:?}");
    eventually(Duration::from_secs(10), async || {
        assert_eq!(scene.api.heartbeat(&access_token(big, "phone")).await.0, 200);
        let seen = |id: i64| format!("SELECT CAST(last_seen AS text) FROM users WHERE id = {id}");
        let (of_big, of_near) = (scene.sql.rows(&seen(big)).await, scene.sql.rows(&seen(near)).await);
        assert_eq!(of_near[0][0], "", "the neighbour was never there");
        if of_big[0][0].is_empty() { Err(of_big) } else { Ok(()) }
    })
    .await;
}

#[tokio::test]
async fn blocks_and_presences_are_compared_with_a_sql_that_was_restored_from_a_dump() {
    let scene = Scene::start(Database::Sqlite, 4, TTL, &[]).await;
    let tokens: Vec<String> = (2..=4).map(|user| access_token(user, "phone")).collect();
    let refused = async |token: &str, wanted: u16| {
        eventually(Duration::from_secs(5), async || match scene.api.heartbeat(token).await.0.as_u16() {
            status if status == wanted => Ok(()),
            other => Err(other),
        })
        .await;
    };
    scene.sql.run("UPDATE users SET status = 'banned' WHERE id = 2").await;
    refused(&tokens[0], 403).await;
    refused(&tokens[2], 200).await;
    assert_eq!(scene.service.terminate().await, 0);
    assert_eq!(scene.history(4).await.len(), 1, "what is in hand at the end is written");
    // What a restored dump looks like: other blocks, and a log that never led from one to the other.
    scene
        .sql
        .run("UPDATE users SET status = CASE id WHEN 2 THEN 'active' WHEN 3 THEN 'banned' ELSE status END")
        .await;
    for table in ["account_changes", "presence_transitions", "presence_positions"] {
        scene.sql.run(&format!("DELETE FROM {table}")).await;
    }
    scene
        .sql
        .run(
            "UPDATE users SET online_status = 'offline', last_seen = NULL, presence_version = 0, \
             presence_writes = presence_writes + 1",
        )
        .await;
    let again = scene.start_another(TTL).await;
    let api = crate::support::http::Api::new(again.base_url());
    for (token, wanted) in [(&tokens[1], 403), (&tokens[0], 200), (&tokens[2], 200)] {
        eventually(Duration::from_secs(8), async || match api.heartbeat(token).await.0.as_u16() {
            status if status == wanted => Ok(()),
            other => Err(other),
        })
        .await;
    }
    let log = again.stderr();
    assert!(log.contains("differed from SQL"), "{log}");
    // The user stayed online all the while, by heartbeats that change nothing.
    eventually(Duration::from_secs(8), async || match scene.history(4).await {
        history if history.len() == 1 && history[0][1] == "online" => Ok(()),
        other => Err(other),
    })
    .await;
}
