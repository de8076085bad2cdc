//! `lua/take.lua`, `lua/ack.lua` and `lua/resign.lua`

use std::collections::HashMap;
use std::time::Duration;

use presenced::live::{LiveSet, Turn, Work};
use presenced::model::HeartbeatWord::Online;
use presenced::model::{OnlineStatus, Reason};

use super::{Bench, STREAM, live_set};
use crate::support::poll::eventually;

async fn mine(live: &LiveSet, most: u32) -> Work {
    match live.take(0, most).await.unwrap() {
        Turn::Mine(work) => work,
        Turn::Others(wait) => panic!("another has the turn for {wait:?}"),
    }
}

fn users(work: &Work) -> Vec<i64> {
    work.transitions.iter().map(|transition| transition.user).collect()
}

async fn come_online(bench: &Bench, users: impl IntoIterator<Item = i64>) {
    for user in users {
        bench.beat(user, "phone", Online).await;
    }
}

#[tokio::test]
async fn what_was_taken_is_given_again_until_it_is_acknowledged() {
    let bench = Bench::start().await;
    assert!(mine(&bench.live, 10).await.is_empty(), "nothing yet");
    come_online(&bench, 1..=3).await;
    let first = mine(&bench.live, 2).await;
    assert_eq!(users(&first), [1, 2]);
    assert_eq!(first.transitions[0].to, OnlineStatus::Online);
    assert_eq!(first.transitions[0].reason, Reason::Heartbeat);
    assert_eq!(mine(&bench.live, 2).await.transitions, first.transitions);
    let all = mine(&bench.live, 10).await;
    assert_eq!(users(&all), [1, 2, 3], "what is pending comes first, and the new after it");
    for _ in 0..2 {
        bench.live.ack(0, &all).await.unwrap();
    }
    assert!(mine(&bench.live, 10).await.is_empty());
    assert_eq!(bench.redis.cli(&["XLEN", STREAM]), "0");
    assert!(bench.redis.cli(&["XPENDING", STREAM, "persist"]).starts_with('0'));
    assert_eq!(bench.live.backlog().await.unwrap(), 0);
}

#[tokio::test]
async fn a_stream_or_a_group_that_is_missing_is_no_error_and_loses_nothing() {
    let bench = Bench::unfenced().await;
    assert!(mine(&bench.live, 10).await.is_empty());
    assert_eq!(bench.redis.cli(&["EXISTS", STREAM]), "0", "a look makes no stream");
    bench.raise_fence().await;
    come_online(&bench, 1..=2).await;
    bench.redis.cli(&["XGROUP", "DESTROY", STREAM, "persist"]);
    for _ in 0..2 {
        assert_eq!(users(&mine(&bench.live, 10).await), [1, 2]);
    }
}

#[tokio::test]
async fn another_persisters_turn_is_respected_and_a_dead_ones_taken_over() {
    let bench = Bench::start().await;
    come_online(&bench, 1..=3).await;
    let other = live_set(&bench.redis, "other", 1);
    other.ready().await.unwrap();
    let taken = mine(&other, 2).await;
    let Turn::Others(wait) = bench.live.take(0, 10).await.unwrap() else { panic!("two at once") };
    assert!(wait > Duration::ZERO && wait <= Duration::from_secs(3));
    // The other never comes back.
    let work = eventually(Duration::from_secs(5), async || match bench.live.take(0, 10).await.unwrap() {
        Turn::Mine(work) => Ok(work),
        Turn::Others(wait) => Err(wait),
    })
    .await;
    assert_eq!(users(&work), [1, 2, 3]);
    assert_eq!(work.transitions[..2], taken.transitions);
}

#[tokio::test]
async fn a_foreign_consumers_pending_entries_are_taken_over_in_order() {
    let bench = Bench::start().await;
    come_online(&bench, 1..=4).await;
    bench.redis.cli(&["XREADGROUP", "GROUP", "persist", "dead", "COUNT", "2", "STREAMS", STREAM, ">"]);
    let work = eventually(Duration::from_secs(5), async || match bench.live.take(0, 10).await.unwrap() {
        Turn::Mine(work) => Ok(work),
        Turn::Others(wait) => Err(wait),
    })
    .await;
    assert_eq!(users(&work), [1, 2, 3, 4]);
}

#[tokio::test]
async fn what_is_no_transition_is_named_and_let_go() {
    let bench = Bench::start().await;
    bench.redis.cli(&["XADD", STREAM, "*", "hello", "world"]);
    come_online(&bench, [5]).await;
    let work = mine(&bench.live, 10).await;
    assert_eq!(users(&work), [5]);
    assert_eq!(work.unreadable.len(), 1);
    bench.live.ack(0, &work).await.unwrap();
    assert_eq!(bench.live.backlog().await.unwrap(), 0);
}

#[tokio::test]
async fn a_name_is_taken_off_only_when_nothing_hangs_on_it() {
    let bench = Bench::start().await;
    come_online(&bench, [1]).await;
    let work = mine(&bench.live, 10).await;
    bench.live.resign().await.unwrap();
    let consumers = || bench.redis.cli(&["XINFO", "CONSUMERS", STREAM, "persist"]);
    assert!(consumers().contains("bench"));
    bench.live.ack(0, &work).await.unwrap();
    bench.live.resign().await.unwrap();
    assert!(!consumers().contains("bench"));
}

#[tokio::test]
async fn a_wait_ends_when_there_is_work() {
    let bench = Bench::start().await;
    let waiting = tokio::spawn({
        let live = bench.live.clone();
        async move {
            live.wait_for_transitions(&HashMap::new(), Duration::from_mins(1)).await.unwrap();
        }
    });
    come_online(&bench, [1]).await;
    tokio::time::timeout(Duration::from_secs(2), waiting).await.unwrap().unwrap();
}

#[tokio::test]
async fn what_the_group_has_passed_and_nobody_holds_is_given_all_the_same() {
    let bench = Bench::start().await;
    come_online(&bench, [1, 2]).await;
    assert_eq!(bench.redis.cli(&["XGROUP", "SETID", STREAM, "persist", "$"]), "OK");
    let work = mine(&bench.live, 10).await;
    assert_eq!(users(&work), [1, 2]);
    bench.live.ack(0, &work).await.unwrap();
    assert_eq!(bench.live.backlog().await.unwrap(), 0);
}

#[tokio::test]
async fn an_instant_or_a_user_that_cannot_be_is_no_transition() {
    let bench = Bench::start().await;
    for [user, at] in
        [["0", "5"], ["-3", "5"], ["7", "-1"], ["7", "999999999999999999"], ["7", "x"], ["x", "5"]]
    {
        bench.redis.cli(&[
            "XADD", STREAM, "*", "user", user, "to", "online", "reason", "login", "at", at, "seen", "5",
        ]);
    }
    let work = mine(&bench.live, 10).await;
    assert_eq!((work.transitions.len(), work.unreadable.len()), (0, 6));
}

#[tokio::test]
async fn letting_go_of_a_batch_takes_nothing_along_that_is_not_in_it() {
    let bench = Bench::start().await;
    come_online(&bench, 1..=6).await;
    let mut batch = mine(&bench.live, 3).await;
    // Someone acknowledges the second by hand: SQL lacks it, and nobody holds it.
    let forgotten = batch.transitions.remove(1);
    bench.redis.cli(&["XACK", STREAM, "persist", &forgotten.id.to_string()]);
    for _ in 0..2 {
        bench.live.ack(0, &batch).await.unwrap();
    }
    assert_eq!(bench.redis.cli(&["XLEN", STREAM]), "4");
    let rest = mine(&bench.live, 10).await;
    assert_eq!(users(&rest), [4, 5, 6]);
    bench.live.ack(0, &rest).await.unwrap();
    assert_eq!(users(&mine(&bench.live, 10).await), [2], "and it is given in the end");
}

#[tokio::test]
async fn a_late_acknowledgement_of_another_takes_nothing_along() {
    let bench = Bench::start().await;
    let other = live_set(&bench.redis, "other", 1);
    other.ready().await.unwrap();
    come_online(&bench, 1..=9).await;
    let slow = mine(&bench.live, 4).await;
    // Its turn is over; another has done the first of it, and has the rest in hand.
    bench.redis.cli(&[
        "XCLAIM",
        STREAM,
        "persist",
        "bench",
        "0",
        &slow.transitions[0].id.to_string(),
        "IDLE",
        "10000",
    ]);
    let taken_over = mine(&other, 6).await;
    assert_eq!(users(&taken_over), [1, 2, 3, 4, 5, 6]);
    let part = Work { transitions: taken_over.transitions[..2].to_vec(), ..Work::default() };
    other.ack(0, &part).await.unwrap();
    bench.live.ack(0, &slow).await.unwrap();
    assert_eq!(users(&mine(&other, 10).await), [5, 6, 7, 8, 9]);
}

#[tokio::test]
async fn what_a_persister_leaves_in_hand_is_handed_over_at_once() {
    let bench = Bench::start().await;
    come_online(&bench, 1..=3).await;
    let other = live_set(&bench.redis, "other", 1);
    other.ready().await.unwrap();
    let taken = mine(&other, 2).await;
    for _ in 0..2 {
        other.resign().await.unwrap();
    }
    // No lease is waited for; and nothing is lost, nor is its order.
    let work = mine(&bench.live, 10).await;
    assert_eq!(users(&work), [1, 2, 3]);
    assert_eq!(work.transitions[..2], taken.transitions[..]);
    bench.live.ack(0, &work).await.unwrap();
    other.resign().await.unwrap();
    let names = bench.redis.cli(&["XINFO", "CONSUMERS", STREAM, "persist"]);
    assert!(names.contains("bench") && !names.contains("other"), "{names}");
}

#[tokio::test]
async fn a_turn_goes_on_where_it_was_and_begins_anew_at_its_beginning() {
    let bench = Bench::start().await;
    come_online(&bench, 1..=7).await;
    let first = mine(&bench.live, 3).await;
    let after = async |last| match bench.live.take_after(0, last, 3).await.unwrap() {
        Turn::Mine(work) => work,
        Turn::Others(wait) => panic!("another has the turn for {wait:?}"),
    };
    let second = after(first.last()).await;
    assert_eq!(users(&second), [4, 5, 6]);
    assert_eq!(after(first.last()).await.transitions, second.transitions, "asked again it gives the same");
    let third = after(second.last()).await;
    assert_eq!(users(&third), [7]);
    assert!(after(third.last()).await.is_empty());
    // The first two were written; what was taken ahead is pending still, and comes first in the next turn.
    bench.live.ack(0, &first).await.unwrap();
    bench.live.ack(0, &second).await.unwrap();
    assert_eq!(users(&mine(&bench.live, 3).await), [7]);
}

#[tokio::test]
async fn letting_go_of_some_of_a_batch_leaves_the_earlier_ones_pending() {
    let bench = Bench::start().await;
    let stream = "presence:{0}:transitions";
    come_online(&bench, 1..=8).await;
    let batch = mine(&bench.live, 6).await;
    // SQL could not write those of 1 and 4: another application holds their rows.
    let written = |user: &i64| ![1, 4].contains(user);
    let transitions = batch.transitions.iter().filter(|one| written(&one.user)).cloned().collect();
    let part = Work { transitions, ..Work::default() };
    for _ in 0..2 {
        bench.live.ack(0, &part).await.unwrap();
    }
    assert_eq!(bench.redis.cli(&["XLEN", stream]), "4");
    let Turn::Mine(next) = bench.live.take_after(0, batch.last(), 10).await.unwrap() else {
        panic!("our turn")
    };
    assert_eq!(users(&next), [7, 8]);
    bench.live.ack(0, &next).await.unwrap();
    let rest = mine(&bench.live, 10).await;
    assert_eq!(users(&rest), [1, 4], "in their order");
    bench.live.ack(0, &rest).await.unwrap();
    assert_eq!(bench.live.backlog().await.unwrap(), 0);
}

#[tokio::test]
async fn a_turn_that_goes_on_behind_what_waits_is_respected() {
    let bench = Bench::start().await;
    let stream = "presence:{0}:transitions";
    let other = live_set(&bench.redis, "other", 1);
    other.ready().await.unwrap();
    come_online(&bench, 1..=4).await;
    let first = mine(&bench.live, 2).await;
    // The oldest has waited for long; the turn goes on behind it all the same.
    let oldest = first.transitions[0].id.to_string();
    bench.redis.cli(&["XCLAIM", stream, "persist", "bench", "0", &oldest, "IDLE", "10000"]);
    let Turn::Mine(next) = bench.live.take_after(0, first.last(), 2).await.unwrap() else {
        panic!("our turn")
    };
    assert_eq!(users(&next), [3, 4]);
    let Turn::Others(_) = other.take(0, 10).await.unwrap() else { panic!("two at once") };
}

#[tokio::test]
async fn a_wait_goes_by_what_was_taken_and_ends_in_time() {
    let bench = Bench::start().await;
    come_online(&bench, [1]).await;
    let last = mine(&bench.live, 10).await.last().unwrap();
    let passed = HashMap::from([(0, last)]);
    let began = std::time::Instant::now();
    bench.live.wait_for_transitions(&passed, Duration::from_millis(300)).await.unwrap();
    assert!(began.elapsed() >= Duration::from_millis(290), "an entry that was taken is no news");
    let waiting = tokio::spawn({
        let live = bench.live.clone();
        async move { live.wait_for_transitions(&passed, Duration::from_mins(1)).await.unwrap() }
    });
    come_online(&bench, [2]).await;
    tokio::time::timeout(Duration::from_secs(2), waiting).await.unwrap().unwrap();
}
