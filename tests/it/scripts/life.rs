//! `lua/lib/life.lua`: what a server that was restarted, perhaps with older data, may do before somebody has looked.

use std::time::Duration;

use presenced::live::{HeartbeatOutcome, Loss, StatusOutcome};
use presenced::model::HeartbeatWord::{Away, Online};
use presenced::model::OnlineStatus;

use super::{Bench, FENCE, TTL_MS};

/// Lets the fence look as if it had come with the data of another life.
pub fn begin_another_life(bench: &Bench) {
    let fence = bench.redis.cli(&["GET", FENCE]);
    let (_, cursor) = fence.split_once(' ').unwrap();
    bench.redis.cli(&["SET", FENCE, &format!("0123456789abcdef {cursor}")]);
}

#[tokio::test]
async fn in_another_life_nobody_becomes_present_and_nothing_is_claimed_but_the_present_go_on() {
    let bench = Bench::start().await;
    for user in [7, 8] {
        bench.beat(user, "phone", Online).await;
    }
    bench.age(8, TTL_MS + 1_000);
    begin_another_life(&bench);
    assert_eq!(
        bench.beat(7, "phone", Online).await,
        HeartbeatOutcome::Present(OnlineStatus::Online),
        "a steady heartbeat looks at no fence"
    );
    assert_eq!(bench.beat(8, "phone", Online).await, HeartbeatOutcome::Unfenced);
    assert_eq!(bench.beat(9, "phone", Online).await, HeartbeatOutcome::Unfenced);
    assert_eq!(bench.live.set_status(9, OnlineStatus::Away).await.unwrap(), StatusOutcome::Unfenced);
    assert!(!bench.live.due(0, 10).await.unwrap().fenced);
    assert_eq!(bench.live.claim(0, &[8]).await.unwrap(), 0);
    assert_eq!(bench.transitions(), ["7 online heartbeat", "8 online heartbeat"]);

    let fence = bench.live.fence(0).await.unwrap();
    assert_eq!(fence.cursor, None);
    let former = fence.former.unwrap();
    assert_eq!(former.cursor, "0");
    for _ in 0..2 {
        // The second finds another value than it was told of.
        bench.live.adopt_fence(0, &former).await.unwrap();
    }
    assert_eq!(bench.live.fence(0).await.unwrap().cursor.as_deref(), Some("0"));
    assert_eq!(bench.live.claim(0, &[8]).await.unwrap(), 1);
    assert_eq!(bench.beat(9, "phone", Online).await, HeartbeatOutcome::Present(OnlineStatus::Online));
}

#[tokio::test]
async fn on_hold_nothing_is_claimed_and_who_comes_back_was_never_gone() {
    let bench = Bench::unfenced().await;
    bench.raise_fence_after(&Loss { hold: Duration::from_mins(2), ..Loss::default() }).await;
    for user in [7, 8] {
        bench.beat(user, "phone", Online).await;
        bench.age(user, TTL_MS + 1_000);
        // The key has expired; the deadline stands.
        bench.redis.cli(&["DEL", &format!("presence:{{0}}:user:{user}")]);
    }
    let due = bench.live.due(0, 10).await.unwrap();
    assert!(due.fenced && due.passed.len() == 2);
    assert!((Duration::from_secs(100)..=Duration::from_mins(2)).contains(&due.held), "{:?}", due.held);
    assert_eq!(bench.live.claim(0, &[7, 8]).await.unwrap(), 0);
    assert_eq!(bench.beat(7, "phone", Online).await, HeartbeatOutcome::Present(OnlineStatus::Online));
    assert_eq!(
        bench.transitions(),
        ["7 online heartbeat", "8 online heartbeat", "7 online heartbeat"],
        "no offline between; the chain leaves the second online out"
    );
    bench.redis.cli(&["DEL", "presence:{0}:hold"]);
    assert_eq!(bench.live.claim(0, &[7, 8]).await.unwrap(), 1);
    assert_eq!(bench.transitions().last().unwrap(), "8 offline expired");
}

#[tokio::test]
async fn data_are_whole_where_redis_still_knows_of_the_latest_heartbeats() {
    let bench = Bench::start().await;
    begin_another_life(&bench);
    let former = async || bench.live.fence(0).await.unwrap().former.unwrap();
    assert!(!former().await.is_whole, "who has seen nothing can vouch for nothing");

    bench.redis.cli(&["DEL", FENCE]);
    bench.raise_fence().await;
    let (now, _) = bench.beat_at(7, "phone", Online).await;
    let heard: i64 = bench.redis.cli(&["GET", "presence:{0}:heard"]).parse().unwrap();
    // `lua/heartbeat.lua` notes it, and `lua/arrive.lua` lets the user in, perhaps a millisecond later.
    assert!((0..100).contains(&(now.0 - heard)), "{now:?}, {heard}");
    begin_another_life(&bench);
    assert!(former().await.is_whole);
    assert!(!bench.live.knows_of_later_data(0, &bench.live.fence(0).await.unwrap()));

    // The data are those of a second before; what is written to the stream since makes them no newer.
    bench.redis.cli(&["SET", "presence:{0}:heard", &(heard - 1_000).to_string()]);
    assert!(matches!(
        bench.live.set_status(7, OnlineStatus::Offline).await.unwrap(),
        presenced::live::StatusOutcome::Done
    ));
    assert_eq!(bench.transitions().last().unwrap(), "7 offline admin");
    assert!(!former().await.is_whole);
    assert!(bench.live.knows_of_later_data(0, &bench.live.fence(0).await.unwrap()));
    // Heartbeats under a fence that does not stand say nothing about what was there.
    bench.beat(7, "phone", Online).await;
    assert_eq!(bench.redis.cli(&["GET", "presence:{0}:heard"]), (heard - 1_000).to_string());
}

#[tokio::test]
async fn the_present_are_affirmed_and_nobody_else() {
    let bench = Bench::start().await;
    bench.beat(7, "phone", Away).await;
    bench.beat(8, "phone", Online).await;
    bench.age(8, TTL_MS + 1_000);
    let before = bench.deadline(7);
    for _ in 0..2 {
        assert_eq!(bench.live.affirm(0, &[7, 8, 9]).await.unwrap(), 1);
    }
    assert_eq!(
        bench.transitions(),
        ["7 away heartbeat", "8 online heartbeat", "7 away heartbeat", "7 away heartbeat"]
    );
    assert_eq!(bench.deadline(7), before);
}
