//! `lua/reconcile.lua` and `lua/epoch.lua`

use presenced::live::Loss;
use presenced::model::HeartbeatWord::Online;
use presenced::model::{Millis, UserId};

use super::{Bench, LIVE, TTL_MS, now_ms};

#[tokio::test]
async fn an_epoch_begins_with_a_server_and_lasts_as_long_as_it() {
    let mut bench = Bench::start().await;
    assert!(bench.live.epoch(0).await.unwrap().age.as_millis() < 5_000);
    bench.age_epoch(500_000);
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
    bench.age_epoch(TTL_MS - 2_000);
    assert_eq!(bench.live.reconcile(0, &[(7, None)]).await.unwrap(), None);
    assert!(bench.transitions().is_empty());
}

/// A shard that has been heard for long enough to miss users.
async fn heard_enough() -> Bench {
    let bench = Bench::start().await;
    bench.live.epoch(0).await.unwrap();
    bench.age_epoch(TTL_MS + 1);
    bench
}

/// When a user was declared offline, and by what last heartbeat.
async fn declared(bench: &Bench, user: UserId, seen: Option<i64>) -> (i64, String) {
    assert_eq!(bench.live.reconcile(0, &[(user, seen.map(Millis))]).await.unwrap(), Some(1));
    let [of, to, reason, at, seen] = bench.entries().pop().unwrap();
    assert_eq!([of, to, reason], [user.to_string(), "offline".into(), "expired".into()]);
    (at.parse().unwrap(), seen)
}

#[tokio::test]
async fn the_missing_are_declared_offline_at_the_end_of_their_ttl_and_the_present_are_left_alone() {
    let bench = heard_enough().await;
    let (now, _) = bench.beat_at(8, "phone", Online).await;
    let seen = now.plus(-TTL_MS - 500);
    let users = [(7, Some(seen)), (8, Some(seen)), (9, Some(now)), (10, None)];
    assert_eq!(bench.live.reconcile(0, &users).await.unwrap(), Some(3));
    let entries = bench.entries();
    assert_eq!(
        entries[1],
        ["7", "offline", "expired", &(seen.0 + TTL_MS).to_string(), &seen.0.to_string()]
            .map(ToString::to_string)
    );
    for entry in &entries[2..] {
        assert!(entry[3].parse::<i64>().unwrap() <= now_ms(), "dated no later than now: {entry:?}");
    }
    assert_eq!((entries[2][4].clone(), entries[3][4].as_str()), (now.0.to_string(), ""));
    // Before SQL has the first of them it appends them again, and the chain leaves them out.
    assert_eq!(bench.live.reconcile(0, &users).await.unwrap(), Some(3));
    assert!(bench.deadline(8).is_some());
}

#[tokio::test]
async fn whom_lost_data_served_is_missed_no_earlier_than_they_are_known_to_have_served() {
    let bench = heard_enough().await;
    let now = now_ms();
    let lost = now - TTL_MS - 10_000;
    bench.raise_fence_after(&Loss { served_until: Millis(lost), ..Loss::default() }).await;
    assert_eq!(
        declared(&bench, 1, Some(now - 2 * TTL_MS - 60_000)).await.0,
        lost,
        "a later deadline is lost"
    );
    assert_eq!(
        declared(&bench, 2, Some(now - TTL_MS - 5_000)).await.0,
        now - 5_000,
        "nor does it end sooner"
    );
    // One that lies far ahead is from before the clock was set back. No expiry is later than now.
    bench.redis.cli(&["SET", "presence:{0}:lost", &(now + 3_600_000).to_string()]);
    let (at, _) = declared(&bench, 3, Some(now - TTL_MS - 60_000)).await;
    assert!((now..=now_ms()).contains(&at), "{at}");
}

/// Who was heard just before may send the next heartbeat as late as this.
#[tokio::test]
async fn nobody_is_missed_before_a_ttl_has_passed_since_data_were_lost() {
    let bench = heard_enough().await;
    let lost = now_ms() - TTL_MS + 5_000;
    bench.raise_fence_after(&Loss { served_until: Millis(lost), ..Loss::default() }).await;
    assert_eq!(bench.live.reconcile(0, &[(7, None)]).await.unwrap(), None);
    assert!(bench.transitions().is_empty());
    bench.redis.cli(&["SET", "presence:{0}:lost", &(lost - 6_000).to_string()]);
    assert_eq!(bench.live.reconcile(0, &[(7, None)]).await.unwrap(), Some(1));
}

#[tokio::test]
async fn a_last_seen_that_lies_ahead_tells_nothing() {
    let bench = heard_enough().await;
    let before = now_ms();
    let (at, seen) = declared(&bench, 7, Some(before + 3_600_000)).await;
    assert!((before..=now_ms()).contains(&at) && seen.is_empty(), "{at} {seen}");
}

#[tokio::test]
async fn a_user_whose_key_is_there_is_missed_by_nobody_though_the_deadline_is_gone() {
    let bench = heard_enough().await;
    bench.beat(7, "phone", Online).await;
    bench.redis.cli(&["ZREM", LIVE, "7"]);
    for _ in 0..2 {
        assert_eq!(bench.live.reconcile(0, &[(7, None), (8, None)]).await.unwrap(), Some(1));
    }
    bench.redis.cli(&["DEL", "presence:{0}:user:7"]);
    assert_eq!(bench.live.reconcile(0, &[(7, None), (8, None)]).await.unwrap(), Some(2));
}

#[tokio::test]
async fn nobody_is_missed_where_the_fence_does_not_stand() {
    let bench = Bench::unfenced().await;
    bench.live.epoch(0).await.unwrap();
    bench.age_epoch(TTL_MS * 2);
    assert_eq!(bench.live.reconcile(0, &[(7, None)]).await.unwrap(), None);
    bench.raise_fence().await;
    assert_eq!(bench.live.reconcile(0, &[(7, None)]).await.unwrap(), Some(1));
}

#[tokio::test]
async fn another_servers_epoch_is_none() {
    let bench = Bench::start().await;
    bench.live.epoch(0).await.unwrap();
    bench.age_epoch(TTL_MS * 2);
    assert_eq!(bench.live.reconcile(0, &[(7, Some(Millis(1)))]).await.unwrap(), Some(1));
    let aged = bench.redis.cli(&["GET", "presence:{0}:epoch"]);
    bench.redis.cli(&["SET", "presence:{0}:epoch", &format!("another{aged}")]);
    assert_eq!(bench.live.reconcile(0, &[(7, Some(Millis(1)))]).await.unwrap(), None);
}
