//! `lua/limit.lua`: so many at once, then one by one; and a key that goes when all is given back.

use std::time::Duration;

use presenced::model::limit::{Limit, Taken};

use super::{Bench, live_set};
use crate::support::poll::eventually;
use crate::support::redis::RedisServer;

const KEY: &str = "presence:limit:login:address:192.0.2.7";
const NAME: &str = "login:address:192.0.2.7";

fn limit(text: &str) -> Limit {
    text.parse().unwrap()
}

#[tokio::test]
async fn as_many_as_the_limit_says_and_no_more_and_a_refusal_changes_nothing() {
    let bench = Bench::unfenced().await;
    let three = limit("3/1h");
    for left in [2, 1, 0] {
        let taken = bench.live.limit(NAME, three).await.unwrap();
        assert_eq!((taken.admitted, taken.next_us > 0), (true, left == 0), "{taken:?}");
    }
    let kept = bench.redis.cli(&["GET", KEY]);
    for _ in 0..2 {
        let Taken { admitted, next_us } = bench.live.limit(NAME, three).await.unwrap();
        assert!(!admitted);
        assert!((1_190_000_000..=1_200_000_000).contains(&next_us), "{next_us}");
    }
    assert_eq!(bench.redis.cli(&["GET", KEY]), kept);
    assert!(
        bench.live.limit("login:address:192.0.2.8", three).await.unwrap().admitted,
        "another's is its own"
    );
}

/// What the script keeps and answers is what the pure rule says of the same instant.
#[tokio::test]
async fn the_script_computes_what_the_rule_does() {
    let bench = Bench::unfenced().await;
    let limit = limit("7/1m");
    for _ in 0..9 {
        let full_us: i64 = bench.redis.cli(&["GET", KEY]).parse().unwrap_or(0);
        let taken = bench.live.limit(NAME, limit).await.unwrap();
        let after: i64 = bench.redis.cli(&["GET", KEY]).parse().unwrap();
        // The instant of the call follows from the answer; the first is the only one that looks at nothing.
        let now_us = if taken.admitted {
            if full_us == 0 { after - limit.interval_us() } else { continue_from(full_us, after, limit) }
        } else {
            after + limit.interval_us() - limit.tolerance_us() - taken.next_us
        };
        let (expected, kept) = limit.take(full_us, now_us);
        assert_eq!((taken.admitted, after), (expected.admitted, kept));
    }
    assert_eq!(bench.redis.cli(&["PEXPIRETIME", KEY]), {
        let full_us: i64 = bench.redis.cli(&["GET", KEY]).parse().unwrap();
        ((full_us + 999) / 1_000).to_string()
    });
}

/// Some instant at which what was kept was still ahead: then the time of the call does not matter to what is kept.
fn continue_from(full_us: i64, after: i64, limit: Limit) -> i64 {
    assert_eq!(after - full_us, limit.interval_us());
    full_us - 1
}

#[tokio::test]
async fn whoever_waits_is_admitted_again_and_nothing_is_left_in_the_end() {
    let bench = Bench::unfenced().await;
    let keys = bench.redis.cli(&["DBSIZE"]);
    let one = limit("1/300ms");
    assert!(bench.live.limit(NAME, one).await.unwrap().admitted);
    assert!(!bench.live.limit(NAME, one).await.unwrap().admitted);
    eventually(Duration::from_secs(5), async || {
        let left = bench.redis.cli(&["DBSIZE"]);
        if left == keys { Ok(()) } else { Err(left) }
    })
    .await;
    assert!(bench.live.limit(NAME, one).await.unwrap().admitted);
    bench.live.forgive(NAME).await.unwrap();
    bench.live.forgive(NAME).await.unwrap();
    assert_eq!(bench.redis.cli(&["DBSIZE"]), keys);
    assert!(bench.live.limit(NAME, one).await.unwrap().admitted);
}

#[tokio::test]
async fn two_instances_share_one_count() {
    let redis = RedisServer::start(&[]).await;
    let (one, other) = (live_set(&redis, "one", 1), live_set(&redis, "other", 1));
    let ten = limit("10/1h");
    for live in [&one, &other] {
        live.ready().await.unwrap();
    }
    let calls = (0..30).map(|index| if index % 2 == 0 { &one } else { &other }.limit(NAME, ten));
    let taken = futures_util::future::try_join_all(calls).await.unwrap();
    assert_eq!(taken.iter().filter(|taken| taken.admitted).count(), 10);
}
