//! `lua/reconcile.lua` and `lua/epoch.lua`

use presenced::model::HeartbeatWord::Online;
use presenced::model::Millis;

use super::{Bench, TTL_MS};

/// Makes Redis look as if it had been heard for so long already.
fn age_epoch(bench: &Bench, ms: i64) {
    let value = bench.redis.cli(&["GET", "presence:{0}:epoch"]);
    let (run_id, since) = value.split_once(' ').unwrap();
    let aged = format!("{run_id} {}", since.parse::<i64>().unwrap() - ms);
    bench.redis.cli(&["SET", "presence:{0}:epoch", &aged]);
}

#[tokio::test]
async fn an_epoch_begins_with_a_server_and_lasts_as_long_as_it() {
    let mut bench = Bench::start().await;
    assert!(bench.live.epoch(0).await.unwrap().age.as_millis() < 5_000);
    age_epoch(&bench, 500_000);
    assert!(bench.live.epoch(0).await.unwrap().age.as_millis() >= 500_000);
    bench.redis.restart().await;
    bench.live.connected().await;
    let epoch = crate::support::poll::eventually(std::time::Duration::from_secs(5), async || {
        bench.live.epoch(0).await.map_err(|error| error.to_string())
    })
    .await;
    assert!(epoch.age.as_millis() < 60_000);
}

#[tokio::test]
async fn nobody_is_missed_before_redis_has_been_heard_for_a_ttl() {
    let bench = Bench::start().await;
    bench.live.epoch(0).await.unwrap();
    assert_eq!(bench.live.reconcile(0, &[(7, None)]).await.unwrap(), None);
    age_epoch(&bench, TTL_MS - 2_000);
    assert_eq!(bench.live.reconcile(0, &[(7, None)]).await.unwrap(), None);
    assert!(bench.transitions().is_empty());
}

#[tokio::test]
async fn the_missing_are_declared_offline_at_the_end_of_their_ttl_and_the_present_are_left_alone() {
    let bench = Bench::start().await;
    let (now, _) = bench.beat_at(8, "phone", Online).await;
    bench.live.epoch(0).await.unwrap();
    age_epoch(&bench, TTL_MS + 1);
    let seen = now.plus(-TTL_MS - 500);
    let users = [(7, Some(seen)), (8, Some(seen)), (9, Some(now)), (10, None)];
    assert_eq!(bench.live.reconcile(0, &users).await.unwrap(), Some(3));
    let entries = bench.entries();
    assert_eq!(
        entries[1][..4],
        ["7", "offline", "expired", &(seen.0 + TTL_MS).to_string()].map(ToString::to_string)
    );
    for entry in &entries[2..] {
        assert!(entry[3].parse::<i64>().unwrap() <= now.0 + 60_000, "dated no later than now: {entry:?}");
    }
}

#[tokio::test]
async fn another_servers_epoch_is_none() {
    let bench = Bench::start().await;
    bench.live.epoch(0).await.unwrap();
    age_epoch(&bench, TTL_MS * 2);
    assert_eq!(bench.live.reconcile(0, &[(7, Some(Millis(1)))]).await.unwrap(), Some(1));
    let aged = bench.redis.cli(&["GET", "presence:{0}:epoch"]);
    bench.redis.cli(&["SET", "presence:{0}:epoch", &format!("another{aged}")]);
    assert_eq!(bench.live.reconcile(0, &[(7, Some(Millis(1)))]).await.unwrap(), None);
}
