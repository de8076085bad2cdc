//! `lua/arrive.lua`, and what it and `lua/heartbeat.lua` make of a heartbeat together

use presenced::live::{Heartbeat, HeartbeatOutcome, Verdict};
use presenced::model::HeartbeatWord::{Away, Login, Online, Touch};
use presenced::model::{Millis, OnlineStatus};

use super::{Bench, TTL_MS, key};

const ONLINE: HeartbeatOutcome = HeartbeatOutcome::Present(OnlineStatus::Online);
const AWAY: HeartbeatOutcome = HeartbeatOutcome::Present(OnlineStatus::Away);

#[tokio::test]
async fn a_first_heartbeat_makes_key_deadline_and_transition_in_one_instant() {
    let bench = Bench::start().await;
    let (now, outcome) = bench.beat_at(7, "phone", Online).await;
    assert_eq!(outcome, ONLINE);
    assert_eq!(bench.deadline(7), Some(now.0 + TTL_MS));
    assert_eq!(bench.field(7, "status"), "online");
    assert_eq!(bench.field(7, "since"), now.0.to_string());
    assert_eq!(bench.field(7, "s:phone"), now.0.to_string());
    let at = now.0.to_string();
    assert_eq!(bench.entries(), [["7", "online", "heartbeat", &at, &at].map(ToString::to_string)]);
}

#[tokio::test]
async fn a_steady_heartbeat_moves_the_deadline_and_appends_nothing() {
    let bench = Bench::start().await;
    bench.beat(7, "phone", Online).await;
    bench.age(7, 30_000);
    let (now, outcome) = bench.beat_at(7, "phone", Online).await;
    assert_eq!(outcome, ONLINE);
    assert_eq!(bench.deadline(7), Some(now.0 + TTL_MS));
    assert_eq!(bench.transitions(), ["7 online heartbeat"]);
}

#[tokio::test]
async fn a_login_is_recorded_as_one() {
    let bench = Bench::start().await;
    assert_eq!(bench.beat(7, "phone", Login).await, ONLINE);
    assert_eq!(bench.beat(7, "phone", Login).await, ONLINE);
    assert_eq!(bench.transitions(), ["7 online login"]);
}

#[tokio::test]
async fn away_means_away_until_the_next_heartbeat_says_otherwise_and_a_touch_leaves_it() {
    let bench = Bench::start().await;
    assert_eq!(bench.beat(7, "phone", Online).await, ONLINE);
    assert_eq!(bench.beat(7, "phone", Away).await, AWAY);
    assert_eq!(bench.beat(7, "phone", Touch).await, AWAY);
    assert_eq!(bench.beat(7, "phone", Away).await, AWAY);
    assert_eq!(bench.beat(7, "phone", Online).await, ONLINE);
    assert_eq!(bench.transitions(), ["7 online heartbeat", "7 away heartbeat", "7 online heartbeat"]);
}

#[tokio::test]
async fn a_touch_brings_someone_offline_online() {
    let bench = Bench::start().await;
    assert_eq!(bench.beat(7, "phone", Touch).await, ONLINE);
    assert_eq!(bench.transitions(), ["7 online heartbeat"]);
}

#[tokio::test]
async fn a_user_of_two_sessions_is_online_if_either_is() {
    let bench = Bench::start().await;
    bench.beat(7, "phone", Online).await;
    bench.beat(7, "laptop", Online).await;
    assert_eq!(bench.beat(7, "phone", Away).await, ONLINE);
    assert_eq!(bench.beat(7, "laptop", Away).await, AWAY);
    assert_eq!(bench.beat(7, "laptop", Touch).await, AWAY);
    assert_eq!(bench.beat(7, "phone", Online).await, ONLINE);
    assert_eq!(bench.transitions(), ["7 online heartbeat", "7 away heartbeat", "7 online heartbeat"]);
}

#[tokio::test]
async fn a_new_session_that_merely_reads_leaves_an_away_user_away() {
    let bench = Bench::start().await;
    bench.beat(7, "phone", Away).await;
    assert_eq!(bench.beat(7, "laptop", Touch).await, AWAY);
    assert_eq!(bench.transitions(), ["7 away heartbeat"]);
}

#[tokio::test]
async fn when_the_online_session_dies_the_idle_one_makes_the_user_away_since_then() {
    let bench = Bench::start().await;
    let (_, outcome) = bench.beat_at(7, "laptop", Online).await;
    assert_eq!(outcome, ONLINE);
    bench.beat(7, "phone", Away).await;
    bench.age_session(7, "laptop", TTL_MS + 5_000);
    let died = bench.field(7, "s:laptop").parse::<i64>().unwrap() + TTL_MS;
    assert_eq!(bench.beat(7, "phone", Away).await, AWAY);
    let entries = bench.entries();
    assert_eq!(entries[1][..4], ["7", "away", "expired", died.to_string().as_str()].map(ToString::to_string));
    assert_eq!(bench.field(7, "s:laptop"), "", "the dead session is dropped");
}

/// Someone whose laptop was online and has died, and whose phone is idle; when the laptop died.
async fn outlived_by_an_idle_phone(bench: &Bench) -> String {
    bench.beat(7, "laptop", Online).await;
    bench.beat(7, "phone", Away).await;
    bench.age_session(7, "laptop", TTL_MS + 5_000);
    (bench.field(7, "s:laptop").parse::<i64>().unwrap() + TTL_MS).to_string()
}

#[tokio::test]
async fn whoever_next_says_away_the_user_is_away_since_the_online_session_died() {
    for speaks in ["phone", "laptop", "tablet"] {
        let bench = Bench::start().await;
        let died = outlived_by_an_idle_phone(&bench).await;
        assert_eq!(bench.beat(7, speaks, Away).await, AWAY);
        let expected = ["7", "away", "expired", died.as_str()].map(ToString::to_string);
        assert_eq!(bench.entries()[1][..4], expected, "{speaks}");
    }
}

#[tokio::test]
async fn a_mere_read_of_a_new_or_dead_session_leaves_a_user_away_whose_online_session_died() {
    for reads in ["laptop", "tablet"] {
        let bench = Bench::start().await;
        outlived_by_an_idle_phone(&bench).await;
        assert_eq!(bench.live.read(&[7]).await.unwrap()[0].unwrap().status, OnlineStatus::Away);
        assert_eq!(bench.beat(7, reads, Touch).await, AWAY, "{reads}");
        assert_eq!(bench.transitions(), ["7 online heartbeat", "7 away expired"]);
    }
}

#[tokio::test]
async fn dead_sessions_do_not_pile_up() {
    let bench = Bench::start().await;
    bench.beat(7, "desk", Online).await;
    for day in 0..20 {
        bench.beat(7, &format!("phone-{day}"), Online).await;
        bench.age_session(7, &format!("phone-{day}"), TTL_MS + 1_000);
        bench.beat(7, "desk", Online).await;
    }
    let fields = bench.redis.cli(&["HLEN", "presence:{0}:user:7"]).parse::<u32>().unwrap();
    assert!(fields <= 4, "status, since, desk and the last phone; there are {fields} fields");
}

#[tokio::test]
async fn tokens_without_a_session_share_one_field() {
    let bench = Bench::start().await;
    let (now, _) = bench.beat_at(7, "", Online).await;
    assert_eq!(bench.field(7, "s:"), now.0.to_string());
    assert_eq!(bench.beat(7, "", Away).await, AWAY);
}

#[tokio::test]
async fn who_returns_after_an_unclaimed_deadline_has_been_offline_since_it() {
    let bench = Bench::start().await;
    bench.beat(7, "phone", Away).await;
    bench.age(7, TTL_MS + 3_000);
    let missed: i64 = bench.redis.cli(&["ZSCORE", "presence:{0}:live", "7"]).parse().unwrap();
    let (now, outcome) = bench.beat_at(7, "phone", Online).await;
    assert_eq!(outcome, ONLINE);
    assert_eq!(bench.deadline(7), Some(now.0 + TTL_MS));
    let entries = bench.entries();
    assert_eq!(
        entries[1][1..],
        ["offline", "expired", &missed.to_string(), &(missed - TTL_MS).to_string()].map(ToString::to_string)
    );
    assert_eq!(entries[2][1..3], ["online", "heartbeat"].map(ToString::to_string));
    assert_eq!(entries.len(), 3);
}

#[tokio::test]
async fn a_blocked_user_does_not_come_online_and_another_of_the_batch_does() {
    let bench = Bench::start().await;
    bench.tell(&[(7, Verdict::Block)]).await;
    let batch = [7, 8].map(|user| Heartbeat { who: key(user, "phone"), word: Online });
    for _ in 0..2 {
        let (_, outcomes) = bench.live.arrive(0, &batch).await.unwrap();
        assert_eq!(outcomes, [HeartbeatOutcome::Blocked, ONLINE]);
    }
    assert!(!bench.exists(7));
    assert_eq!(bench.deadline(7), None);
    assert_eq!(bench.transitions(), ["8 online heartbeat"]);
}

#[tokio::test]
async fn an_ended_session_is_refused_whether_or_not_the_user_is_present() {
    let bench = Bench::start().await;
    bench.beat(7, "phone", Online).await;
    bench.live.leave(7, key(7, "phone").sid.as_ref().unwrap(), Millis(0)).await.unwrap();
    assert_eq!(bench.beat(7, "phone", Online).await, HeartbeatOutcome::SessionEnded);
    assert_eq!(bench.beat(7, "laptop", Online).await, ONLINE);
    assert_eq!(bench.beat(7, "phone", Touch).await, HeartbeatOutcome::SessionEnded);
    assert_eq!(bench.transitions(), ["7 online heartbeat", "7 offline logout", "7 online heartbeat"]);
}

#[tokio::test]
async fn without_a_fence_nobody_comes_online_and_nobody_present_is_disturbed() {
    let bench = Bench::start().await;
    bench.beat(7, "phone", Online).await;
    bench.redis.cli(&["DEL", "presence:{0}:fence"]);
    assert_eq!(bench.beat(7, "phone", Online).await, ONLINE);
    assert_eq!(bench.beat(8, "phone", Online).await, HeartbeatOutcome::Unfenced);
    assert!(!bench.exists(8));
}

#[tokio::test]
async fn a_key_of_another_type_is_made_anew() {
    let bench = Bench::start().await;
    bench.redis.cli(&["SET", "presence:{0}:user:7", "oops"]);
    let batch = [7, 8].map(|user| Heartbeat { who: key(user, "phone"), word: Online });
    let (_, outcomes) = bench.live.arrive(0, &batch).await.unwrap();
    assert_eq!(outcomes, [ONLINE, ONLINE]);
    assert_eq!(bench.field(7, "status"), "online");
}

#[tokio::test]
async fn a_batch_run_twice_is_a_batch_run_once() {
    let bench = Bench::start().await;
    let batch: Vec<_> = [(1, Login), (2, Online), (3, Away), (4, Touch)]
        .into_iter()
        .map(|(user, word)| Heartbeat { who: key(user, "phone"), word })
        .collect();
    let (_, first) = bench.live.arrive(0, &batch).await.unwrap();
    let (_, again) = bench.live.arrive(0, &batch).await.unwrap();
    assert_eq!(first, again);
    assert_eq!(
        bench.transitions(),
        ["1 online login", "2 online heartbeat", "3 away heartbeat", "4 online heartbeat"]
    );
}

#[tokio::test]
async fn a_flushed_script_cache_costs_one_call() {
    let bench = Bench::start().await;
    bench.beat(7, "phone", Online).await;
    bench.redis.cli(&["SCRIPT", "FLUSH"]);
    assert_eq!(bench.beat(7, "phone", Online).await, ONLINE);
}

#[tokio::test]
async fn ten_thousand_dead_sessions_are_dropped_at_once() {
    let bench = Bench::start().await;
    bench.beat(7, "desk", Online).await;
    for chunk in 0..10 {
        let mut command = vec!["HSET".to_owned(), "presence:{0}:user:7".to_owned()];
        for session in 0..1_000 {
            command.extend([format!("s:dead-{chunk}-{session}"), "1000".to_owned()]);
        }
        bench.redis.cli(&command.iter().map(String::as_str).collect::<Vec<_>>());
    }
    assert_eq!(bench.beat(7, "phone", Online).await, ONLINE);
    assert_eq!(bench.redis.cli(&["HLEN", "presence:{0}:user:7"]), "4");
}

#[tokio::test]
async fn heartbeats_change_a_status_ten_times_a_minute_and_count_beyond_that() {
    let bench = Bench::start().await;
    assert_eq!(bench.beat(7, "phone", Online).await, ONLINE, "coming online is not counted");
    for change in 0..10 {
        let (word, outcome) = if change % 2 == 0 { (Away, AWAY) } else { (Online, ONLINE) };
        assert_eq!(bench.beat(7, "phone", word).await, outcome, "change {change}");
    }
    for _ in 0..3 {
        let (now, outcome) = bench.beat_at(7, "phone", Away).await;
        assert_eq!(outcome, ONLINE, "the answer is the status that stays");
        assert_eq!(bench.deadline(7), Some(now.0 + TTL_MS), "and the heartbeat counts");
    }
    assert_eq!(bench.live.read(&[7]).await.unwrap()[0].unwrap().status, OnlineStatus::Online);
    assert_eq!(bench.transitions().len(), 11);
    // Six seconds later one change is given back.
    let full: i64 = bench.field(7, "changes").parse().unwrap();
    bench.redis.cli(&["HSET", "presence:{0}:user:7", "changes", &(full - 6_100_000).to_string()]);
    assert_eq!(bench.beat(7, "phone", Away).await, AWAY);
    assert_eq!(bench.beat(7, "phone", Online).await, AWAY);
    assert_eq!(bench.beat(7, "phone", Login).await, ONLINE, "a login is not counted");
}

#[tokio::test]
async fn a_presence_key_holds_so_many_sessions_and_forgets_the_one_heard_longest_ago() {
    let bench = Bench::start().await;
    for session in 0..60 {
        bench.beat(7, &format!("s{session}"), Online).await;
        bench.age_session(7, &format!("s{session}"), 60_000 - session * 1_000);
    }
    let fields = bench.redis.cli(&["HKEYS", "presence:{0}:user:7"]);
    let sessions: Vec<&str> = fields.lines().filter(|field| field.starts_with("s:")).collect();
    assert_eq!(sessions.len(), 50);
    assert!(!sessions.contains(&"s:s9") && sessions.contains(&"s:s10") && sessions.contains(&"s:s59"));
    assert_eq!(bench.beat(7, "s0", Online).await, ONLINE, "forgotten, it is a new one");
}
