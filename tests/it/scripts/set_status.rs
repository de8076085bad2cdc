//! `lua/set_status.lua`

use presenced::live::{HeartbeatOutcome, StatusOutcome, Verdict};
use presenced::model::HeartbeatWord::{Away, Online, Touch};
use presenced::model::OnlineStatus;

use super::{Bench, TTL_MS};

#[tokio::test]
async fn someone_offline_is_lent_one_ttl() {
    let bench = Bench::start().await;
    for _ in 0..2 {
        assert_eq!(bench.live.set_status(7, OnlineStatus::Away).await.unwrap(), StatusOutcome::Done);
    }
    let left = bench.redis.cli(&["PTTL", "presence:{0}:user:7"]).parse::<i64>().unwrap();
    assert!((TTL_MS - 5_000..=TTL_MS).contains(&left), "{left}");
    assert!(bench.deadline(7).is_some());
    assert_eq!(bench.transitions(), ["7 away admin"]);
}

#[tokio::test]
async fn the_next_heartbeat_follows_its_own_word() {
    let bench = Bench::start().await;
    bench.live.set_status(7, OnlineStatus::Online).await.unwrap();
    assert_eq!(bench.beat(7, "phone", Away).await, HeartbeatOutcome::Present(OnlineStatus::Away));
    assert_eq!(bench.field(7, "admin"), "", "what was lent is returned");
    assert_eq!(bench.transitions(), ["7 online admin", "7 away heartbeat"]);
}

#[tokio::test]
async fn a_touch_leaves_what_was_set() {
    let bench = Bench::start().await;
    bench.live.set_status(7, OnlineStatus::Away).await.unwrap();
    assert_eq!(bench.beat(7, "phone", Touch).await, HeartbeatOutcome::Present(OnlineStatus::Away));
    assert_eq!(bench.transitions(), ["7 away admin"]);
}

#[tokio::test]
async fn someone_present_changes_and_keeps_the_deadline() {
    let bench = Bench::start().await;
    bench.beat(7, "phone", Online).await;
    bench.beat(7, "laptop", Online).await;
    bench.age(7, 10_000);
    let deadline = bench.deadline(7);
    for _ in 0..2 {
        assert_eq!(bench.live.set_status(7, OnlineStatus::Away).await.unwrap(), StatusOutcome::Done);
    }
    assert_eq!(bench.deadline(7), deadline, "no proof of life");
    assert_eq!(bench.beat(7, "phone", Touch).await, HeartbeatOutcome::Present(OnlineStatus::Away));
    assert_eq!(bench.beat(7, "laptop", Online).await, HeartbeatOutcome::Present(OnlineStatus::Online));
    assert_eq!(bench.transitions(), ["7 online heartbeat", "7 away admin", "7 online heartbeat"]);
}

#[tokio::test]
async fn offline_ends_the_presence_and_the_next_heartbeat_brings_it_back() {
    let bench = Bench::start().await;
    bench.beat(7, "phone", Online).await;
    for _ in 0..2 {
        assert_eq!(bench.live.set_status(7, OnlineStatus::Offline).await.unwrap(), StatusOutcome::Done);
    }
    assert_eq!(bench.deadline(7), None);
    assert_eq!(bench.beat(7, "phone", Online).await, HeartbeatOutcome::Present(OnlineStatus::Online));
    assert_eq!(bench.transitions(), ["7 online heartbeat", "7 offline admin", "7 online heartbeat"]);
}

#[tokio::test]
async fn a_blocked_user_cannot_be_set_online_and_nobody_without_a_fence() {
    let bench = Bench::unfenced().await;
    assert_eq!(bench.live.set_status(7, OnlineStatus::Online).await.unwrap(), StatusOutcome::Unfenced);
    bench.raise_fence().await;
    bench.tell(&[(7, Verdict::Block)]).await;
    assert_eq!(bench.live.set_status(7, OnlineStatus::Online).await.unwrap(), StatusOutcome::Blocked);
    assert_eq!(bench.live.set_status(7, OnlineStatus::Offline).await.unwrap(), StatusOutcome::Done);
    assert!(bench.transitions().is_empty());
}

#[tokio::test]
async fn an_unclaimed_deadline_is_recorded_first() {
    let bench = Bench::start().await;
    bench.beat(7, "phone", Online).await;
    bench.age(7, TTL_MS + 2_000);
    bench.live.set_status(7, OnlineStatus::Online).await.unwrap();
    assert_eq!(bench.transitions(), ["7 online heartbeat", "7 offline expired", "7 online admin"]);
}

#[tokio::test]
async fn a_field_of_somebody_elses_hand_is_left_alone() {
    let bench = Bench::start().await;
    bench.beat(7, "phone", Online).await;
    bench.redis.cli(&["HSET", "presence:{0}:user:7", "note", "hello", "s:odd", "nonsense"]);
    assert_eq!(bench.live.set_status(7, OnlineStatus::Away).await.unwrap(), StatusOutcome::Done);
    assert_eq!(bench.field(7, "note"), "hello");
    assert_eq!(bench.field(7, "status"), "away");
}

#[tokio::test]
async fn what_an_administrator_lends_is_no_sighting() {
    let bench = Bench::start().await;
    bench.live.set_status(7, OnlineStatus::Online).await.unwrap();
    assert_eq!(bench.redis.cli(&["SMEMBERS", "presence:{0}:lent"]), "7");
    let read = bench.live.read(&[7]).await.unwrap();
    assert_eq!((read[0].unwrap().status, read[0].unwrap().last_seen), (OnlineStatus::Online, None));
    assert_eq!(bench.live.seen(0, None, 10).await.unwrap().users, []);
    assert_eq!(bench.entries()[0][4], "", "no heartbeat is told of");
    bench.age(7, TTL_MS + 1_000);
    bench.redis.cli(&["DEL", "presence:{0}:user:7"]);
    for claimed in [1, 0] {
        assert_eq!(bench.live.claim(0, &[7]).await.unwrap(), claimed);
    }
    assert_eq!(bench.entries()[1][1..3], ["offline", "expired"].map(ToString::to_string));
    assert_eq!(bench.entries()[1][4], "", "nor by the expiry");
    assert_eq!(bench.redis.cli(&["EXISTS", "presence:{0}:lent"]), "0");
}

#[tokio::test]
async fn a_heartbeat_returns_what_was_lent() {
    let bench = Bench::start().await;
    bench.live.set_status(7, OnlineStatus::Away).await.unwrap();
    let (at, _) = bench.beat_at(7, "phone", Touch).await;
    assert_eq!(bench.redis.cli(&["EXISTS", "presence:{0}:lent"]), "0");
    assert_eq!(bench.live.read(&[7]).await.unwrap()[0].unwrap().last_seen, Some(at));
}
