//! `GET /metrics`: numbers that follow what happens, in a text that Prometheus takes, whatever is away.

use std::time::{Duration, Instant};

use reqwest::Method;
use reqwest::header::ACCEPT;

use super::{Database, Scene};
use crate::support::http::send;
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
    let after = Scrape::of(&scene.api).await;
    let more = |series: &str| whole(after.value(series) - before.value(series));
    assert_eq!(more("presence_heartbeats_total{outcome=\"recorded\"}"), 20);
    assert_eq!(more("presence_heartbeat_batch_size_sum"), 20);
    assert!(whole(heartbeats(&after, "blocked")) >= 1);
    assert!(whole(after.value("presence_users_present")) >= 20);

    // They go silent: each is claimed once, punctually, and all of it reaches SQL.
    let gone = eventually(SOON, async || {
        let scrape = Scrape::of(&scene.api).await;
        let lags = scrape.value("presence_expiry_lag_seconds_count");
        if whole(lags) >= 20 { Ok(scrape) } else { Err(lags) }
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
    assert_eq!(whole(gone.value("presence_users_present")), 0);
    assert_eq!(whole(gone.value("presence_transitions_waiting")), 0);
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
        for _ in 0..2 {
            let begun = Instant::now();
            let scrape = Scrape::of(&scene.api).await;
            let took = begun.elapsed();
            assert!(took < Duration::from_secs(2), "{took:?}");
            assert_eq!(whole(scrape.value("presence_redis_up")), 0);
            assert_eq!(whole(scrape.value("presence_database_up")), 1);
            assert_eq!(whole(heartbeats(&scrape, "recorded")), 1, "what is known is said");
            assert_eq!(scrape.get("presence_users_present"), None, "what is not known is not");
        }
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
