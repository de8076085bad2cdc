//! Redis dead or hung while 64 clients go on: each is told within the bound, and nothing is doubled afterwards.

use std::time::Duration;

use tokio::time::Instant;

use super::crowd::Crowd;
use super::{Database, SOON, Scene, assert_alternates};
use crate::support::poll::eventually;

const CLIENTS: i64 = 64;
const USERS: i64 = 128;
const PACE: Duration = Duration::from_millis(60);

#[derive(Clone, Copy, PartialEq, Eq)]
enum Outage {
    Dead,
    Hung,
}

/// Takes Redis away from a crowd and gives it back once each client was refused several times; then the crowd goes
/// silent and everyone expires.
async fn goes_away(outage: Outage, ttl: Duration, bound: Duration) -> Scene {
    // What a kill must not lose is on its disk.
    let redis =
        crate::support::redis::RedisServer::start(&["--appendonly", "yes", "--appendfsync", "always"]).await;
    let mut scene = Scene::start_on(redis, Database::Sqlite, USERS, ttl, &[]).await;
    let crowd = Crowd::start(&scene.api, USERS, CLIENTS, PACE);
    eventually(SOON, async || {
        let live = scene.redis.cli(&["ZCOUNT", "presence:{0}:live", "(0", "+inf"]);
        if live == USERS.to_string() { Ok(()) } else { Err(live) }
    })
    .await;
    let begun = Instant::now();
    match outage {
        Outage::Dead => scene.redis.kill().await,
        Outage::Hung => scene.redis.pause(),
    }
    let gone = Instant::now();
    let enough = usize::try_from(CLIENTS).unwrap() * 10;
    eventually(Duration::from_secs(30), async || {
        let refused = crowd.refused();
        if refused >= enough && gone.elapsed() > ttl.min(Duration::from_secs(3)) {
            Ok(())
        } else {
            Err(refused)
        }
    })
    .await;
    let (status, body, _) = scene.api.get("/readyz", None).await;
    assert_eq!((status.as_u16(), body["checks"]["database"].as_str()), (503, Some("ok")), "{body}");
    assert_ne!(body["checks"]["redis"], "ok");
    let back = Instant::now();
    match outage {
        Outage::Dead => scene.redis.restart().await,
        Outage::Hung => scene.redis.resume(),
    }
    let refused = crowd.refused();
    eventually(SOON, async || {
        let (status, body, _) = scene.api.get("/readyz", None).await;
        if status == 200 { Ok(()) } else { Err(body) }
    })
    .await;
    let mut settled = crowd.refused();
    // Until a whole second goes by without a refusal.
    let mut since = Instant::now();
    eventually(SOON, async || {
        if crowd.refused() != settled {
            (settled, since) = (crowd.refused(), Instant::now());
        }
        if since.elapsed() > Duration::from_secs(1) { Ok(()) } else { Err((refused, settled)) }
    })
    .await;
    let beats = crowd.end().await;
    let mut slowest = Duration::ZERO;
    for beat in &beats {
        assert!(matches!(beat.status, 200 | 503), "{beat:?}");
        if beat.sent > gone && beat.sent + beat.took < back {
            assert_eq!(beat.status, 503, "{beat:?}");
        }
        if beat.status == 503 {
            assert!(beat.retry_after && beat.sent + beat.took > begun, "{beat:?}");
        }
        slowest = slowest.max(beat.took);
    }
    let refused = beats.iter().filter(|beat| beat.status == 503).count();
    println!("{} heartbeats, {refused} refused, the slowest answer after {slowest:?}", beats.len());
    assert!(slowest < bound, "{slowest:?}");
    scene
}

/// A crowd that comes, misses a Redis, comes again and goes: alternating histories that end offline.
async fn ends_right(scene: &Scene) -> Vec<Vec<String>> {
    eventually(Duration::from_secs(20), async || {
        let online = "SELECT CAST(count(*) AS text) FROM users WHERE online_status <> 'offline'";
        let waiting = scene.redis.cli(&["XLEN", "presence:{0}:transitions"]);
        let left = scene.sql.number(online).await;
        if left == 0 && waiting == "0" { Ok(()) } else { Err((left, waiting)) }
    })
    .await;
    let histories = scene.histories().await;
    assert_alternates(&histories);
    histories
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_redis_is_said_to_64_clients_within_half_a_second_each() {
    let scene = goes_away(Outage::Dead, Duration::from_secs(5), Duration::from_millis(500)).await;
    ends_right(&scene).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hung_redis_is_said_to_64_clients_within_two_seconds_each_and_doubles_nothing() {
    let scene = goes_away(Outage::Hung, Duration::from_secs(30), Duration::from_secs(2)).await;
    // Heartbeats that were given up may have counted when Redis went on; nobody became present twice by them.
    let histories = scene.histories().await;
    assert_alternates(&histories);
    assert_eq!(i64::try_from(histories.len()), Ok(USERS), "{histories:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn those_whose_time_passed_while_redis_hung_are_told_once_that_it_did() {
    let scene = goes_away(Outage::Hung, Duration::from_secs(2), Duration::from_secs(2)).await;
    let histories = ends_right(&scene).await;
    for user in 1..=USERS {
        let rows: Vec<_> = histories.iter().filter(|row| row[0] == user.to_string()).collect();
        let mut expired: Vec<_> = rows.iter().filter(|row| row[3] == "expired").map(|row| &row[4]).collect();
        assert!(expired.len() >= 2, "{rows:?}");
        expired.dedup();
        assert_eq!(expired.len() * 2, rows.len(), "each expiry once: {rows:?}");
    }
}
