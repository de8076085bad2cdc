//! `lua/arrive.lua`: how often heartbeats may change a status, and how many sessions a presence key holds.

use presenced::live::{Heartbeat, HeartbeatOutcome, LiveSet, Options};
use presenced::model::HeartbeatWord::{self, Away, Login, Online, Touch};
use presenced::model::{Millis, OnlineStatus, UserId};

use super::{Bench, TTL_MS, key, options, session};

const ONLINE: HeartbeatOutcome = HeartbeatOutcome::Present(OnlineStatus::Online);
const AWAY: HeartbeatOutcome = HeartbeatOutcome::Present(OnlineStatus::Away);

/// Comes online and changes the status as often as heartbeats may within a minute: ten times, the last time to online.
async fn use_up(bench: &Bench, user: UserId) {
    assert_eq!(bench.beat(user, "phone", Online).await, ONLINE);
    for _ in 0..5 {
        assert_eq!(bench.beat(user, "phone", Away).await, AWAY);
        assert_eq!(bench.beat(user, "phone", Online).await, ONLINE);
    }
    assert_eq!(bench.transitions().len(), 11);
}

#[tokio::test]
async fn the_eleventh_change_within_a_minute_counts_as_a_heartbeat_and_the_status_stays() {
    let bench = Bench::start().await;
    use_up(&bench, 7).await;
    let before = bench.field(7, "changes");
    for word in [Away, Touch, Away] {
        bench.age_session(7, "phone", 1_000);
        let (now, outcome) = bench.beat_at(7, "phone", word).await;
        assert_eq!(outcome, ONLINE, "{word:?}: the answer says what stays");
        assert_eq!(bench.field(7, "s:phone"), now.0.to_string(), "and so does the session");
        assert_eq!((bench.field(7, "status").as_str(), bench.deadline(7)), ("online", Some(now.0 + TTL_MS)));
    }
    assert_eq!(bench.field(7, "changes"), before, "what is refused does not count");
    assert_eq!(bench.transitions().len(), 11);
    assert_eq!(bench.beat(8, "phone", Online).await, ONLINE);
    assert_eq!(bench.beat(8, "phone", Away).await, AWAY, "another user's changes are another's");
}

#[tokio::test]
async fn an_away_user_whose_changes_are_used_up_stays_away_until_one_is_given_back() {
    let bench = Bench::start().await;
    use_up(&bench, 7).await;
    bench.age(7, 6_000);
    assert_eq!(bench.beat(7, "phone", Away).await, AWAY, "one is given back every six seconds");
    assert_eq!(bench.beat(7, "phone", Online).await, AWAY);
    assert_eq!(bench.field(7, "s:phone").split_once(' ').unwrap().1, "away");
    bench.age(7, 5_000);
    assert_eq!(bench.beat(7, "phone", Online).await, AWAY);
    bench.age(7, 1_000);
    assert_eq!(bench.beat(7, "phone", Online).await, ONLINE);
    assert_eq!(bench.beat(7, "phone", Away).await, ONLINE);
    bench.age(7, 60_000);
    for word in [Away, Online, Away, Online, Away, Online, Away, Online, Away, Online] {
        bench.beat(7, "phone", word).await;
    }
    assert_eq!(bench.transitions().len(), 11 + 2 + 10, "after a minute all ten are there again");
}

#[tokio::test]
async fn several_sessions_share_the_changes_of_their_user() {
    let bench = Bench::start().await;
    use_up(&bench, 7).await;
    assert_eq!(bench.beat(7, "laptop", Away).await, ONLINE, "the phone is online");
    assert_eq!(bench.beat(7, "phone", Away).await, ONLINE, "this would make the user away");
    bench.live.leave(7, &session("phone"), Millis(0)).await.unwrap();
    assert_eq!(bench.field(7, "status"), "away", "the end of a session is no heartbeat");
    assert_eq!(bench.transitions().last().unwrap(), "7 away logout");
    assert_eq!(bench.beat(7, "laptop", Online).await, AWAY);
}

#[tokio::test]
async fn a_login_an_administrator_and_a_death_change_the_status_of_a_user_whose_changes_are_used_up() {
    let bench = Bench::start().await;
    use_up(&bench, 7).await;
    let before = bench.field(7, "changes");
    bench.live.set_status(7, OnlineStatus::Away).await.unwrap();
    assert_eq!(bench.beat(7, "phone", Online).await, AWAY);
    assert_eq!(bench.beat(7, "phone", Login).await, ONLINE);
    bench.beat(7, "laptop", Away).await;
    bench.age_session(7, "phone", TTL_MS + 5_000);
    assert_eq!(bench.beat(7, "laptop", Away).await, AWAY, "the phone has died");
    assert_eq!(bench.transitions()[11..], ["7 away admin", "7 online login", "7 away expired"]);
    assert_eq!(bench.field(7, "changes"), before);
}

#[tokio::test]
async fn coming_online_is_no_change_that_counts_and_begins_a_new_count() {
    let bench = Bench::start().await;
    use_up(&bench, 7).await;
    bench.live.leave(7, &session("phone"), Millis(0)).await.unwrap();
    assert_eq!(bench.beat(7, "laptop", Away).await, AWAY);
    assert_eq!(bench.field(7, "changes"), "");
    assert_eq!(bench.beat(7, "laptop", Online).await, ONLINE);
    // What an administrator lent is returned by whatever the first heartbeat says.
    bench.live.set_status(8, OnlineStatus::Online).await.unwrap();
    assert_eq!(bench.beat(8, "phone", Away).await, AWAY);
    assert_eq!(bench.field(8, "changes"), "");
}

#[tokio::test]
async fn a_batch_sent_twice_takes_one_change() {
    let bench = Bench::start().await;
    bench.beat(7, "phone", Online).await;
    let batch = [Heartbeat { who: key(7, "phone"), word: Away }];
    bench.live.arrive(0, &batch).await.unwrap();
    let (changes, transitions) = (bench.field(7, "changes"), bench.transitions());
    assert_eq!(bench.live.arrive(0, &batch).await.unwrap().1, [AWAY]);
    assert_eq!((bench.field(7, "changes"), bench.transitions()), (changes, transitions));
}

/// A bench whose presence keys hold few sessions.
async fn narrow(max_sessions: u32) -> Bench {
    let mut bench = Bench::unfenced().await;
    bench.live = LiveSet::open(Options { max_sessions, ..options(&bench.redis, "narrow", 1) }).unwrap();
    bench.live.ready().await.unwrap();
    bench.raise_fence().await;
    bench
}

/// A heartbeat of each, a second apart.
async fn one_by_one(bench: &Bench, user: UserId, beats: &[(&str, HeartbeatWord)]) {
    for (sid, word) in beats {
        bench.age(user, 1_000);
        bench.beat(user, sid, *word).await;
    }
}

fn sessions(bench: &Bench, user: UserId) -> Vec<String> {
    let fields = bench.redis.cli(&["HKEYS", &format!("presence:{{0}}:user:{user}")]);
    let mut fields: Vec<_> =
        fields.lines().filter_map(|field| field.strip_prefix("s:")).map(str::to_owned).collect();
    fields.sort_unstable();
    fields
}

#[tokio::test]
async fn a_key_holds_so_many_sessions_and_the_one_heard_longest_ago_is_forgotten_first() {
    let bench = narrow(3).await;
    bench.beat(7, "a", Online).await;
    one_by_one(&bench, 7, &[("b", Online), ("c", Online), ("a", Online), ("d", Online)]).await;
    assert_eq!(sessions(&bench, 7), ["a", "c", "d"]);
    let (now, outcome) = bench.beat_at(7, "b", Touch).await;
    assert_eq!(
        (outcome, bench.deadline(7)),
        (ONLINE, Some(now.0 + TTL_MS)),
        "it is a new one if it speaks again"
    );
    assert_eq!(sessions(&bench, 7), ["a", "b", "d"]);
    bench.beat(7, "b", Online).await;
    assert_eq!(sessions(&bench, 7), ["a", "b", "d"], "one that is there needs no room");
    bench.live.leave(7, &session("c"), Millis(0)).await.unwrap();
    assert_eq!(bench.beat(7, "c", Online).await, HeartbeatOutcome::SessionEnded, "nor may it come back");
    assert_eq!(sessions(&bench, 7), ["a", "b", "d"]);
    assert_eq!(bench.transitions(), ["7 online heartbeat"]);
}

#[tokio::test]
async fn dead_sessions_are_forgotten_before_any_that_is_alive_and_a_lowered_bound_holds_at_the_next_new_one()
{
    let bench = narrow(3).await;
    bench.beat(7, "a", Online).await;
    one_by_one(&bench, 7, &[("b", Online), ("c", Online)]).await;
    bench.age_session(7, "c", TTL_MS + 1_000);
    bench.beat(7, "b", Online).await;
    bench.beat(7, "d", Online).await;
    assert_eq!(sessions(&bench, 7), ["a", "b", "d"]);
    let lowered = LiveSet::open(Options { max_sessions: 1, ..options(&bench.redis, "lowered", 1) }).unwrap();
    lowered.ready().await.unwrap();
    for _ in 0..2 {
        let batch = [Heartbeat { who: key(7, "e"), word: Away }];
        assert_eq!(lowered.arrive(0, &batch).await.unwrap().1, [AWAY]);
        assert_eq!(sessions(&bench, 7), ["e"]);
    }
}

#[tokio::test]
async fn a_session_that_was_forgotten_keeps_nobody_online() {
    let bench = narrow(2).await;
    bench.beat(7, "laptop", Online).await;
    one_by_one(&bench, 7, &[("phone", Away)]).await;
    assert_eq!(bench.field(7, "status"), "online");
    assert_eq!(bench.beat(7, "tablet", Away).await, AWAY);
    assert_eq!(sessions(&bench, 7), ["phone", "tablet"]);
    assert_eq!(bench.live.read(&[7]).await.unwrap()[0].unwrap().status, OnlineStatus::Away);
    assert_eq!(bench.transitions(), ["7 online heartbeat", "7 away heartbeat"]);
}

#[tokio::test]
async fn of_sixty_sessions_the_last_fifty_stay() {
    let bench = Bench::start().await;
    for number in 0..60 {
        bench.beat(7, &format!("s{number:02}"), Online).await;
    }
    let kept: Vec<String> = (10..60).map(|number| format!("s{number:02}")).collect();
    assert_eq!(sessions(&bench, 7), kept);
    // What is counted takes no session's room.
    bench.beat(7, "s59", Away).await;
    bench.redis.cli(&["HSET", "presence:{0}:user:7", "changes", "1"]);
    bench.beat(7, "s60", Online).await;
    assert_eq!(sessions(&bench, 7).len(), 50);
}
