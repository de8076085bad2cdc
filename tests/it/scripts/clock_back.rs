//! Redis's clock that was ahead for a while and has been set right: what the scripts make of instants that lie ahead of it
//! (`lua/clock_back.lua`, `lua/epoch.lua`, `lua/limit.lua`, `lua/turn.lua`).

use std::time::Duration;

use presenced::live::LiveSet;
use presenced::model::HeartbeatWord::{Away, Online};
use presenced::model::{OnlineStatus, UserId};

use super::{Bench, LIVE, TTL_MS, live_set, now_ms};

const HOUR_MS: i64 = 3_600_000;

/// Brings back all whose heartbeats lie ahead; how many.
async fn bring_back(bench: &Bench) -> u64 {
    let now = bench.live.due(0, 1).await.unwrap().now;
    bench.live.bring_back_from_ahead(0, now).await.unwrap()
}

async fn is_ahead(bench: &Bench) -> bool {
    bench.live.due(0, 10).await.unwrap().is_ahead
}

#[tokio::test]
async fn heartbeats_from_ahead_count_as_of_now_and_their_users_are_claimed_in_time() {
    let bench = Bench::start().await;
    bench.beat(7, "phone", Online).await;
    bench.beat(7, "laptop", Away).await;
    bench.beat(8, "phone", Online).await;
    assert!(!is_ahead(&bench).await);
    bench.age(7, -HOUR_MS);
    assert!(is_ahead(&bench).await);
    let (transitions, others) = (bench.transitions(), bench.deadline(8));
    let before = now_ms();
    assert_eq!(bring_back(&bench).await, 1);
    let now = now_ms();
    assert_eq!(bring_back(&bench).await, 0, "run again it finds nothing ahead");
    assert!(!is_ahead(&bench).await);
    let deadline = bench.deadline(7).unwrap();
    assert!((before + TTL_MS..=now + TTL_MS).contains(&deadline), "{deadline}");
    let seen = deadline - TTL_MS;
    assert_eq!(bench.field(7, "s:phone"), seen.to_string());
    assert_eq!(bench.field(7, "s:laptop"), format!("{seen} away"));
    assert_eq!(bench.field(7, "since"), seen.to_string());
    assert_eq!((bench.transitions(), bench.deadline(8)), (transitions, others));
    bench.age(7, TTL_MS + 1_000);
    assert_eq!(bench.live.claim(0, &[7]).await.unwrap(), 1);
}

#[tokio::test]
async fn a_session_that_was_heard_before_the_step_keeps_its_last_heartbeat() {
    let bench = Bench::start().await;
    bench.beat(7, "phone", Online).await;
    let (seen, _) = bench.beat_at(7, "laptop", Away).await;
    bench.age(7, -HOUR_MS);
    bench.age_session(7, "laptop", HOUR_MS + 5_000);
    assert_eq!(bring_back(&bench).await, 1);
    assert_eq!(bench.field(7, "s:laptop"), format!("{} away", seen.0 - 5_000));
}

#[tokio::test]
async fn a_deadline_that_follows_from_a_longer_ttl_is_left_alone() {
    let bench = Bench::start().await;
    let (seen, _) = bench.beat_at(7, "phone", Online).await;
    let far = (seen.0 + HOUR_MS).to_string();
    bench.redis.cli(&["ZADD", LIVE, &far, "7"]);
    bench.redis.cli(&["PEXPIREAT", "presence:{0}:user:7", &far]);
    assert!(is_ahead(&bench).await);
    assert_eq!(bring_back(&bench).await, 0);
    assert_eq!(bench.deadline(7), Some(seen.0 + HOUR_MS));
}

#[tokio::test]
async fn what_was_lent_ahead_ends_in_time_too_and_so_does_a_user_whose_key_is_gone() {
    let bench = Bench::start().await;
    bench.live.set_status(7, OnlineStatus::Away).await.unwrap();
    bench.age(7, -HOUR_MS);
    bench.redis.cli(&["ZADD", LIVE, &(now_ms() + HOUR_MS).to_string(), "8"]);
    bench.redis.cli(&["ZADD", LIVE, &(now_ms() + HOUR_MS).to_string(), "9"]);
    bench.redis.cli(&["SET", "presence:{0}:user:9", "of another type"]);
    assert_eq!(bring_back(&bench).await, 2);
    assert_eq!(bring_back(&bench).await, 0);
    assert_eq!(bench.field(7, "admin"), "0 away");
    assert!(bench.deadline(7).unwrap() <= now_ms() + TTL_MS);
    let left: i64 = bench.redis.cli(&["ZSCORE", LIVE, "8"]).parse().unwrap();
    assert!(left <= now_ms() + TTL_MS);
    assert_eq!(
        bench.redis.cli(&["GET", "presence:{0}:user:9"]),
        "of another type",
        "somebody else's is not touched"
    );
}

#[tokio::test]
async fn a_crowd_from_ahead_is_brought_back_at_once_though_many_share_a_deadline() {
    const CROWD: &str = "for user = 1, 2300 do
          local key, ahead = 'presence:{0}:user:' .. user, tonumber(ARGV[1]) + math.floor(user / 1200)
          redis.call('HSET', key, 'status', 'online', 'since', ahead, 's:phone', ahead)
          redis.call('PEXPIREAT', key, ahead + ARGV[2])
          redis.call('ZADD', KEYS[1], ahead + ARGV[2], user)
        end
        return 'added'";
    let bench = Bench::start().await;
    let ahead = (now_ms() + HOUR_MS).to_string();
    assert_eq!(bench.redis.cli(&["EVAL", CROWD, "1", LIVE, &ahead, &TTL_MS.to_string()]), "added");
    bench.beat(9_000, "phone", Online).await;
    assert_eq!(bring_back(&bench).await, 2_300);
    assert_eq!(bring_back(&bench).await, 0);
    assert!(!is_ahead(&bench).await);
}

#[tokio::test]
async fn changes_that_were_counted_ahead_keep_no_status() {
    let bench = Bench::start().await;
    bench.beat(7, "phone", Online).await;
    let ahead = (now_ms() + HOUR_MS) * 1_000;
    bench.redis.cli(&["HSET", "presence:{0}:user:7", "changes", &ahead.to_string()]);
    for word in [Away, Online, Away, Online, Away, Online, Away, Online, Away, Online] {
        bench.beat(7, "phone", word).await;
    }
    assert_eq!(bench.transitions().len(), 11);
    bench.beat(7, "phone", Away).await;
    assert_eq!(bench.transitions().len(), 11, "and from then on it is counted as ever");
}

#[tokio::test]
async fn an_epoch_that_lies_ahead_begins_anew() {
    let bench = Bench::start().await;
    bench.live.epoch(0).await.unwrap();
    bench.age_epoch(-HOUR_MS);
    assert_eq!(bench.live.reconcile(0, &[(7, None)]).await.unwrap(), None);
    let epoch = bench.live.epoch(0).await.unwrap();
    assert!(epoch.is_new && epoch.age < Duration::from_secs(5), "{epoch:?}");
    let again = bench.live.epoch(0).await.unwrap();
    assert!(!again.is_new && again.age < Duration::from_mins(1), "{again:?}");
}

#[tokio::test]
async fn a_limit_that_was_counted_ahead_is_given_back() {
    const KEY: &str = "presence:limit:login:address:192.0.2.7";
    let bench = Bench::unfenced().await;
    let three = "3/1m".parse().unwrap();
    let taken = async || bench.live.limit("login:address:192.0.2.7", three).await.unwrap().admitted;
    bench.redis.cli(&["SET", KEY, &((now_ms() + HOUR_MS) * 1_000).to_string(), "EX", "7200"]);
    for admitted in [true, true, true, false] {
        assert_eq!(taken().await, admitted);
    }
    let left: i64 = bench.redis.cli(&["PTTL", KEY]).parse().unwrap();
    assert!(left <= 60_000, "{left}");
}

#[tokio::test]
async fn a_turn_that_would_last_longer_than_its_span_is_over() {
    let bench = Bench::unfenced().await;
    let other = live_set(&bench.redis, "other", 1);
    other.ready().await.unwrap();
    let span = Duration::from_secs(5);
    let turn = async |live: &LiveSet| live.flush_turn(0, span).await.unwrap();
    assert!(turn(&other).await && turn(&other).await, "whoever has it has it");
    assert!(!turn(&bench.live).await);
    bench.redis.cli(&["PEXPIRE", "presence:{0}:flush", &HOUR_MS.to_string()]);
    assert!(turn(&bench.live).await, "the clock has been set back since");
    assert!(!turn(&other).await);
    let left: i64 = bench.redis.cli(&["PTTL", "presence:{0}:flush"]).parse().unwrap();
    assert!(left <= 5_000, "{left}");
    // The building of a fence and the comparison of keys are turns as well.
    assert!(
        other.begin_fence(0, "other").await.unwrap() && !bench.live.begin_fence(0, "ours").await.unwrap()
    );
    bench.redis.cli(&["PEXPIRE", "presence:{0}:building", &HOUR_MS.to_string()]);
    assert!(bench.live.begin_fence(0, "ours").await.unwrap());
    assert!(other.verify_turn(0, span).await.unwrap() && !bench.live.verify_turn(0, span).await.unwrap());
}

#[tokio::test]
async fn an_instance_forgets_that_it_heard_a_redis_whose_clock_was_ahead() {
    let bench = Bench::start().await;
    let far = now_ms() + HOUR_MS;
    bench.redis.cli(&["SET", "presence:{0}:heard", &far.to_string()]);
    bench.live.due(0, 1).await.unwrap();
    assert_eq!(bench.live.last_heard(0).0, far);
    let user: UserId = 7;
    bench.beat(user, "phone", Online).await;
    let heard = bench.live.last_heard(0).0;
    assert!(heard <= now_ms() && heard > now_ms() - 60_000, "{heard}");
    assert!(!bench.live.knows_of_later_data(0, &bench.live.fence(0).await.unwrap()));
}
