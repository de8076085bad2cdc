//! A Redis that answers but takes no writes: heartbeats are refused with a reason, reads go on, and nothing needs a restart.

use std::time::Duration;

use serde_json::json;

use super::{Database, SOON, Scene, assert_alternates};
use crate::support::http::Answer;
use crate::support::mint::access_token;
use crate::support::poll::eventually;
use crate::support::redis::RedisServer;

const USERS: i64 = 20;
const TTL: Duration = Duration::from_secs(3);
const TTL_MS: i64 = 3_000;

/// Why it takes no writes, by the word that its errors begin with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Refusal {
    ReadOnly,
    OutOfMemory,
}

impl Refusal {
    fn begin(self, redis: &RedisServer) {
        let said = match self {
            // A replica of a primary that is nowhere keeps its data, and takes no writes.
            Self::ReadOnly => redis.cli(&["REPLICAOF", "127.0.0.1", "1"]),
            // By default nothing is evicted.
            Self::OutOfMemory => redis.cli(&["CONFIG", "SET", "maxmemory", "1"]),
        };
        assert_eq!(said, "OK");
    }

    fn end(self, redis: &RedisServer) {
        let said = match self {
            Self::ReadOnly => redis.cli(&["REPLICAOF", "NO", "ONE"]),
            Self::OutOfMemory => redis.cli(&["CONFIG", "SET", "maxmemory", "0"]),
        };
        assert_eq!(said, "OK");
    }

    fn word(self) -> &'static str {
        match self {
            Self::ReadOnly => "READONLY",
            Self::OutOfMemory => "OOM",
        }
    }
}

async fn beat(scene: &Scene, user: i64) -> Answer {
    scene.api.heartbeat(&access_token(user, "phone")).await
}

/// Beats for everyone; each one's instant, ms.
async fn all_beat(scene: &Scene) -> Vec<i64> {
    let mut seen = Vec::new();
    for user in 1..=USERS {
        let (status, body, _) = beat(scene, user).await;
        assert_eq!(status, 200, "{body}");
        let at = chrono::DateTime::parse_from_rfc3339(body["last_seen"].as_str().unwrap()).unwrap();
        seen.push(at.timestamp_millis());
    }
    seen
}

async fn takes_no_writes(refusal: Refusal, shards: &str) {
    let scene = Scene::start(Database::Sqlite, USERS, TTL, &[("PRESENCE_SHARDS", shards)]).await;
    let seen = all_beat(&scene).await;
    let log_before = scene.service.stderr().lines().count();
    refusal.begin(&scene.redis);

    let (mut count, mut degraded) = (0, 0);
    let begun = std::time::Instant::now();
    while begun.elapsed() < TTL + Duration::from_secs(2) {
        let (status, body, headers) = beat(&scene, count % USERS + 1).await;
        assert_eq!(status, 503, "{body}");
        assert!(headers.contains_key("retry-after"));
        assert!(body["detail"].as_str().unwrap().contains("takes no changes"), "{body}");
        count += 1;
        let path = "all-users/?online_status=online";
        let (status, body, _) = scene.api.get(path, Some(&access_token(1, "phone"))).await;
        assert_eq!(status, 200, "{body}");
        let by_redis = body.get("degraded").is_none();
        degraded += i64::from(!by_redis);
        if by_redis && begun.elapsed() < TTL / 2 {
            assert_eq!(body["online_count"], json!(USERS), "{body}");
        }
    }
    // Redis still knows who is there. (Now and then a look for another primary cuts it off for a moment.)
    assert!(count > 100 && degraded < count / 5, "{degraded} of {count} reads came from SQL alone");
    let (status, body, _) = scene.api.get("/readyz", None).await;
    assert_eq!((status.as_u16(), &body["checks"]["database"]), (503, &json!("ok")), "{body}");
    assert!(body["checks"]["redis"].as_str().unwrap().contains(refusal.word()), "{body}");
    let log = scene.service.stderr();
    let new: Vec<_> = log.lines().skip(log_before).collect();
    let heartbeats = new.iter().filter(|line| line.contains("heartbeats get 503")).count();
    assert_eq!(heartbeats, 1, "{new:#?}");
    assert!(new.len() < 10, "{count} heartbeats, and this many lines: {new:#?}");

    refusal.end(&scene.redis);
    eventually(SOON, async || {
        let (status, body, _) = scene.api.get("/readyz", None).await;
        if status == 200 { Ok(()) } else { Err(body) }
    })
    .await;
    eventually(SOON, async || match beat(&scene, 1).await {
        (status, ..) if status == 200 => Ok(()),
        other => Err(other),
    })
    .await;
    all_beat(&scene).await;
    // Everybody's time passed meanwhile: that is in the history, at the deadline, whenever it could be written.
    let histories = eventually(SOON, async || {
        let histories = scene.histories().await;
        if i64::try_from(histories.len()).unwrap() >= 3 * USERS {
            Ok(histories)
        } else {
            Err(histories.len())
        }
    })
    .await;
    assert_alternates(&histories);
    for (user, seen) in (1..=USERS).zip(seen) {
        let rows: Vec<_> = histories.iter().filter(|row| row[0] == user.to_string()).collect();
        assert_eq!(rows.len(), 3, "{rows:?}");
        assert_eq!((rows[1][3].as_str(), rows[1][4].clone()), ("expired", (seen + TTL_MS).to_string()));
    }
}

#[tokio::test]
async fn a_read_only_redis_refuses_heartbeats_answers_reads_and_needs_no_restart() {
    // Most shards have nobody in them: that nothing fails there does not mean that it is over.
    takes_no_writes(Refusal::ReadOnly, "64").await;
}

#[tokio::test]
async fn a_redis_out_of_memory_refuses_heartbeats_answers_reads_and_needs_no_restart() {
    takes_no_writes(Refusal::OutOfMemory, "1").await;
}
