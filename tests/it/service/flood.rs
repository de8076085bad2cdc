//! A flood of logins, right and wrong, of known and unknown names: heartbeats go on as before, and the memory stays.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use reqwest::Method;
use serde_json::json;
use tokio::task::JoinSet;

use super::{Database, Scene};
use crate::support::http::{Api, PASSWORD, send, try_send};
use crate::support::mint::access_token;

/// Clients that send heartbeats, each so many.
const CLIENTS: i64 = 10;
const BEATS: usize = 150;
/// Connections that log in without a pause.
const FLOOD: usize = 40;

/// What the slowest hundredth of so many heartbeats takes at least.
async fn p99(api: &Api) -> Duration {
    let mut clients = JoinSet::new();
    for user in 1..=CLIENTS {
        let (api, token) = (api.clone(), access_token(user, "phone"));
        clients.spawn(async move {
            let mut pace = tokio::time::interval(Duration::from_millis(20));
            let mut took = Vec::new();
            for _ in 0..BEATS {
                pace.tick().await;
                let began = Instant::now();
                let (status, body, _) = send(api.request(Method::POST, "heartbeat/", Some(&token))).await;
                assert_eq!(status, 200, "{body}");
                took.push(began.elapsed());
            }
            took
        });
    }
    let mut took = clients.join_all().await.concat();
    took.sort_unstable();
    took[took.len() * 99 / 100]
}

/// Linux tells how much; elsewhere nothing is asked.
fn resident_mib(pid: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find(|line| line.starts_with("VmRSS"))?;
    line.split_whitespace().nth(1)?.parse::<u64>().ok().map(|kib| kib / 1024)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_logins_slows_no_heartbeat_down_and_takes_no_memory() {
    let scene = Scene::start(Database::Postgres, CLIENTS, Duration::from_mins(1), &[]).await;
    // The seeded ids came without the sequence.
    scene.sql.run("ALTER TABLE users ALTER COLUMN id RESTART WITH 1000").await;
    scene.api.register("ada").await;
    p99(&scene.api).await;
    let (before, resident) = (p99(&scene.api).await, resident_mib(scene.service.pid()));

    let (over, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let mut flood = JoinSet::new();
    for index in 0..FLOOD {
        // A client of its own is a connection of its own.
        let (api, over, answered) = (Api::new(scene.service.base_url()), over.clone(), answered.clone());
        flood.spawn(async move {
            for round in 0.. {
                if over.load(Ordering::Relaxed) {
                    return;
                }
                let (name, password, expected) = match (index + round) % 3 {
                    0 => ("ada".to_owned(), PASSWORD, 200),
                    1 => ("ada".to_owned(), "wrong password", 401),
                    _ => (format!("nobody{index}-{round}"), PASSWORD, 401),
                };
                let body = json!({"username": name, "password": password});
                if let Ok((status, body, _)) =
                    try_send(api.request(Method::POST, "login/", None).json(&body)).await
                {
                    // Where the queue is full for too long, that is said.
                    assert!(status == expected || status == 429, "{status} {body}");
                    answered.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
    }
    let during = p99(&scene.api).await;
    over.store(true, Ordering::Relaxed);
    flood.join_all().await;
    let after = resident_mib(scene.service.pid());
    println!(
        "heartbeat p99 {before:?} without, {during:?} with a flood of {} logins; resident MiB {resident:?}, then {after:?}",
        answered.load(Ordering::Relaxed)
    );
    assert!(answered.load(Ordering::Relaxed) > FLOOD, "it was no flood");
    assert!(during < Duration::from_millis(500), "{during:?}");
    if let (Some(resident), Some(after)) = (resident, after) {
        assert!(after < resident + 100, "from {resident} to {after} MiB");
    }
}
