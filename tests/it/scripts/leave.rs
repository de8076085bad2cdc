//! `lua/leave.lua`

use presenced::live::HeartbeatOutcome;
use presenced::model::HeartbeatWord::{Away, Online};
use presenced::model::{Millis, SessionId};

use super::{Bench, TTL_MS};

fn sid(name: &str) -> SessionId {
    SessionId::parse(name).unwrap()
}

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
    let mark = bench.remembered_for(7, "phone").unwrap();
    assert!((890..=900).contains(&mark), "the mark stands as long as an access token lives: {mark}");
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
async fn a_session_that_was_not_there_is_marked_and_changes_nothing() {
    let bench = Bench::start().await;
    bench.beat(7, "phone", Online).await;
    bench.live.leave(7, &sid("tablet"), Millis(0)).await.unwrap();
    bench.live.leave(9, &sid("none"), Millis(0)).await.unwrap();
    assert!(bench.deadline(7).is_some());
    assert_eq!(bench.transitions(), ["7 online heartbeat"]);
    assert!(bench.remembered_for(7, "tablet").is_some() && bench.remembered_for(9, "none").is_some());
}

#[tokio::test]
async fn the_mark_stands_as_long_as_a_known_token() {
    let bench = Bench::start().await;
    let now = chrono::Utc::now().timestamp_millis();
    for (session, expires_at, least, most) in [
        ("phone", now + 7_200_000, 7_190, 7_200),
        ("laptop", now + 1_000, 890, 900),
        ("tablet", i64::MAX, 31_535_000, 31_536_000),
    ] {
        bench.live.leave(7, &sid(session), Millis(expires_at)).await.unwrap();
        let mark = bench.remembered_for(7, session).unwrap();
        assert!((least..=most).contains(&mark), "{expires_at}: {mark}");
    }
}

#[tokio::test]
async fn a_session_ended_again_is_refused_no_less_long() {
    let bench = Bench::start().await;
    let expires_at = chrono::Utc::now().timestamp_millis() + 7_200_000;
    bench.live.leave(7, &sid("phone"), Millis(expires_at)).await.unwrap();
    // What a rebuild of the fence does: it knows of no token.
    bench.live.end_again(&[(7, sid("phone"))]).await.unwrap();
    assert_eq!(bench.redis.cli(&["ZSCORE", "presence:{0}:ended", "7:phone"]), expires_at.to_string());
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
    // With the mark of a whole set.
    assert_eq!(bench.redis.cli(&["ZCARD", "presence:{0}:ended"]), "701");
    let calls = bench.redis.cli(&["INFO", "commandstats"]);
    let calls = calls.lines().find_map(|line| line.strip_prefix("cmdstat_evalsha:calls=")).unwrap();
    assert!(calls.starts_with("3,") || calls.starts_with("4,"), "{calls}");
}

#[tokio::test]
async fn a_session_that_ends_ends_no_session_of_another_user_that_has_its_name() {
    let bench = Bench::start().await;
    for user in [7, 8] {
        bench.beat(user, "phone", Online).await;
    }
    bench.live.leave(7, &sid("phone"), Millis(0)).await.unwrap();
    bench.age(8, TTL_MS + 1_000);
    assert_eq!(bench.beat(7, "phone", Online).await, HeartbeatOutcome::SessionEnded);
    assert!(matches!(bench.beat(8, "phone", Online).await, HeartbeatOutcome::Present(_)));
}

#[tokio::test]
async fn ended_sessions_whose_tokens_have_expired_are_forgotten_a_few_at_a_time() {
    let bench = Bench::start().await;
    for number in 1..=5 {
        bench.redis.cli(&["ZADD", "presence:{0}:ended", &number.to_string(), &format!("7:old{number}")]);
    }
    bench.live.leave(7, &sid("phone"), Millis(0)).await.unwrap();
    let left = bench.redis.cli(&["ZRANGE", "presence:{0}:ended", "0", "-1"]);
    assert_eq!(left.lines().collect::<Vec<_>>(), ["0", "7:old3", "7:old4", "7:old5", "7:phone"]);
}
