//! Redis's clock, as it is asked outside the scripts.

use super::Bench;

#[tokio::test]
async fn the_time_is_that_of_redis_in_milliseconds() {
    let bench = Bench::start().await;
    let time = || {
        let said = bench.redis.cli(&["TIME"]);
        let (seconds, micros) = said.split_once('\n').expect("two lines");
        seconds.parse::<i64>().unwrap() * 1_000 + micros.trim().parse::<i64>().unwrap() / 1_000
    };
    let before = time();
    let now = bench.live.now(0).await.unwrap();
    assert!((before..=time()).contains(&now.0), "{now}");
}
