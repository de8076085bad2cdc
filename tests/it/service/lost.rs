//! Invariant 9: a Redis that comes back empty flaps nobody, and those who do not come back are declared offline in time.

use std::time::Duration;

use super::{Database, Scene, assert_alternates};
use crate::support::mint::access_token;
use crate::support::poll::eventually;
use crate::support::postgres::PrivatePostgres;
use crate::support::redis::RedisServer;

const USERS: i64 = 60;
const TTL: Duration = Duration::from_secs(3);

/// How Redis loses everything.
#[derive(Clone, Copy)]
enum Loss {
    Restart,
    /// Without any connection breaking.
    Flush,
    /// A restart with a copy whose deadlines have all passed.
    OlderCopy,
}

async fn beat(scene: &Scene, users: impl Iterator<Item = i64>) -> usize {
    let mut accepted = 0;
    for user in users {
        accepted += usize::from(scene.api.heartbeat(&access_token(user, "phone")).await.0 == 200);
    }
    accepted
}

async fn lose(database: Database, loss: Loss, someone_stays: bool) {
    let mut scene = Scene::start(database, USERS, TTL, &[]).await;
    assert_eq!(beat(&scene, 1..=USERS).await, 60);
    eventually(Duration::from_secs(5), async || {
        let query = "SELECT CAST(count(*) AS text) FROM users WHERE online_status = 'online'";
        let online = scene.sql.number(query).await;
        if online == USERS { Ok(()) } else { Err(online) }
    })
    .await;
    if matches!(loss, Loss::OlderCopy) {
        assert_eq!(scene.redis.cli(&["SAVE"]), "OK");
    }
    // Past the first TTL, when the reconciler looks for its own sake: from here on the loss itself must be noticed.
    let settled = tokio::time::Instant::now() + TTL + Duration::from_secs(1);
    while tokio::time::Instant::now() < settled {
        assert_eq!(beat(&scene, 1..=USERS).await, 60);
    }
    match loss {
        Loss::Restart => scene.redis.restart_empty().await,
        Loss::Flush => drop(scene.redis.cli(&["FLUSHALL"])),
        Loss::OlderCopy => scene.redis.restart().await,
    }
    let lost_at = chrono::Utc::now().timestamp_millis();
    // Even ones go on as if nothing had happened; odd ones have gone with the old Redis.
    let stay = || (1..=USERS).filter(move |user| someone_stays && user % 2 == 0);
    let declared = eventually(Duration::from_secs(12), async || {
        beat(&scene, stay()).await;
        let expired = "SELECT CAST(count(*) AS text) FROM presence_transitions WHERE reason = 'expired'";
        let gone = scene.sql.number(expired).await;
        let missing = if someone_stays { USERS / 2 } else { USERS };
        if gone >= missing { Ok(chrono::Utc::now().timestamp_millis()) } else { Err(gone) }
    })
    .await;
    let ttl_ms = i64::try_from(TTL.as_millis()).unwrap();
    assert!(declared >= lost_at + ttl_ms - 100, "nobody is missed before a TTL: {} ms", declared - lost_at);
    let histories = scene.histories().await;
    assert_alternates(&histories);
    for user in 1..=USERS {
        let rows: Vec<_> = histories.iter().filter(|row| row[0] == user.to_string()).collect();
        if someone_stays && user % 2 == 0 {
            assert_eq!(rows.len(), 1, "user {user} was flapped: {rows:?}");
        } else {
            assert_eq!(rows.len(), 2, "{rows:?}");
            let at: i64 = rows[1][4].parse().unwrap();
            assert!(at <= lost_at + ttl_ms, "dated no later than a TTL after the last sign: {rows:?}");
            assert!(at >= rows[0][4].parse().unwrap(), "{rows:?}");
        }
    }
}

#[tokio::test]
async fn a_redis_that_comes_back_empty_flaps_nobody_on_postgres() {
    lose(Database::Postgres, Loss::Restart, true).await;
}

#[tokio::test]
async fn a_redis_that_comes_back_empty_flaps_nobody_on_sqlite() {
    lose(Database::Sqlite, Loss::Restart, true).await;
}

#[tokio::test]
async fn a_redis_that_forgets_without_a_word_flaps_nobody() {
    lose(Database::Sqlite, Loss::Flush, true).await;
}

#[tokio::test]
async fn a_redis_that_forgets_everyone_is_noticed_though_nobody_speaks() {
    // On PostgreSQL nothing else looks: no change of an account wakes anyone.
    lose(Database::Postgres, Loss::Flush, false).await;
}

#[tokio::test]
async fn a_redis_that_comes_back_with_an_older_copy_flaps_nobody() {
    lose(Database::Postgres, Loss::OlderCopy, true).await;
}

#[tokio::test]
async fn an_older_copy_is_known_for_one_by_an_instance_that_was_not_there() {
    let mut scene = Scene::start(Database::Postgres, USERS, TTL, &[]).await;
    assert_eq!(beat(&scene, 1..=1).await, 1);
    assert_eq!(scene.redis.cli(&["SAVE"]), "OK");
    assert_eq!(beat(&scene, 2..=USERS).await, 59);
    eventually(Duration::from_secs(5), async || {
        let query = "SELECT CAST(count(*) AS text) FROM users WHERE online_status = 'online'";
        let online = scene.sql.number(query).await;
        if online == USERS { Ok(()) } else { Err(online) }
    })
    .await;
    // The machine went down with all that was on it, and came back.
    scene.service.kill9().await;
    scene.redis.restart().await;
    let service = scene.start_another(TTL).await;
    eventually(Duration::from_secs(5), async || {
        let log = service.stderr();
        if log.contains("Redis has lost data") { Ok(()) } else { Err(log) }
    })
    .await;
    assert!(scene.redis.cli(&["PTTL", "presence:{0}:hold"]).parse::<i64>().unwrap() > 0);
}

// Found by the fault harness, seed 1084.
#[tokio::test]
async fn who_left_after_the_copy_and_stays_by_a_heartbeat_is_online_in_sql_too() {
    let mut scene = Scene::start(Database::Postgres, 3, Duration::from_mins(1), &[]).await;
    let (admin, phone) = (access_token(1, ""), access_token(2, "phone"));
    assert_eq!(scene.api.heartbeat(&phone).await.0, 200);
    let mirror = async |scene: &Scene, wanted: &str| {
        eventually(Duration::from_secs(5), async || {
            let rows = scene.sql.rows("SELECT online_status FROM users WHERE id = 2").await;
            if rows[0][0] == wanted { Ok(()) } else { Err(rows) }
        })
        .await;
    };
    mirror(&scene, "online").await;
    assert_eq!(scene.redis.cli(&["SAVE"]), "OK");
    let path = "admin/users/2/set-online-status/";
    let offline = serde_json::json!({"status": "offline"});
    assert_eq!(scene.api.post(path, Some(&admin), &offline).await.0, 200);
    mirror(&scene, "offline").await;
    scene.redis.restart().await;
    // In the copy the user is online, so that nothing about this heartbeat is news to Redis.
    eventually(Duration::from_secs(5), async || match scene.api.heartbeat(&phone).await {
        (status, ..) if status == 200 => Ok(()),
        other => Err(other),
    })
    .await;
    mirror(&scene, "online").await;
    assert_alternates(&scene.histories().await);
}

// Found by the fault harness, seed 50015.
#[tokio::test]
async fn who_logged_out_in_the_last_moment_does_not_come_back_by_a_restart_that_forgot_it() {
    let mut scene = Scene::start(Database::Postgres, 2, Duration::from_secs(1), &[]).await;
    scene
        .sql
        .run("INSERT INTO login_sessions (sid, user_id, created_at, last_used_at) VALUES ('phone', 2, now(), now())")
        .await;
    let phone = access_token(2, "phone");
    for _ in 0..3 {
        assert_eq!(scene.api.heartbeat(&phone).await.0, 200);
        assert_eq!(scene.redis.cli(&["SAVE"]), "OK");
        let (status, ..) = scene.api.delete("me/sessions/phone/", Some(&phone)).await;
        assert_eq!(status, 204);
        scene.redis.kill().await;
        // The key that came with the copy has expired: the heartbeat would make the user newly present.
        let gone = tokio::time::Instant::now() + Duration::from_millis(1_100);
        tokio::time::sleep_until(gone).await;
        scene.redis.restart().await;
        eventually(Duration::from_secs(5), async || match scene.api.heartbeat(&phone).await {
            (status, ..) if status == 401 => Ok(()),
            (status, ..) if status == 503 => Err(status),
            (status, ..) => panic!("answered {status}"),
        })
        .await;
        scene.sql.run("UPDATE login_sessions SET ended_at = NULL").await;
        scene.redis.cli(&["ZREM", "presence:{0}:ended", "2:phone"]);
    }
}

// Found by the fault harness, seed 60053.
#[tokio::test]
async fn a_restarted_redis_that_kept_its_data_does_not_wait_for_a_hung_database() {
    let postgres = PrivatePostgres::start().await;
    let database = postgres.database().await;
    let redis = RedisServer::start(&["--appendonly", "yes", "--appendfsync", "always"]).await;
    let mut scene = Scene::start_at(redis, database.url.clone(), 40, TTL, &[]).await;
    // Every write of this Redis waits for the disk, which may be busy with another test's: then it is not there at once.
    eventually(Duration::from_secs(10), async || match beat(&scene, 1..=20).await {
        20 => Ok(()),
        accepted => Err(accepted),
    })
    .await;
    postgres.pause();
    scene.redis.restart().await;
    // Newcomers, many at once, who all find a fence of another life.
    eventually(Duration::from_secs(2), async || {
        let beats = (21..=40).map(|user| {
            let api = scene.api.clone();
            async move { api.heartbeat(&access_token(user, "phone")).await.0 == 200 }
        });
        let accepted =
            futures_util::future::join_all(beats).await.into_iter().filter(|accepted| *accepted).count();
        if accepted == 20 { Ok(()) } else { Err(accepted) }
    })
    .await;
    postgres.resume();
}

#[tokio::test]
async fn whom_a_lost_redis_served_until_the_end_is_offline_no_earlier_than_that() {
    // SQL's last_seen is written behind a minute late: it alone would date the missing before their last heartbeats.
    let scene = Scene::start(Database::Postgres, 20, TTL, &[]).await;
    assert_eq!(beat(&scene, 1..=20).await, 20);
    let until = tokio::time::Instant::now() + TTL + Duration::from_secs(2);
    while tokio::time::Instant::now() < until {
        assert_eq!(beat(&scene, 1..=20).await, 20);
    }
    let served = chrono::Utc::now().timestamp_millis();
    scene.redis.cli(&["FLUSHALL"]);
    eventually(Duration::from_secs(12), async || {
        let expired = "SELECT CAST(count(*) AS text) FROM presence_transitions WHERE reason = 'expired'";
        let gone = scene.sql.number(expired).await;
        if gone == 20 { Ok(()) } else { Err(gone) }
    })
    .await;
    let ttl_ms = i64::try_from(TTL.as_millis()).unwrap();
    for row in scene.histories().await.iter().filter(|row| row[3] == "expired") {
        let at: i64 = row[4].parse().unwrap();
        assert!(
            at >= served - 100,
            "dated {} ms before a heartbeat that was acknowledged: {row:?}",
            served - at
        );
        assert!(at <= served + 2 * ttl_ms, "{row:?}");
    }
}

#[tokio::test]
async fn until_everybody_had_time_to_be_heard_reads_take_sqls_word_and_say_so() {
    let ttl = Duration::from_secs(20);
    let env = [("PRESENCE_LAST_SEEN_FLUSH", "1s")];
    let scene = Scene::start(Database::Postgres, 10, ttl, &env).await;
    assert_eq!(beat(&scene, 1..=10).await, 10);
    eventually(Duration::from_secs(8), async || {
        let written = "SELECT CAST(count(*) AS text) FROM users WHERE online_status = 'online' AND last_seen IS NOT NULL";
        let written = scene.sql.number(written).await;
        if written == 10 { Ok(()) } else { Err(written) }
    })
    .await;
    scene.redis.cli(&["FLUSHALL"]);
    let admin = access_token(1, "phone");
    let (_, one, _) = eventually(Duration::from_secs(5), async || {
        match scene.api.get("admin/users/5/online-status/", Some(&admin)).await {
            found @ (status, ..) if status == 200 => Ok(found),
            other => Err(other),
        }
    })
    .await;
    assert_eq!((&one["online_status"], &one["degraded"]), (&"online".into(), &true.into()), "{one}");
    for path in ["admin/users/online/", "all-users/", "all-users/?online_status=online"] {
        let (_, list, _) = scene.api.get(path, Some(&admin)).await;
        assert_eq!((&list["online_count"], &list["degraded"]), (&10.into(), &true.into()), "{path}: {list}");
        let users = list["online_users"].as_array().or(list["results"].as_array()).unwrap();
        assert!(users.len() == 10 && users.iter().all(|user| user["is_online"] == true), "{path}: {list}");
    }
    // Offline where SQL has heard nothing within a TTL, even so.
    scene.sql.run("UPDATE users SET last_seen = last_seen - interval '1 hour', presence_writes = presence_writes + 1 WHERE id = 6").await;
    let (_, six, _) = scene.api.get("admin/users/6/online-status/", Some(&admin)).await;
    assert_eq!(six["online_status"], "offline", "{six}");
}
