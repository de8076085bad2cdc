//! `lua/mend.lua`: a case per reply, the keys afterwards, and a second run that finds nothing left to mend.

use presenced::live::{Mend, Mended, Verdict};
use presenced::model::HeartbeatWord::{Away, Online};
use presenced::model::{OnlineStatus, UserId};

use super::{Bench, LIVE, TTL_MS};

async fn mend(bench: &Bench, user: UserId) -> Mended {
    mend_as(bench, user, OnlineStatus::Online, false).await
}

async fn mend_as(bench: &Bench, user: UserId, fallback: OnlineStatus, tell: bool) -> Mended {
    bench.live.mend(0, &[Mend { user, fallback, tell }]).await.unwrap()[0]
}

fn key(user: UserId) -> String {
    format!("presence:{{0}}:user:{user}")
}

async fn status(bench: &Bench, user: UserId) -> Option<OnlineStatus> {
    bench.live.read(&[user]).await.unwrap()[0].map(|presence| presence.status)
}

#[tokio::test]
async fn who_is_right_is_left_alone() {
    let bench = Bench::start().await;
    bench.beat(1, "phone", Online).await;
    bench.beat(1, "laptop", Away).await;
    bench.beat(2, "phone", Online).await;
    bench.age(2, TTL_MS + 5);
    let (before, entries) = (bench.redis.cli(&["HGETALL", &key(1)]), bench.transitions());
    for user in [1, 2, 3] {
        assert_eq!(mend(&bench, user).await, Mended::Nothing, "user {user}");
    }
    assert_eq!((bench.redis.cli(&["HGETALL", &key(1)]), bench.transitions()), (before, entries));
    assert!(!bench.exists(3));
}

#[tokio::test]
async fn a_missing_key_is_made_anew_and_lent_until_the_next_heartbeat() {
    let bench = Bench::start().await;
    for (user, fallback) in [(1, OnlineStatus::Online), (2, OnlineStatus::Away), (3, OnlineStatus::Offline)] {
        bench.beat(user, "phone", Online).await;
        bench.redis.cli(&["DEL", &key(user)]);
        let before = bench.transitions();
        assert_eq!(mend_as(&bench, user, fallback, false).await, Mended::KeyMade);
        assert_eq!(mend_as(&bench, user, fallback, false).await, Mended::Nothing);
        assert_eq!(bench.transitions(), before, "the user was there all the while");
        let expected = if user == 2 { OnlineStatus::Away } else { OnlineStatus::Online };
        assert_eq!(status(&bench, user).await, Some(expected));
        assert!(bench.deadline(user).is_some());
        bench.beat(user, "phone", Online).await;
        assert_eq!(bench.field(user, "admin"), "", "the heartbeat takes the loan back");
        assert_eq!(status(&bench, user).await, Some(OnlineStatus::Online));
    }
}

#[tokio::test]
async fn a_key_of_another_type_or_without_sessions_is_made_anew() {
    let bench = Bench::start().await;
    for user in [1, 2] {
        bench.beat(user, "phone", Online).await;
    }
    bench.redis.cli(&["DEL", &key(1)]);
    bench.redis.cli(&["RPUSH", &key(1), "x"]);
    bench.redis.cli(&["HDEL", &key(2), "s:phone"]);
    for user in [1, 2] {
        assert_eq!(mend(&bench, user).await, Mended::KeyMade, "user {user}");
        assert_eq!(mend(&bench, user).await, Mended::Nothing);
        assert_eq!(status(&bench, user).await, Some(OnlineStatus::Online));
        assert!(bench.deadline(user).is_some());
    }
    // Who is not in the live set has no presence that could be made anew.
    bench.redis.cli(&["RPUSH", &key(3), "x"]);
    assert_eq!(mend(&bench, 3).await, Mended::KeyDropped);
    assert_eq!(mend(&bench, 3).await, Mended::Nothing);
}

#[tokio::test]
async fn an_expiry_is_set_to_the_deadline() {
    let bench = Bench::start().await;
    for (user, command) in [(1, "PERSIST"), (2, "EXPIRE")] {
        bench.beat(user, "phone", Online).await;
        let mut arguments = vec![command.to_string(), key(user)];
        arguments.extend((command == "EXPIRE").then(|| "5".to_string()));
        bench.redis.cli(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
        assert_eq!(mend(&bench, user).await, Mended::ExpirySet);
        assert_eq!(mend(&bench, user).await, Mended::Nothing);
        assert!(bench.deadline(user).is_some());
    }
}

#[tokio::test]
async fn who_fell_out_of_the_live_set_is_put_back_while_a_session_is_alive() {
    let bench = Bench::start().await;
    for user in 1..=4 {
        bench.beat(user, "phone", Online).await;
    }
    let deadline = bench.deadline(1);
    let before = bench.transitions();
    bench.redis.cli(&["ZREM", LIVE, "1", "2", "3", "4"]);
    assert_eq!(mend(&bench, 1).await, Mended::DeadlineSet);
    assert_eq!(mend(&bench, 1).await, Mended::Nothing);
    assert_eq!(bench.deadline(1), deadline);
    // Without an expiry the last heartbeat tells.
    bench.redis.cli(&["PERSIST", &key(2)]);
    assert_eq!(mend(&bench, 2).await, Mended::DeadlineSet);
    assert!(bench.deadline(2).is_some());
    bench.age_session(3, "phone", TTL_MS + 1_000);
    bench.redis.cli(&["PERSIST", &key(3)]);
    assert_eq!(mend(&bench, 3).await, Mended::KeyDropped, "its time is over");
    bench.tell(&[(4, Verdict::Block)]).await;
    bench.redis.cli(&["HSET", &key(4), "status", "online", "s:x", "9999999999999"]);
    assert_eq!(mend(&bench, 4).await, Mended::KeyDropped, "who may not be present is not put back");
    assert_eq!(bench.transitions(), before);
}

#[tokio::test]
async fn a_deadline_of_no_heartbeat_falls_back_to_the_last_one() {
    let bench = Bench::start().await;
    let (seen, _) = bench.beat_at(1, "phone", Online).await;
    bench.redis.cli(&["ZADD", LIVE, "inf", "1"]);
    assert_eq!(mend(&bench, 1).await, Mended::DeadlineSet);
    assert_eq!(mend(&bench, 1).await, Mended::Nothing);
    assert_eq!(bench.deadline(1), Some(seen.0 + TTL_MS));
    // Nothing tells when this one was heard: it gets the benefit of one TTL.
    bench.redis.cli(&["ZADD", LIVE, "99999999999999", "2"]);
    assert_eq!(mend(&bench, 2).await, Mended::DeadlineSet);
    assert_eq!(mend(&bench, 2).await, Mended::KeyMade);
    assert_eq!(mend(&bench, 2).await, Mended::Nothing);
    assert!(bench.deadline(2).is_some());
}

#[tokio::test]
async fn a_status_is_set_to_what_the_sessions_come_to_and_recorded() {
    let bench = Bench::start().await;
    bench.beat(1, "phone", Online).await;
    bench.beat(2, "phone", Away).await;
    bench.redis.cli(&["HSET", &key(1), "status", "away"]);
    bench.redis.cli(&["HSET", &key(2), "status", "nonsense"]);
    for (user, word) in [(1, "online"), (2, "away")] {
        assert_eq!(mend(&bench, user).await, Mended::StatusSet);
        assert_eq!(mend(&bench, user).await, Mended::Nothing);
        assert_eq!(bench.field(user, "status"), word);
        assert_eq!(bench.transitions().last().unwrap(), &format!("{user} {word} heartbeat"));
    }
}

#[tokio::test]
async fn sql_is_told_the_status_again_where_that_is_asked_for() {
    let bench = Bench::start().await;
    let (seen, _) = bench.beat_at(1, "phone", Away).await;
    assert_eq!(mend_as(&bench, 1, OnlineStatus::Online, true).await, Mended::Told);
    let entries = bench.entries();
    let at = seen.0.to_string();
    assert_eq!(entries.len(), 2);
    assert_eq!(entries[1], ["1", "away", "heartbeat", &at, &at].map(ToString::to_string));
    assert_eq!(mend_as(&bench, 2, OnlineStatus::Online, true).await, Mended::Nothing, "nobody is there");
}
