//! `GET /metrics`: numbers that follow what happens, in a text that Prometheus takes, whatever is away.

use std::time::{Duration, Instant};

use reqwest::Method;
use reqwest::header::ACCEPT;
use tokio::io::AsyncReadExt;

use super::{Database, Scene};
use crate::support::http::{Api, send};
use crate::support::metrics::Scrape;
use crate::support::mint::access_token;
use crate::support::poll::eventually;

const SOON: Duration = Duration::from_secs(10);

fn heartbeats(scrape: &Scrape, outcome: &str) -> f64 {
    scrape.value(&format!("presence_heartbeats_total{{outcome=\"{outcome}\"}}"))
}

/// Counts are whole numbers, and compared as such.
#[allow(clippy::cast_possible_truncation)]
fn whole(value: f64) -> i64 {
    value as i64
}

#[tokio::test]
async fn the_numbers_follow_what_happens() {
    let scene = Scene::start(Database::Sqlite, 30, Duration::from_secs(2), &[]).await;
    let fresh = Scrape::of(&scene.api).await;
    for series in [
        "presence_heartbeats_total{outcome=\"recorded\"}",
        "presence_heartbeats_total{outcome=\"redis_unavailable\"}",
        "presence_heartbeat_batch_size_count",
        "presence_heartbeats_waiting",
        "presence_users_present",
        "presence_transitions_waiting",
        "presence_transitions_oldest_waiting_seconds",
        "presence_transitions_persisted_total",
        "presence_claims_total{by=\"listener\"}",
        "presence_claims_total{by=\"sweeper\"}",
        "presence_expiry_lag_seconds_count",
    ] {
        assert_eq!(whole(fresh.value(series)), 0, "{series}");
    }
    assert_eq!(whole(fresh.value("presence_redis_up")), 1);
    assert_eq!(whole(fresh.value("presence_database_up")), 1);

    scene.sql.run("UPDATE users SET status = 'banned' WHERE id = 30").await;
    eventually(SOON, async || match scene.api.heartbeat(&access_token(30, "phone")).await.0.as_u16() {
        403 => Ok(()),
        other => Err(other),
    })
    .await;
    let before = Scrape::of(&scene.api).await;
    for user in 1..=20 {
        assert_eq!(scene.api.heartbeat(&access_token(user, "phone")).await.0, 200);
    }
    // What is measured is kept for a second; what is counted is not.
    let after = eventually(SOON, async || {
        let scrape = Scrape::of(&scene.api).await;
        let present = whole(scrape.value("presence_users_present"));
        if present >= 20 { Ok(scrape) } else { Err(present) }
    })
    .await;
    let more = |series: &str| whole(after.value(series) - before.value(series));
    assert_eq!(more("presence_heartbeats_total{outcome=\"recorded\"}"), 20);
    assert_eq!(more("presence_heartbeat_batch_size_sum"), 20);
    assert!(whole(heartbeats(&after, "blocked")) >= 1);

    // They go silent: each is claimed once, punctually, and all of it reaches SQL.
    let gone = eventually(SOON, async || {
        let scrape = Scrape::of(&scene.api).await;
        let numbers = [
            scrape.value("presence_expiry_lag_seconds_count"),
            scrape.value("presence_users_present"),
            scrape.value("presence_transitions_waiting"),
        ];
        if whole(numbers[0]) >= 20 && whole(numbers[1] + numbers[2]) == 0 { Ok(scrape) } else { Err(numbers) }
    })
    .await;
    let claims =
        ["listener", "sweeper"].map(|by| whole(gone.value(&format!("presence_claims_total{{by=\"{by}\"}}"))));
    let expired = "SELECT CAST(count(*) AS text) FROM presence_transitions WHERE reason = 'expired'";
    assert_eq!(claims.iter().sum::<i64>(), scene.sql.number(expired).await, "{claims:?}");
    let all = "SELECT CAST(count(*) AS text) FROM presence_transitions";
    assert_eq!(whole(gone.value("presence_transitions_persisted_total")), scene.sql.number(all).await);
    let late = whole(
        gone.value("presence_expiry_lag_seconds_count")
            - gone.value("presence_expiry_lag_seconds_bucket{le=\"1.0\"}"),
    );
    assert_eq!(late, 0, "deadline to claim");
}

/// How many commands Redis has been sent, and how many statements SQLite: the service's own loops send some as well.
#[tokio::test]
async fn strangers_who_poll_readiness_and_metrics_cost_one_look_a_second() {
    const POLLS: usize = 300;
    let scene = Scene::start(Database::Sqlite, 1, Duration::from_mins(1), &[]).await;
    let commands = || -> i64 {
        let stats = scene.redis.cli(&["INFO", "commandstats"]);
        let calls = stats.lines().filter(|line| !line.starts_with("cmdstat_info"));
        calls.filter_map(|line| line.split("calls=").nth(1)?.split(',').next()?.parse::<i64>().ok()).sum()
    };
    let poll = async |path: &'static str| {
        let (before, begun) = (commands(), Instant::now());
        for _ in 0..POLLS / 20 {
            let polls = (0..20).map(|_| scene.api.get(path, None));
            for (status, body, _) in futures_util::future::join_all(polls).await {
                assert_eq!(status, 200, "{body}");
            }
        }
        (commands() - before, begun.elapsed().as_secs_f64())
    };
    let (idle, seconds) = poll("/healthz").await;
    println!("{idle} commands in {seconds:.1} s without");
    for path in ["/readyz", "/metrics"] {
        let (sent, seconds) = poll(path).await;
        println!("{path}: {sent} commands in {seconds:.1} s");
        // Some for each look, and those of the loops.
        let looks = whole(seconds.ceil()) + 1;
        assert!(sent < 40 * looks, "{sent} commands for {POLLS} polls of {path} in {seconds:.1} s");
        assert!(
            sent < i64::try_from(POLLS).unwrap() || looks > 6,
            "{sent} commands for {POLLS} polls of {path}"
        );
    }
}

#[tokio::test]
async fn metrics_with_an_address_of_their_own_are_served_nowhere_else() {
    let scene = Scene::start(
        Database::Sqlite,
        1,
        Duration::from_mins(1),
        &[("PRESENCE_METRICS_LISTEN", "127.0.0.1:0")],
    )
    .await;
    let printed = scene.service.printed("metrics: ").expect("the address is printed");
    let metrics = Api::new(printed.strip_suffix("/metrics").expect("the whole address"));
    assert_eq!(whole(Scrape::of(&metrics).await.value("presence_redis_up")), 1);
    for path in ["/metrics", "/metrics/"] {
        assert_eq!(metrics.get(path, None).await.0, 200, "{path}");
        assert_eq!(scene.api.get(path, None).await.0, 404, "{path} of the main address");
    }
    for path in ["/", "/healthz", "/readyz", "heartbeat/", "login/", "all-users/"] {
        let (status, body, headers) = metrics.get(path, Some(&access_token(1, "phone"))).await;
        assert_eq!(status, 404, "{path} of the metrics' address: {body}");
        assert_eq!(headers["x-content-type-options"], "nosniff");
    }
    assert_eq!(scene.api.get("/healthz", None).await.0, 200);
    // The bounds of the main address hold here too.
    let long = format!("/metrics?{}", "x".repeat(9 * 1024));
    assert_eq!(metrics.get(&long, None).await.0, 414);
    assert_eq!(metrics.get("/metrics?name=1", None).await.0, 400);
    assert_eq!(metrics.post("/metrics", None, &serde_json::json!({})).await.0, 405);
    let mut silent =
        tokio::net::TcpStream::connect(printed.trim_start_matches("http://").trim_end_matches("/metrics"))
            .await
            .unwrap();
    let mut byte = [0; 1];
    let read = tokio::time::timeout(Duration::from_secs(20), silent.read(&mut byte)).await;
    let read = read.expect("cut off after its time");
    assert!(matches!(read, Ok(0) | Err(_)), "{read:?}");
    assert_eq!(scene.service.terminate().await, 0, "both listeners come to their end");
}

#[tokio::test]
async fn open_metrics_is_given_to_whoever_asks_for_it() {
    let scene = Scene::start(Database::Sqlite, 1, Duration::from_mins(1), &[]).await;
    for path in ["/metrics", "/metrics/"] {
        let accept = "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.2";
        let (status, body, headers) =
            send(scene.api.request(Method::GET, path, None).header(ACCEPT, accept)).await;
        assert_eq!(status, 200);
        assert_eq!(headers["content-type"], "application/openmetrics-text; version=1.0.0; charset=utf-8");
        assert!(body.as_str().unwrap().ends_with("\n# EOF\n"), "{body}");
    }
}

#[tokio::test]
async fn a_scrape_while_redis_is_hung_or_dead_says_so_within_two_seconds() {
    let scene = Scene::start(Database::Sqlite, 1, Duration::from_mins(1), &[]).await;
    assert_eq!(scene.api.heartbeat(&access_token(1, "phone")).await.0, 200);
    for hung in [true, false] {
        if hung {
            scene.redis.pause();
        } else {
            scene.redis.kill().await;
        }
        // What is measured is kept for a second: by then it has been seen, whatever was known before.
        let scrape = eventually(SOON, async || {
            let begun = Instant::now();
            let scrape = Scrape::of(&scene.api).await;
            let took = begun.elapsed();
            assert!(took < Duration::from_secs(2), "{took:?}");
            if whole(scrape.value("presence_redis_up")) == 0 { Ok(scrape) } else { Err(scrape) }
        })
        .await;
        assert_eq!(whole(scrape.value("presence_database_up")), 1);
        assert_eq!(whole(heartbeats(&scrape, "recorded")), 1, "what is known is said");
        assert_eq!(scrape.get("presence_users_present"), None, "what is not known is not");
        if hung {
            scene.redis.resume();
            eventually(SOON, async || {
                let scrape = Scrape::of(&scene.api).await;
                if scrape.get("presence_users_present") == Some(1.0) { Ok(()) } else { Err(scrape) }
            })
            .await;
        }
    }
}
