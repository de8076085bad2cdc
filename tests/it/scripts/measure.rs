//! `lua/measure.lua`: who is present, what waits for SQL, and since when.

use std::time::Duration;

use presenced::live::Measures;
use presenced::model::HeartbeatWord::Online;

use super::{Bench, TTL_MS, live_set};
use crate::support::redis::RedisServer;

#[tokio::test]
async fn an_empty_redis_measures_nothing_and_is_left_empty() {
    let bench = Bench::unfenced().await;
    let keys = bench.redis.cli(&["DBSIZE"]);
    for _ in 0..2 {
        assert_eq!(bench.live.measure().await.unwrap(), Measures::default());
    }
    assert_eq!(bench.redis.cli(&["DBSIZE"]), keys, "reads never write");
}

#[tokio::test]
async fn whose_deadline_has_passed_is_present_no_more() {
    let bench = Bench::start().await;
    for user in 1..=3 {
        bench.beat(user, "phone", Online).await;
    }
    bench.age(2, TTL_MS + 1);
    let measures = bench.live.measure().await.unwrap();
    assert_eq!((measures.present, measures.waiting), (2, 3));
}

#[tokio::test]
async fn the_oldest_transition_that_waits_is_as_old_as_its_entry() {
    let bench = Bench::start().await;
    let now_ms = chrono::Utc::now().timestamp_millis();
    for age_ms in [90_000, 1_000] {
        let id = format!("{}-0", now_ms - age_ms);
        let entry = ["user", "1", "to", "online", "reason", "login", "at", "1", "seen", "1"];
        let said = bench.redis.cli(&[&["XADD", "presence:{0}:transitions", &id], &entry[..]].concat());
        assert_eq!(said, id);
    }
    let measures = bench.live.measure().await.unwrap();
    assert_eq!(measures.waiting, 2);
    let oldest = measures.oldest;
    assert!((Duration::from_secs(90)..Duration::from_secs(100)).contains(&oldest), "{oldest:?}");
}

#[tokio::test]
async fn shards_are_measured_together() {
    let redis = RedisServer::start(&[]).await;
    let live = live_set(&redis, "bench", 4);
    live.ready().await.unwrap();
    for shard in 0..4 {
        let live_key = format!("presence:{{{shard}}}:live");
        redis.cli(&["ZADD", &live_key, "9999999999999", &(shard + 4).to_string(), "0", "0"]);
        let stream = format!("presence:{{{shard}}}:transitions");
        redis.cli(&["XADD", &stream, "*", "user", "1"]);
    }
    let measures = live.measure().await.unwrap();
    assert_eq!((measures.present, measures.waiting), (4, 4), "the mark of a whole set is no user");
}
