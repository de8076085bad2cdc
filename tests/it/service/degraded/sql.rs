//! SQL dead or hung while a crowd goes on: no heartbeat fails, the transitions wait in Redis, and afterwards the history is
//! what it would have been.
//!
//! `PRESENCE_TEST_OUTAGE=60s cargo nextest run sql_is` makes the outage a minute.

use std::collections::HashMap;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::Instant;

use super::crowd::{Beat, Crowd};
use super::{SOON, Scene, assert_alternates};
use crate::support::http::{Api, PASSWORD};
use crate::support::metrics::Scrape;
use crate::support::poll::eventually;
use crate::support::postgres::PrivatePostgres;
use crate::support::redis::RedisServer;

const USERS: i64 = 600;
const CLIENTS: i64 = 24;
/// With this pace each user speaks every 1.5 s on average, so that silences of a TTL happen all the time.
const PACE: Duration = Duration::from_millis(60);
const TTL: Duration = Duration::from_secs(2);
const TTL_MS: i64 = 2_000;
/// What the process may grow by while everything waits, KiB: far above the noise, far below a queue of what waits.
const GROWTH_KIB: u64 = 24 * 1024;

/// Resident memory of a process, KiB.
fn resident_kib(pid: u32) -> u64 {
    let number = |text: &str| text.split_whitespace().find_map(|word| word.parse().ok()).expect("a number");
    if let Ok(status) = std::fs::read_to_string(format!("/proc/{pid}/status")) {
        return number(status.lines().find(|line| line.starts_with("VmRSS")).expect("a size"));
    }
    let ps = std::process::Command::new("ps").args(["-o", "rss=", "-p", &pid.to_string()]).output().unwrap();
    number(&String::from_utf8_lossy(&ps.stdout))
}

/// Logs everyone in at once; the names of those who were let in.
async fn log_in(api: &Api, names: &[String]) -> Vec<String> {
    let mut logins = JoinSet::new();
    for name in names {
        let (api, name) = (api.clone(), name.clone());
        logins.spawn(async move {
            let body = serde_json::json!({"username": name, "password": PASSWORD});
            let (status, ..) = api.post("login/", None, &body).await;
            (name, status.as_u16())
        });
    }
    let let_in = logins.join_all().await.into_iter().filter(|(_, status)| *status == 200);
    let_in.map(|(name, _)| name).collect()
}

async fn sql_is_away(hung: bool, default: Duration) {
    let outage = std::env::var("PRESENCE_TEST_OUTAGE")
        .ok()
        .map_or(default, |text| humantime::parse_duration(&text).expect("a time such as 60s"));
    let mut postgres = PrivatePostgres::start().await;
    let database = postgres.database().await;
    let redis = RedisServer::start(&[]).await;
    let scene = Scene::start_at(redis, database.url.clone(), USERS, TTL, &[]).await;
    let names: Vec<String> = (0..12).map(|number| format!("late{number}")).collect();
    scene.sql.run(&format!("SELECT setval('users_id_seq', {})", USERS + 100)).await;
    for name in &names {
        scene.api.register(name).await;
    }
    let crowd = Crowd::start(&scene.api, USERS, CLIENTS, PACE);
    eventually(SOON, async || {
        let scrape = Scrape::of(&scene.api).await;
        let persisted = scrape.value("presence_transitions_persisted_total");
        if persisted >= 600.0 { Ok(()) } else { Err(persisted) }
    })
    .await;
    // The last ones to sign in before SQL goes.
    let let_in = log_in(&scene.api, &names).await;
    let before = resident_kib(scene.service.pid());
    if hung {
        postgres.pause();
    } else {
        postgres.kill().await;
    }

    let begun = Instant::now();
    let (mut most_kib, mut waiting, mut looks) = (before, 0.0, 0);
    let mut pace = tokio::time::interval(Duration::from_millis(500));
    while begun.elapsed() < outage {
        pace.tick().await;
        let scrape = Scrape::of(&scene.api).await;
        let waiting_now = scrape.value("presence_transitions_waiting");
        assert!(waiting_now >= waiting, "{waiting_now} after {waiting}");
        (waiting, looks) = (waiting_now, looks + 1);
        most_kib = most_kib.max(resident_kib(scene.service.pid()));
        if looks > 4 {
            assert!(scrape.value("presence_database_up") < 0.5);
            let oldest = scrape.value("presence_transitions_oldest_waiting_seconds");
            let away = begun.elapsed().as_secs_f64();
            assert!(oldest > away - 2.0 && oldest < away + 2.0, "{oldest} s after {away} s");
        }
    }
    assert!(waiting >= 600.0, "the stream grew to {waiting} only");
    if hung {
        postgres.resume();
    } else {
        postgres.restart().await;
    }
    let back = Instant::now();
    eventually(Duration::from_mins(1), async || {
        let scrape = Scrape::of(&scene.api).await;
        let oldest = scrape.value("presence_transitions_oldest_waiting_seconds");
        if oldest < 1.0 { Ok(()) } else { Err(oldest) }
    })
    .await;
    let caught_up = back.elapsed();
    let beats = crowd.end().await;
    eventually(SOON, async || {
        // In this order: a deadline that is claimed in between is a transition by the second look.
        let live = scene.redis.cli(&["ZCOUNT", "presence:{0}:live", "(0", "+inf"]);
        let waiting = Scrape::of(&scene.api).await.value("presence_transitions_waiting");
        if live == "0" && waiting < 0.5 { Ok(()) } else { Err((live, waiting)) }
    })
    .await;
    let mut times: Vec<_> = beats.iter().map(|beat| beat.took).collect();
    times.sort_unstable();
    println!(
        "{outage:?}: {} heartbeats, p99 {:?}, slowest {:?}; {waiting} transitions waited and were caught up with in \
         {caught_up:?}; resident memory {before} KiB before, {most_kib} KiB at most",
        beats.len(),
        times[times.len() * 99 / 100],
        times[times.len() - 1]
    );
    assert!(most_kib < before + GROWTH_KIB, "resident memory grew from {before} to {most_kib} KiB");
    assert!(times[times.len() * 99 / 100] < Duration::from_millis(500));
    is_what_it_would_have_been(&scene, beats).await;
    for name in let_in {
        let query = format!(
            "SELECT to_status, reason FROM presence_transitions JOIN users ON users.id = user_id WHERE username = '{name}' \
             ORDER BY presence_transitions.id"
        );
        assert_eq!(scene.sql.rows(&query).await, [["online", "login"], ["offline", "expired"]], "{name}");
    }
}

/// No heartbeat failed, so the acknowledged ones alone say what each history must be, to the millisecond.
async fn is_what_it_would_have_been(scene: &Scene, beats: Vec<Beat>) {
    let mut seen: HashMap<i64, Vec<i64>> = HashMap::new();
    for beat in beats {
        assert_eq!(beat.status, 200, "{beat:?}");
        seen.entry(beat.user).or_default().extend(beat.seen_ms);
    }
    let histories = scene.histories().await;
    assert_alternates(&histories);
    let mut expiries = 0;
    for (user, mut seen) in seen {
        seen.sort_unstable();
        let mut expected = vec![("heartbeat", seen[0])];
        for pair in seen.windows(2).filter(|pair| pair[1] - pair[0] > TTL_MS) {
            expected.extend([("expired", pair[0] + TTL_MS), ("heartbeat", pair[1])]);
        }
        expected.push(("expired", seen[seen.len() - 1] + TTL_MS));
        expiries += expected.len() / 2;
        let rows: Vec<_> = histories.iter().filter(|row| row[0] == user.to_string()).collect();
        let found: Vec<(&str, i64)> =
            rows.iter().map(|row| (row[3].as_str(), row[4].parse().unwrap())).collect();
        assert_eq!(found, expected, "user {user}");
    }
    println!("{expiries} expiries, each once and to the millisecond");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_sql_is_dead_no_heartbeat_fails_and_the_history_waits_in_redis() {
    sql_is_away(false, Duration::from_secs(10)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_sql_is_hung_no_heartbeat_fails_and_the_history_waits_in_redis() {
    sql_is_away(true, Duration::from_secs(13)).await;
}
