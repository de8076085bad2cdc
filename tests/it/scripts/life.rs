//! `lua/lib/life.lua`: what a server that was restarted, perhaps with older data, may do before somebody has looked.

use std::time::Duration;

use presenced::live::{Checked, HeartbeatOutcome, Loss, StatusOutcome};
use presenced::model::HeartbeatWord::{Away, Online};
use presenced::model::{Millis, OnlineStatus, StreamId};

use super::{Bench, TTL_MS};

/// Lets the fence look as if it had come with the data of another life.
fn begin_another_life(bench: &Bench) {
    let fence = bench.redis.cli(&["GET", "presence:{0}:fence"]);
    let (_, cursor) = fence.split_once(' ').unwrap();
    bench.redis.cli(&["SET", "presence:{0}:fence", &format!("0123456789abcdef {cursor}")]);
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
    assert!(bench.live.begin_fence(0, "bench").await.unwrap());
    let loss = Loss { hold: Duration::from_mins(2), ..Loss::default() };
    assert!(bench.live.raise_fence(0, "0", "bench", &loss).await.unwrap());
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

    bench.redis.cli(&["DEL", "presence:{0}:fence"]);
    bench.raise_fence().await;
    let (now, _) = bench.beat_at(7, "phone", Online).await;
    let heard: i64 = bench.redis.cli(&["GET", "presence:{0}:heard"]).parse().unwrap();
    // `lua/heartbeat.lua` notes it, and `lua/arrive.lua` lets the user in, perhaps a millisecond later.
    assert!((0..100).contains(&(now.0 - heard)), "{now:?}, {heard}");
    begin_another_life(&bench);
    assert!(former().await.is_whole);
    assert!(!bench.live.knows_of_later_data(0, &bench.live.fence(0).await.unwrap()));

    // The data are those of a second before: the stream's newest entry too.
    bench.redis.cli(&["SET", "presence:{0}:heard", &(heard - 1_000).to_string()]);
    bench.redis.cli(&["DEL", "presence:{0}:transitions"]);
    assert_eq!(bench.live.fence(0).await.unwrap().former, None, "without its stream a shard is not whole");
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

#[tokio::test]
async fn a_shard_that_lost_any_of_its_keys_takes_nobody_in_until_its_fence_is_raised_again() {
    for key in ["blocked", "ended", "live", "transitions", "fence"] {
        let bench = Bench::start().await;
        bench.beat(7, "phone", Online).await;
        bench.redis.cli(&["DEL", &format!("presence:{{0}}:{key}")]);
        assert_eq!(
            bench.beat(7, "phone", Online).await,
            HeartbeatOutcome::Present(OnlineStatus::Online),
            "{key}: a steady heartbeat goes on"
        );
        assert_eq!(bench.beat(8, "phone", Online).await, HeartbeatOutcome::Unfenced, "{key}: newly present");
        assert_eq!(bench.beat(7, "laptop", Online).await, HeartbeatOutcome::Unfenced, "{key}: a new session");
        assert_eq!(bench.live.set_status(8, OnlineStatus::Online).await.unwrap(), StatusOutcome::Unfenced);
        assert_eq!(bench.live.check(7, None).await.unwrap(), Checked::Unfenced, "{key}");
        let fence = bench.live.fence(0).await.unwrap();
        assert_eq!((fence.cursor, fence.former), (None, None), "{key}");
        assert_eq!(fence.is_damaged, ["live", "transitions"].contains(&key), "{key}");
        assert!(!bench.live.due(0, 10).await.unwrap().fenced);
        for _ in 0..2 {
            bench.raise_fence().await;
        }
        assert_eq!(bench.live.check(7, None).await.unwrap(), Checked::Good, "{key}");
        assert!(matches!(bench.beat(8, "phone", Online).await, HeartbeatOutcome::Present(_)), "{key}");
    }
}

#[tokio::test]
async fn a_stream_that_is_made_anew_goes_on_above_what_sql_holds() {
    let bench = Bench::start().await;
    bench.redis.cli(&["DEL", "presence:{0}:transitions"]);
    bench.beat(7, "phone", Online).await;
    assert_eq!(bench.redis.cli(&["EXISTS", "presence:{0}:transitions"]), "0", "no script makes it");
    // SQL holds what was made while Redis's clock was an hour ahead.
    let ahead = chrono::Utc::now().timestamp_millis() + 3_600_000;
    let newest_in_sql = Some(StreamId { ms: ahead.unsigned_abs(), seq: 3 });
    let served_until = Millis(ahead - 5);
    let loss = Loss { newest_in_sql, served_until, ..Loss::default() };
    for _ in 0..2 {
        assert!(bench.live.begin_fence(0, "bench").await.unwrap());
        assert!(bench.live.raise_fence(0, "0", "bench", &loss).await.unwrap());
        bench.live.end_fence("bench").await.unwrap();
    }
    assert_eq!(bench.redis.cli(&["GET", "presence:{0}:lost"]), (ahead - 5).to_string());
    bench.beat(8, "phone", Online).await;
    let entries = bench.redis.cli(&["XRANGE", "presence:{0}:transitions", "-", "+"]);
    let (ms, seq) = entries.lines().next().unwrap().split_once('-').unwrap();
    assert!((ms.parse::<i64>().unwrap(), seq.parse::<u64>().unwrap()) > (ahead, 3), "{entries}");
}

#[tokio::test]
async fn a_clock_that_was_set_back_leaves_nobody_online_until_it_has_caught_up() {
    let bench = Bench::start().await;
    let hour = 3_600_000;
    for user in [7, 8] {
        bench.beat(user, "phone", Online).await;
    }
    // 7 was heard while the clock was ahead; 8 has a deadline from a longer TTL of then, by a heartbeat of the past.
    bench.age(7, -hour);
    let far = chrono::Utc::now().timestamp_millis() + hour;
    bench.redis.cli(&["ZADD", "presence:{0}:live", &far.to_string(), "8"]);
    bench.redis.cli(&["PEXPIREAT", "presence:{0}:user:8", &far.to_string()]);
    let due = bench.live.due(0, 10).await.unwrap();
    assert!(due.is_ahead);
    for brought in [1, 0] {
        assert_eq!(bench.live.bring_back_from_ahead(0, due.now).await.unwrap(), brought);
    }
    let deadline = bench.deadline(7).unwrap();
    assert!((due.now.0..=due.now.0 + TTL_MS + 5_000).contains(&deadline), "{deadline}");
    assert_eq!(bench.deadline(8), Some(far), "what no clock has made is left alone");
}

#[tokio::test]
async fn a_turn_from_before_the_clock_was_set_back_is_over() {
    let bench = Bench::start().await;
    let span = Duration::from_secs(10);
    assert!(bench.live.flush_turn(0, span).await.unwrap());
    bench.redis.cli(&["SET", "presence:{0}:flush", "another", "PX", "9000"]);
    assert!(!bench.live.flush_turn(0, span).await.unwrap(), "another has it");
    bench.redis.cli(&["SET", "presence:{0}:flush", "another", "PX", "3600000"]);
    assert!(bench.live.flush_turn(0, span).await.unwrap());
}
