//! `lua/leave.lua`

use presenced::live::HeartbeatOutcome;
use presenced::model::HeartbeatWord::{Away, Online, Touch};
use presenced::model::{Millis, OnlineStatus};

use super::{Bench, ENDED, ENDED_TTL_MS, TTL_MS, now_ms, session as sid};

const YEAR_MS: i64 = 31_536_000_000;

#[tokio::test]
async fn the_last_session_takes_the_user_along_once() {
    let bench = Bench::start().await;
    let (seen, _) = bench.beat_at(7, "phone", Online).await;
    for _ in 0..2 {
        bench.live.leave(7, &sid("phone"), Millis(0)).await.unwrap();
    }
    assert_eq!(bench.deadline(7), None);
    assert_eq!(bench.transitions(), ["7 online heartbeat", "7 offline logout"]);
    assert_eq!(bench.entries()[1][4], seen.0.to_string(), "a logout is no sign of life");
    let left = bench.refused_until(7, "phone").unwrap() - now_ms();
    assert!(
        (ENDED_TTL_MS - 10_000..=ENDED_TTL_MS).contains(&left),
        "it is refused as long as an access token lives: {left} ms"
    );
}

#[tokio::test]
async fn another_session_keeps_the_user_and_its_own_deadline_counts() {
    let bench = Bench::start().await;
    let (first, _) = bench.beat_at(7, "laptop", Online).await;
    bench.age_session(7, "laptop", 40_000);
    bench.beat(7, "phone", Online).await;
    for _ in 0..2 {
        bench.live.leave(7, &sid("phone"), Millis(0)).await.unwrap();
    }
    assert_eq!(bench.deadline(7), Some(first.0 - 40_000 + TTL_MS));
    assert_eq!(bench.transitions(), ["7 online heartbeat"]);
}

#[tokio::test]
async fn when_the_online_session_ends_the_idle_one_makes_the_user_away() {
    let bench = Bench::start().await;
    bench.beat(7, "laptop", Online).await;
    bench.beat(7, "phone", Away).await;
    for _ in 0..2 {
        bench.live.leave(7, &sid("laptop"), Millis(0)).await.unwrap();
    }
    assert_eq!(bench.field(7, "status"), "away");
    assert_eq!(bench.transitions(), ["7 online heartbeat", "7 away logout"]);
}

#[tokio::test]
async fn a_dead_session_keeps_nobody() {
    let bench = Bench::start().await;
    bench.beat(7, "laptop", Online).await;
    bench.age_session(7, "laptop", TTL_MS + 1_000);
    bench.beat(7, "phone", Online).await;
    bench.age_session(7, "laptop", TTL_MS + 1_000);
    bench.live.leave(7, &sid("phone"), Millis(0)).await.unwrap();
    assert_eq!(bench.deadline(7), None);
    assert_eq!(bench.transitions(), ["7 online heartbeat", "7 offline logout"]);
}

#[tokio::test]
async fn a_session_that_was_not_there_is_refused_from_now_on_and_changes_nothing() {
    let bench = Bench::start().await;
    bench.beat(7, "phone", Online).await;
    bench.live.leave(7, &sid("tablet"), Millis(0)).await.unwrap();
    bench.live.leave(9, &sid("none"), Millis(0)).await.unwrap();
    assert!(bench.deadline(7).is_some());
    assert_eq!(bench.transitions(), ["7 online heartbeat"]);
    assert!(bench.refused_until(7, "tablet").is_some() && bench.refused_until(9, "none").is_some());
    assert_eq!(bench.beat(7, "tablet", Touch).await, HeartbeatOutcome::SessionEnded);
}

#[tokio::test]
async fn an_ended_session_is_refused_as_long_as_a_known_token_lives_but_for_no_more_than_a_year() {
    let bench = Bench::start().await;
    let now = now_ms();
    for (session, expires_at, least) in [
        ("phone", now + 7_200_000, now + 7_200_000),
        ("laptop", now + 1_000, now + ENDED_TTL_MS),
        ("tablet", i64::MAX, now + YEAR_MS),
    ] {
        bench.live.leave(7, &sid(session), Millis(expires_at)).await.unwrap();
        let until = bench.refused_until(7, session).unwrap();
        assert!((least..=least + 10_000).contains(&until), "{session}: {until}, not {least}");
    }
}

#[tokio::test]
async fn a_session_ended_again_is_refused_no_less_long() {
    let bench = Bench::start().await;
    let expires_at = now_ms() + 7_200_000;
    bench.live.leave(7, &sid("phone"), Millis(expires_at)).await.unwrap();
    // What a rebuild of the fence does: it knows of no token.
    bench.live.end_again(&[(7, sid("phone"))]).await.unwrap();
    assert_eq!(bench.refused_until(7, "phone"), Some(expires_at));
}

#[tokio::test]
async fn the_end_of_a_session_is_not_that_of_another_users_session_of_the_same_name() {
    let bench = Bench::start().await;
    bench.live.leave(7, &sid("phone"), Millis(0)).await.unwrap();
    assert_eq!(bench.beat(8, "phone", Online).await, HeartbeatOutcome::Present(OnlineStatus::Online));
    assert_eq!(bench.beat(7, "phone", Online).await, HeartbeatOutcome::SessionEnded);
    // A name may look like user and name of another.
    bench.live.leave(1, &sid("2:phone"), Millis(0)).await.unwrap();
    assert_eq!(bench.beat(12, "phone", Online).await, HeartbeatOutcome::Present(OnlineStatus::Online));
    assert_eq!(bench.beat(2, "phone", Online).await, HeartbeatOutcome::Present(OnlineStatus::Online));
    assert_eq!(bench.beat(1, "2:phone", Online).await, HeartbeatOutcome::SessionEnded);
    assert_eq!(bench.transitions(), [8, 12, 2].map(|user| format!("{user} online heartbeat")));
}

#[tokio::test]
async fn ended_sessions_whose_tokens_have_expired_are_forgotten_two_for_each_that_ends() {
    let bench = Bench::start().await;
    for (number, member) in ["7:a", "7:b", "8:a", "8:b", "8:c"].iter().enumerate() {
        bench.redis.cli(&["ZADD", ENDED, &(1_000 + number).to_string(), member]);
    }
    let members =
        || bench.redis.cli(&["ZRANGE", ENDED, "0", "-1"]).lines().map(str::to_owned).collect::<Vec<_>>();
    bench.live.leave(7, &sid("phone"), Millis(0)).await.unwrap();
    assert_eq!(members(), ["0", "8:a", "8:b", "8:c", "7:phone"], "0 is the mark of a whole set");
    // Ended again is one call more.
    bench.live.leave(7, &sid("phone"), Millis(0)).await.unwrap();
    assert_eq!(members(), ["0", "8:c", "7:phone"]);
    for _ in 0..2 {
        bench.live.end_again(&[(7, sid("phone")), (9, sid("phone"))]).await.unwrap();
    }
    assert_eq!(members(), ["0", "7:phone", "9:phone"], "and none whose token may live is forgotten");
}

#[tokio::test]
async fn a_logout_is_not_why_a_user_is_away_whose_online_session_had_died() {
    for leaves in ["laptop", "tablet"] {
        let bench = Bench::start().await;
        bench.beat(7, "laptop", Online).await;
        bench.beat(7, "tablet", Away).await;
        bench.beat(7, "phone", Away).await;
        bench.age_session(7, "laptop", TTL_MS + 5_000);
        let died = (bench.field(7, "s:laptop").parse::<i64>().unwrap() + TTL_MS).to_string();
        bench.live.leave(7, &sid(leaves), Millis(0)).await.unwrap();
        let expected = ["7", "away", "expired", died.as_str()].map(ToString::to_string);
        assert_eq!(bench.entries()[1][..4], expected, "{leaves}");
        assert_eq!(bench.field(7, "since"), died);
    }
}

#[tokio::test]
async fn on_the_deadlines_last_millisecond_no_key_without_a_ttl_is_left() {
    let bench = Bench::start().await;
    bench.beat(7, "laptop", Online).await;
    bench.beat(7, "phone", Away).await;
    // The key is still there when Redis begins, and its time is over when it comes to set the TTL.
    let passed = (chrono::Utc::now().timestamp_millis() - 1).to_string();
    bench.redis.cli(&["ZADD", "presence:{0}:live", &passed, "7"]);
    bench.live.leave(7, &sid("laptop"), Millis(0)).await.unwrap();
    assert!(!bench.exists(7));
    assert_eq!(bench.transitions(), ["7 online heartbeat", "7 away logout"]);
}

#[tokio::test]
async fn hundreds_of_sessions_end_in_a_few_calls() {
    let bench = Bench::start().await;
    for user in 1..=3 {
        bench.beat(user, &format!("phone{user}"), Online).await;
    }
    bench.beat(2, "laptop", Online).await;
    // Some were there, most were not, and one comes twice, in another call.
    let mut sessions: Vec<_> = (1..=700).map(|user| (user, sid(&format!("phone{user}")))).collect();
    sessions.push((1, sid("phone1")));
    bench.redis.cli(&["CONFIG", "RESETSTAT"]);
    bench.live.end_again(&sessions).await.unwrap();
    assert_eq!([1, 2, 3].map(|user| bench.exists(user)), [false, true, false]);
    assert_eq!(bench.transitions()[3..], ["1 offline logout", "3 offline logout"]);
    assert_eq!(bench.redis.cli(&["ZCOUNT", ENDED, "(0", "+inf"]), "700");
    let calls = bench.redis.cli(&["INFO", "commandstats"]);
    let calls = calls.lines().find_map(|line| line.strip_prefix("cmdstat_evalsha:calls=")).unwrap();
    assert!(calls.starts_with("3,") || calls.starts_with("4,"), "{calls}");
}
