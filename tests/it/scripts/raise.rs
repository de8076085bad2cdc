//! `lua/raise.lua`: what the raising of a fence leaves in Redis.

use std::time::Duration;

use presenced::live::{Loss, Turn};
use presenced::model::HeartbeatWord::{Away, Online};
use presenced::model::{Millis, StreamId};

use super::{BLOCKED, Bench, ENDED, FENCE, LIVE, STREAM, now_ms};

const LOST: &str = "presence:{0}:lost";
const HOLD: &str = "presence:{0}:hold";

fn last_id(bench: &Bench) -> StreamId {
    let about = bench.redis.cli(&["XINFO", "STREAM", STREAM]);
    let mut lines = about.lines().skip_while(|line| *line != "last-generated-id");
    lines.nth(1).unwrap().parse().unwrap()
}

fn ids(bench: &Bench) -> Vec<StreamId> {
    let entries = bench.redis.cli(&["XRANGE", STREAM, "-", "+"]);
    entries.lines().filter(|line| line.contains('-')).filter_map(|line| line.parse().ok()).collect()
}

#[tokio::test]
async fn a_new_shard_is_made_whole_and_nothing_is_on_hold() {
    let bench = Bench::unfenced().await;
    for _ in 0..2 {
        bench.raise_fence().await;
        assert_eq!(bench.redis.cli(&["SMEMBERS", BLOCKED]), "0");
        assert_eq!(bench.redis.cli(&["ZRANGE", LIVE, "0", "-1", "WITHSCORES"]), "0\n0");
        assert_eq!(bench.redis.cli(&["ZRANGE", ENDED, "0", "-1", "WITHSCORES"]), "0\n0");
        assert_eq!(bench.redis.cli(&["XLEN", STREAM]), "0");
        assert!(bench.redis.cli(&["XINFO", "GROUPS", STREAM]).contains("persist"));
        assert!(bench.redis.cli(&["GET", FENCE]).ends_with(" 0"));
        assert_eq!(bench.redis.cli(&["EXISTS", HOLD, LOST]), "0");
    }
}

/// Should its builder die, the next finds it.
#[tokio::test]
async fn a_loss_is_noted_before_the_fence_stands_and_the_later_instant_stays() {
    let bench = Bench::unfenced().await;
    let served_until = Millis(now_ms() - 1_000);
    let loss = Loss { hold: Duration::from_mins(2), served_until, newest_in_sql: None };
    assert!(!bench.live.note_loss(0, "bench", &loss).await.unwrap(), "no building is under way");
    assert!(bench.live.begin_fence(0, "bench").await.unwrap());
    assert!(!bench.live.fence(0).await.unwrap().is_on_hold);
    for _ in 0..2 {
        assert!(bench.live.note_loss(0, "bench", &loss).await.unwrap());
        let fence = bench.live.fence(0).await.unwrap();
        assert_eq!((fence.cursor, fence.is_on_hold), (None, true));
        assert_eq!(bench.redis.cli(&["EXISTS", FENCE, STREAM, LIVE]), "0");
    }
    for (known, noted) in [(-500, served_until.0), (500, served_until.0 + 500)] {
        let loss = Loss { served_until: served_until.plus(known), ..loss };
        assert!(bench.live.raise_fence(0, "0", "bench", &loss).await.unwrap());
        assert_eq!(bench.redis.cli(&["GET", LOST]), noted.to_string());
    }
}

#[tokio::test]
async fn raised_again_over_data_it_takes_nothing_away() {
    let bench = Bench::start().await;
    for user in 1..=3 {
        bench.beat(user, "phone", Online).await;
    }
    let Turn::Mine(taken) = bench.live.take(0, 2).await.unwrap() else { panic!("nobody else is here") };
    bench.redis.cli(&["DEL", FENCE]);
    let before = (ids(&bench), bench.redis.cli(&["ZRANGE", LIVE, "0", "-1", "WITHSCORES"]));
    bench.raise_fence().await;
    assert_eq!((ids(&bench), bench.redis.cli(&["ZRANGE", LIVE, "0", "-1", "WITHSCORES"])), before);
    let Turn::Mine(again) = bench.live.take(0, 2).await.unwrap() else { panic!("nobody else is here") };
    assert_eq!(again.transitions, taken.transitions, "and what is pending stays pending");
}

#[tokio::test]
async fn the_ids_of_the_stream_go_on_above_the_newest_that_sql_holds_whatever_the_clock_says() {
    let bench = Bench::unfenced().await;
    // SQL has it from a time when Redis's clock was an hour ahead.
    let newest = StreamId { ms: u64::try_from(now_ms()).unwrap() + 3_600_000, seq: 5 };
    let loss = Loss { newest_in_sql: Some(newest), ..Loss::default() };
    for _ in 0..2 {
        bench.raise_fence_after(&loss).await;
        assert_eq!(last_id(&bench), newest);
    }
    bench.beat(7, "phone", Online).await;
    bench.beat(7, "phone", Away).await;
    let given = ids(&bench);
    assert_eq!(given, [6, 7].map(|seq| StreamId { seq, ..newest }), "each is newer than what SQL holds");
    let Turn::Mine(work) = bench.live.take(0, 10).await.unwrap() else { panic!("nobody else is here") };
    assert_eq!(work.transitions.len(), 2);
    // Raised again, it never goes back behind what the stream has given.
    bench.raise_fence_after(&loss).await;
    assert_eq!((ids(&bench), last_id(&bench)), (given.clone(), given[1]));
    bench.live.ack(0, &work).await.unwrap();
    bench.raise_fence_after(&Loss { newest_in_sql: Some(StreamId { ms: 5, seq: 0 }), ..loss }).await;
    assert_eq!(last_id(&bench), given[1]);
    // A stream that was lost and is made anew goes on as well.
    bench.redis.cli(&["DEL", STREAM]);
    bench.raise_fence_after(&Loss { newest_in_sql: Some(given[1]), ..loss }).await;
    bench.beat(7, "phone", Online).await;
    assert_eq!(ids(&bench), [StreamId { seq: 8, ..newest }]);
}

#[tokio::test]
async fn a_newest_id_that_lies_in_the_past_leaves_the_ids_to_the_clock() {
    let bench = Bench::unfenced().await;
    let before = u64::try_from(now_ms()).unwrap();
    bench
        .raise_fence_after(&Loss {
            newest_in_sql: Some(StreamId { ms: before - 1_000, seq: 3 }),
            ..Loss::default()
        })
        .await;
    bench.beat(7, "phone", Online).await;
    let given = ids(&bench);
    assert!(given.len() == 1 && given[0].ms >= before, "{given:?}");
}

#[tokio::test]
async fn a_loss_is_noted_with_the_hold_and_the_last_moment_at_which_the_lost_data_served() {
    let bench = Bench::unfenced().await;
    let loss = Loss { hold: Duration::from_mins(1), served_until: Millis(5_000), newest_in_sql: None };
    bench.raise_fence_after(&loss).await;
    let left: i64 = bench.redis.cli(&["PTTL", HOLD]).parse().unwrap();
    assert!((50_000..=60_000).contains(&left), "{left}");
    assert_eq!(bench.redis.cli(&["GET", LOST]), "5000");
    // Where nothing was lost, what is known of a former loss stays.
    bench.raise_fence().await;
    assert!(bench.live.move_fence(0, "0", "1").await.unwrap());
    assert_eq!(bench.redis.cli(&["GET", LOST]), "5000");
    assert_eq!(bench.redis.cli(&["EXISTS", HOLD]), "1");
    bench.raise_fence_after(&Loss { served_until: Millis(9_000), ..Loss::default() }).await;
    assert_eq!(bench.redis.cli(&["GET", LOST]), "9000");
}

#[tokio::test]
async fn a_building_that_another_has_taken_over_raises_nothing_and_notes_nothing() {
    let bench = Bench::unfenced().await;
    assert!(bench.live.begin_fence(0, "one").await.unwrap());
    let loss = Loss { hold: Duration::from_mins(1), served_until: Millis(5_000), newest_in_sql: None };
    for _ in 0..2 {
        assert!(!bench.live.raise_fence(0, "5", "two", &loss).await.unwrap());
        assert_eq!(bench.redis.cli(&["EXISTS", FENCE, LIVE, STREAM, BLOCKED, ENDED, HOLD, LOST]), "0");
    }
}
