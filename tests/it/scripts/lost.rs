//! How passed deadlines count after data were lost: none says anything while claims are on hold, and no expiry is dated before
//! the lost data served last (`lua/lib/transitions.lua`).

use std::time::Duration;

use presenced::live::{Loss, StatusOutcome, Verdict};
use presenced::model::HeartbeatWord::{Away, Online};
use presenced::model::{Millis, OnlineStatus, UserId};

use super::{Bench, LIVE, TTL_MS, now_ms, session};

/// What finds that the deadline of a user has passed.
#[derive(Clone, Copy, Debug)]
enum Way {
    Claim,
    Heartbeat,
    Logout,
    SetOffline,
    SetOnline,
    Block,
}

impl Way {
    const ALL: [Self; 6] =
        [Self::Claim, Self::Heartbeat, Self::Logout, Self::SetOffline, Self::SetOnline, Self::Block];

    async fn go(self, bench: &Bench, user: UserId) {
        match self {
            Self::Claim => drop(bench.live.claim(0, &[user]).await.unwrap()),
            Self::Heartbeat => drop(bench.beat(user, "phone", Online).await),
            Self::Logout => bench.live.leave(user, &session("phone"), Millis(0)).await.unwrap(),
            Self::SetOffline => set(bench, user, OnlineStatus::Offline).await,
            Self::SetOnline => set(bench, user, OnlineStatus::Online).await,
            Self::Block => drop(bench.tell(&[(user, Verdict::Block)]).await),
        }
    }

    /// What it writes while the deadline tells nothing.
    const fn on_hold(self) -> &'static [&'static str] {
        match self {
            Self::Claim => &[],
            Self::Heartbeat => &["7 online heartbeat"],
            Self::Logout => &["7 offline logout"],
            Self::SetOffline => &["7 offline admin"],
            Self::SetOnline => &["7 online admin"],
            Self::Block => &["7 offline blocked"],
        }
    }
}

async fn set(bench: &Bench, user: UserId, to: OnlineStatus) {
    assert!(matches!(bench.live.set_status(user, to).await.unwrap(), StatusOutcome::Done));
}

/// A user whose deadline, as an older copy has it, has passed a minute ago.
async fn user_of_an_older_copy(bench: &Bench, way: Way) -> i64 {
    bench.beat(7, "phone", Online).await;
    let deadline = now_ms() - 60_000;
    bench.redis.cli(&["ZADD", LIVE, &deadline.to_string(), "7"]);
    // A logout finds a session only in a key that is still there.
    if !matches!(way, Way::Logout) {
        bench.redis.cli(&["DEL", "presence:{0}:user:7"]);
    }
    bench.redis.cli(&["XTRIM", super::STREAM, "MAXLEN", "0"]);
    deadline
}

#[tokio::test]
async fn no_expiry_is_dated_before_the_lost_data_served_last_whatever_finds_it() {
    for way in Way::ALL {
        let bench = Bench::unfenced().await;
        let lost = now_ms() - 20_000;
        bench.raise_fence_after(&Loss { served_until: Millis(lost), ..Loss::default() }).await;
        let deadline = user_of_an_older_copy(&bench, way).await;
        way.go(&bench, 7).await;
        let first = bench.entries().swap_remove(0);
        let expected = ["7", "offline", "expired", &lost.to_string(), &(deadline - TTL_MS).to_string()];
        assert_eq!(first, expected.map(ToString::to_string), "{way:?}");
    }
}

#[tokio::test]
async fn nor_later_than_now_though_the_clock_was_set_back_since_the_loss() {
    for way in Way::ALL {
        let bench = Bench::unfenced().await;
        let served_until = Millis(now_ms() + 3_600_000);
        bench.raise_fence_after(&Loss { served_until, ..Loss::default() }).await;
        user_of_an_older_copy(&bench, way).await;
        let before = now_ms();
        way.go(&bench, 7).await;
        let at: i64 = bench.entries()[0][3].parse().unwrap();
        assert!((before..=now_ms()).contains(&at), "{way:?}: {at}");
    }
}

#[tokio::test]
async fn a_deadline_later_than_the_loss_dates_its_expiry_whatever_finds_it() {
    for way in Way::ALL {
        let bench = Bench::unfenced().await;
        let served_until = Millis(now_ms() - 90_000);
        bench.raise_fence_after(&Loss { served_until, ..Loss::default() }).await;
        let deadline = user_of_an_older_copy(&bench, way).await;
        way.go(&bench, 7).await;
        assert_eq!(bench.entries()[0][3], deadline.to_string(), "{way:?}");
    }
}

#[tokio::test]
async fn on_hold_a_passed_deadline_tells_nothing_whatever_finds_it() {
    for way in Way::ALL {
        let bench = Bench::unfenced().await;
        bench.raise_fence_after(&Loss { hold: Duration::from_mins(2), ..Loss::default() }).await;
        user_of_an_older_copy(&bench, way).await;
        let before = now_ms();
        way.go(&bench, 7).await;
        assert_eq!(bench.transitions(), way.on_hold(), "{way:?}");
        for entry in bench.entries() {
            assert!(entry[3].parse::<i64>().unwrap() >= before, "{way:?}: {entry:?}");
        }
    }
}

/// A user who was online by a session that is dead in an older copy, and is away by another.
async fn user_left_away(bench: &Bench) -> i64 {
    bench.beat(7, "laptop", Online).await;
    bench.beat(7, "phone", Away).await;
    bench.age_session(7, "laptop", TTL_MS + 60_000);
    bench.redis.cli(&["XTRIM", super::STREAM, "MAXLEN", "0"]);
    bench.field(7, "s:laptop").parse::<i64>().unwrap() + TTL_MS
}

#[tokio::test]
async fn a_session_that_is_dead_in_an_older_copy_may_have_been_heard_until_that_was_lost() {
    let bench = Bench::unfenced().await;
    let lost = now_ms() - 20_000;
    bench.raise_fence_after(&Loss { served_until: Millis(lost), ..Loss::default() }).await;
    user_left_away(&bench).await;
    bench.beat(7, "tablet", Away).await;
    let entry = bench.entries().swap_remove(0);
    assert_eq!(entry[1..4], ["away", "expired", &lost.to_string()].map(ToString::to_string));

    let bench = Bench::unfenced().await;
    bench.raise_fence_after(&Loss { hold: Duration::from_mins(2), ..Loss::default() }).await;
    let died = user_left_away(&bench).await;
    bench.beat(7, "tablet", Away).await;
    assert_eq!(bench.transitions(), ["7 away heartbeat"], "on hold it is not known to be dead");
    assert!(bench.entries()[0][3].parse::<i64>().unwrap() > died);
}
