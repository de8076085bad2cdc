//! A thousand users on real HTTP heartbeats, half of whom go silent: SQL, API and Redis agree about every one.

use std::collections::HashMap;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;

use super::{Database, Scene, assert_alternates};
use crate::support::http::Api;
use crate::support::mint::access_token;
use crate::support::poll::eventually;

const USERS: i64 = 1_000;
const TTL: Duration = Duration::from_secs(2);
const TTL_MS: i64 = 2_000;
/// Connections of the crowd.
const CLIENTS: i64 = 25;

#[tokio::test]
async fn a_crowd_half_of_which_goes_silent_is_told_right_on_sqlite() {
    half_goes_silent(Database::Sqlite).await;
}

#[tokio::test]
async fn a_crowd_half_of_which_goes_silent_is_told_right_on_postgres() {
    half_goes_silent(Database::Postgres).await;
}

/// One round: a heartbeat of each; returns the last heartbeat that the service acknowledged, ms.
async fn round(api: &Api, tokens: &[(i64, String)], word: impl Fn(i64) -> Value) -> HashMap<i64, i64> {
    let share = tokens.len().div_ceil(usize::try_from(CLIENTS).unwrap());
    let word = &word;
    let clients = tokens.chunks(share).map(|tokens| async move {
        let mut seen = Vec::new();
        for (user, token) in tokens {
            let (status, body, _) = api.post("heartbeat/", Some(token), &word(*user)).await;
            assert_eq!(status, 200, "{body}");
            let at = chrono::DateTime::parse_from_rfc3339(body["last_seen"].as_str().unwrap()).unwrap();
            seen.push((*user, at.timestamp_millis()));
        }
        seen
    });
    futures_util::future::join_all(clients).await.into_iter().flatten().collect()
}

async fn half_goes_silent(database: Database) {
    let scene = Scene::start(database, USERS, TTL, &[]).await;
    let tokens: Vec<_> = (1..=USERS).map(|user| (user, access_token(user, "phone"))).collect();
    // Even ones stay, and some of them idle; odd ones go silent.
    let (stay, silent): (Vec<_>, Vec<_>) = tokens.iter().cloned().partition(|(user, _)| user % 2 == 0);
    let word = |user| if user % 10 == 0 { json!({"status": "away"}) } else { json!({}) };
    let mut last_seen = HashMap::new();
    for _ in 0..3 {
        last_seen.extend(round(&scene.api, &tokens, word).await);
    }
    let silent_since = Instant::now();
    while silent_since.elapsed() < TTL + Duration::from_secs(1) {
        last_seen.extend(round(&scene.api, &stay, word).await);
    }
    eventually(Duration::from_secs(10), async || {
        last_seen.extend(round(&scene.api, &stay, word).await);
        let gone = scene
            .sql
            .number("SELECT CAST(count(*) AS text) FROM users WHERE online_status = 'offline'")
            .await;
        if gone == USERS / 2 { Ok(()) } else { Err(format!("{gone} are offline")) }
    })
    .await;

    // SQL, API and Redis at one moment, well within the others' TTL.
    last_seen.extend(round(&scene.api, &stay, word).await);
    let query = "SELECT CAST(id AS text), online_status FROM users ORDER BY id";
    let sql: HashMap<i64, String> = scene
        .sql
        .rows(query)
        .await
        .into_iter()
        .map(|row| (row[0].parse().unwrap(), row[1].clone()))
        .collect();
    let live = scene.redis.cli(&["ZRANGE", "presence:{0}:live", "0", "-1"]);
    let live: Vec<i64> = live.lines().map(|user| user.parse().unwrap()).collect();
    let (_, all, _) = scene.api.get(&format!("all-users/?per_page={USERS}"), Some(&stay[0].1)).await;
    assert_eq!(all["online_count"], json!(USERS / 2));
    let users = all["results"].as_array().unwrap();
    assert_eq!(i64::try_from(users.len()).unwrap(), USERS);
    for user in users {
        let id = user["id"].as_i64().unwrap();
        let expected = match id % 10 {
            0 => "away",
            2 | 4 | 6 | 8 => "online",
            _ => "offline",
        };
        assert_eq!(user["online_status"], expected, "API, user {id}");
        assert_eq!(sql[&id], expected, "SQL, user {id}");
        assert_eq!(live.contains(&id), expected != "offline", "Redis, user {id}");
    }

    // Every silent one expired once, at the last acknowledged heartbeat + TTL, and was recorded within a second.
    let histories = scene.histories().await;
    assert_alternates(&histories);
    let mut lags = Vec::new();
    for (user, _) in &silent {
        let rows: Vec<_> = histories.iter().filter(|row| row[0] == user.to_string()).collect();
        let last = rows.last().unwrap();
        assert_eq!(rows.len(), 2, "{rows:?}");
        assert_eq!(last[3], "expired");
        let at: i64 = last[4].parse().unwrap();
        assert_eq!(at, last_seen[user] + TTL_MS, "user {user}");
        lags.push(last[5].parse::<i64>().unwrap() - at);
    }
    lags.sort_unstable();
    println!("deadline to SQL, ms: median {}, most {}", lags[lags.len() / 2], lags[lags.len() - 1]);
    assert!(lags[lags.len() - 1] <= 1_000, "deadline to SQL: {} ms", lags[lags.len() - 1]);
    let pending = scene.redis.cli(&["XPENDING", "presence:{0}:transitions", "persist"]);
    assert!(pending.starts_with('0'), "{pending}");
    assert_eq!(scene.service.terminate().await, 0);
}
