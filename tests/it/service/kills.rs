//! Two instances on one Redis and one PostgreSQL, killed again and again under load: nothing lost, nothing doubled.
//!
//! `PRESENCE_TEST_KILLS=1000 cargo nextest run kills` goes on for as long as that takes; `PRESENCE_TEST_SEED` repeats a run's
//! choices (not its timing).

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use reqwest::Method;

use super::{Database, Scene, assert_alternates};
use crate::support::http::{Api, try_send};
use crate::support::mint::{access_token, secret_variable};
use crate::support::poll::eventually;
use crate::support::process::{Presenced, PresencedOptions};

const USERS: i64 = 200;
const TTL: Duration = Duration::from_secs(1);
const TTL_MS: i64 = 1_000;

/// A generator good enough for choices (Steele and Vigna's `SplitMix64`).
struct Dice(AtomicU64);

impl Dice {
    fn roll(&self, sides: u64) -> u64 {
        let mut z = self.0.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % sides
    }
}

/// What one user was told, in ms: heartbeats that were acknowledged, and the spans in which one without an answer may have
/// counted.
#[derive(Default)]
struct Told {
    heartbeats: Vec<i64>,
    unanswered: Vec<(i64, i64)>,
}

impl Told {
    /// Whether a heartbeat without an answer may have counted between these instants.
    fn doubtful(&self, from: i64, to: i64) -> bool {
        self.unanswered.iter().any(|(begin, end)| *begin <= to && *end >= from)
    }
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|value| value.parse().ok()).unwrap_or(default)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kills_of_either_instance_lose_and_double_nothing() {
    let kills = number("PRESENCE_TEST_KILLS", 6);
    let seed = number("PRESENCE_TEST_SEED", u64::from(std::process::id()));
    println!("PRESENCE_TEST_SEED={seed}");
    let dice = Arc::new(Dice(AtomicU64::new(seed)));
    let scene = Scene::start(Database::Postgres, USERS, TTL, &[]).await;
    let options = PresencedOptions {
        database_url: Some(scene.database_url()),
        redis_url: Some(scene.redis.url()),
        ttl: Some(TTL),
        env: vec![secret_variable()],
        ..PresencedOptions::default()
    };
    scene.service.kill9().await;
    let mut first = Presenced::start(options.clone()).await;
    let mut second = Presenced::start(options.clone()).await;
    let api = |service: &Presenced| Arc::new(Api::new(service.base_url()));
    let apis = Arc::new(Mutex::new([api(&first), api(&second)]));

    let told: Arc<Mutex<HashMap<i64, Told>>> = Arc::default();
    let over = Arc::new(AtomicBool::new(false));
    let crowd: Vec<_> = (0..4)
        .map(|share| {
            let (apis, told, over, dice) = (apis.clone(), told.clone(), over.clone(), dice.clone());
            tokio::spawn(async move {
                let tokens: Vec<_> = (1..=USERS)
                    .filter(|user| user % 4 == share)
                    .map(|user| (user, access_token(user, "phone")))
                    .collect();
                // Some 600 requests a second: each user about three, so that silences of a TTL happen all the time.
                let mut pace = tokio::time::interval(Duration::from_millis(6));
                while !over.load(Ordering::Relaxed) {
                    pace.tick().await;
                    let (user, token) = &tokens[usize::try_from(dice.roll(tokens.len() as u64)).unwrap()];
                    let api = apis.lock().unwrap()[usize::try_from(dice.roll(2)).unwrap()].clone();
                    let sent = chrono::Utc::now().timestamp_millis();
                    let answer = try_send(api.request(Method::POST, "heartbeat/", Some(token))).await;
                    let mut told = told.lock().unwrap();
                    let told = told.entry(*user).or_default();
                    match answer {
                        Ok((status, body, _)) if status == 200 => {
                            let at = body["last_seen"].as_str().unwrap();
                            told.heartbeats
                                .push(chrono::DateTime::parse_from_rfc3339(at).unwrap().timestamp_millis());
                        }
                        _ => told.unanswered.push((sent, chrono::Utc::now().timestamp_millis() + 1)),
                    }
                }
            })
        })
        .collect();
    for kill in 0..kills {
        // The time between kills is the subject, not a wait for something.
        let wait = Duration::from_millis(200 + dice.roll(800));
        tokio::time::interval_at(tokio::time::Instant::now() + wait, wait).tick().await;
        let victim = dice.roll(2);
        let service = if victim == 0 { &mut first } else { &mut second };
        service.kill9().await;
        *service = Presenced::start(options.clone()).await;
        apis.lock().unwrap()[usize::try_from(victim).unwrap()] = api(service);
        if kill % 100 == 99 {
            println!("{} kills", kill + 1);
        }
    }
    over.store(true, Ordering::Relaxed);
    for client in crowd {
        client.await.unwrap();
    }
    eventually(Duration::from_secs(10), async || {
        let present = "SELECT count(*)::text FROM users WHERE online_status <> 'offline'";
        let (left, backlog) =
            (scene.sql.number(present).await, scene.redis.cli(&["XLEN", "presence:{0}:transitions"]));
        let live = scene.redis.cli(&["ZCARD", "presence:{0}:live"]);
        if left == 0 && backlog == "0" && live == "0" { Ok(()) } else { Err((left, backlog, live)) }
    })
    .await;

    let histories = scene.histories().await;
    assert_alternates(&histories);
    let (mut exact, mut expiries) = (0, 0);
    for (user, told) in told.lock().unwrap().iter_mut() {
        told.heartbeats.sort_unstable();
        let rows: Vec<_> = histories.iter().filter(|row| row[0] == user.to_string()).collect();
        let expired: Vec<i64> =
            rows.iter().filter(|row| row[3] == "expired").map(|row| row[4].parse().unwrap()).collect();
        assert!(expired.windows(2).all(|pair| pair[0] < pair[1]), "user {user}: {rows:?}");
        expiries += expired.len();
        // Every silence longer than the TTL ended in an expiry, at its instant …
        for (index, beat) in told.heartbeats.iter().enumerate() {
            let next = told.heartbeats.get(index + 1).copied().unwrap_or(beat + TTL_MS * 3);
            // A heartbeat within a few ms of the deadline may have come on either side of it.
            if next - beat > TTL_MS + 5 && !told.doubtful(*beat, beat + TTL_MS) {
                exact += 1;
                assert!(expired.contains(&(beat + TTL_MS)), "user {user}, silent since {beat}: {rows:?}");
            }
        }
        // … and no expiry came from anything else.
        for at in &expired {
            let beat = at - TTL_MS;
            let known = told.heartbeats.binary_search(&beat).is_ok();
            assert!(known || told.doubtful(beat, beat), "user {user}, expired at {at}: {rows:?}");
        }
    }
    println!("{kills} kills, {expiries} expiries, {exact} of them due to the millisecond");
    assert!(exact > 0 && expiries >= exact);
    let names = scene.redis.cli(&["XINFO", "CONSUMERS", "presence:{0}:transitions", "persist"]);
    println!("consumers left behind: {}", names.lines().filter(|line| *line == "name").count());
}
