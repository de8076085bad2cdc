//! `lua/read.lua`, `lua/online.lua` and `lua/seen.lua`: what reads, and never writes.

use presenced::model::HeartbeatWord::{Away, Online};
use presenced::model::{Millis, OnlineCursor, OnlineStatus, Page, Place, Presence};

use super::{Bench, TTL_MS, live_set};
use crate::support::redis::RedisServer;

#[tokio::test]
async fn a_read_tells_status_and_last_heartbeat_in_the_order_asked() {
    let bench = Bench::start().await;
    let (first, _) = bench.beat_at(1, "phone", Online).await;
    let (second, _) = bench.beat_at(2, "phone", Away).await;
    bench.beat(3, "phone", Online).await;
    bench.age(3, TTL_MS + 1);
    let read = bench.live.read(&[2, 9, 1, 3]).await.unwrap();
    let online = Presence { status: OnlineStatus::Online, last_seen: Some(first) };
    let away = Presence { status: OnlineStatus::Away, last_seen: Some(second) };
    assert_eq!(read, [Some(away), None, Some(online), None]);
    assert_eq!(bench.live.read(&[]).await.unwrap(), []);
}

#[tokio::test]
async fn a_read_sees_that_the_online_session_has_died() {
    let bench = Bench::start().await;
    bench.beat(1, "laptop", Online).await;
    bench.beat(1, "phone", Away).await;
    bench.age_session(1, "laptop", TTL_MS + 1_000);
    let before = bench.everything();
    for _ in 0..2 {
        let read = bench.live.read(&[1]).await.unwrap();
        assert_eq!(read[0].unwrap().status, OnlineStatus::Away);
    }
    assert_eq!(bench.everything(), before, "reads never write");
}

#[tokio::test]
async fn a_shorter_ttl_counts_from_the_next_heartbeat_on() {
    let bench = Bench::start().await;
    bench.beat(1, "phone", Online).await;
    bench.age(1, 60_000);
    // Whatever the TTL of the reader: the key says how long its heartbeat counts.
    assert!(bench.live.read(&[1]).await.unwrap()[0].is_some());
}

#[tokio::test]
async fn the_online_list_is_ordered_paged_and_counted_on_one_shard_and_on_many() {
    for shards in [1, 4] {
        let redis = RedisServer::start(&[]).await;
        let live = live_set(&redis, "sharded", shards);
        live.ready().await.unwrap();
        for user in 1..=10 {
            let (key, score) =
                (format!("presence:{{{}}}:live", user % i64::from(shards)), 9_000_000_000_000 + user);
            redis.cli(&["ZADD", &key, &score.to_string(), &user.to_string()]);
        }
        redis.cli(&["ZADD", "presence:{0}:live", "5", "99"]);
        let page = live.online(Page { number: 2, size: 4 }).await.unwrap();
        assert_eq!((page.count, page.users), (10, vec![6, 5, 4, 3]), "{shards} shards");
        let past = live.online(Page { number: 9, size: 4 }).await.unwrap();
        assert_eq!((past.count, past.users), (10, vec![]));
        assert_eq!(live.online_count().await.unwrap(), 10);
    }
}

#[tokio::test]
async fn a_read_counts_all_who_are_present_whoever_is_asked_for() {
    for shards in [1, 4] {
        let redis = RedisServer::start(&[]).await;
        let live = live_set(&redis, "sharded", shards);
        live.ready().await.unwrap();
        for user in 1..=10 {
            let key = format!("presence:{{{}}}:live", user % i64::from(shards));
            redis.cli(&["ZADD", &key, "9000000000000", &user.to_string()]);
        }
        redis.cli(&["ZADD", "presence:{0}:live", "5", "99"]);
        let many: Vec<i64> = (1..=2_500).collect();
        for asked in [&[][..], &[1, 2], &many] {
            let read = live.read_and_count(asked).await.unwrap();
            assert_eq!((read.count, read.users.len()), (Some(10), asked.len()), "{shards} shards");
        }
    }
}

#[tokio::test]
async fn a_walk_by_cursors_meets_everybody_once_where_many_share_a_deadline() {
    for (shards, size) in [(1, 7), (4, 7), (1, 1), (4, 1), (4, 100)] {
        let redis = RedisServer::start(&[]).await;
        let live = live_set(&redis, "sharded", shards);
        live.ready().await.unwrap();
        let far = 9_000_000_000_000_i64;
        let shard_of = |user: i64| format!("presence:{{{}}}:live", user % i64::from(shards));
        for user in 1..=60_i64 {
            redis.cli(&["ZADD", &shard_of(user), &(far + user / 25).to_string(), &user.to_string()]);
        }
        redis.cli(&["ZADD", "presence:{0}:live", "5", "99"]);
        let by_number: Vec<i64> = live.online(Page { number: 1, size: 100 }).await.unwrap().users;
        assert_eq!(by_number.len(), 60);
        let (mut users, mut place, mut pages) = (Vec::new(), Place::Page(Page { number: 1, size }), 0);
        loop {
            let page = live.online(place).await.unwrap();
            // One whom the walk has met moves to the front, and one leaves: the cursor stands by neither.
            if let (2, Some(met)) = (pages, page.users.last()) {
                redis.cli(&["ZADD", &shard_of(*met), &(far + 9).to_string(), &met.to_string()]);
                redis.cli(&["ZREM", &shard_of(users[0]), &users[0].to_string()]);
            }
            users.extend(page.users);
            pages += 1;
            let Some(next) = page.next else { break };
            place = Place::After(next, size);
        }
        assert_eq!(users, by_number, "{shards} shards, {size} a page");
        assert_eq!(pages, 60_usize.div_ceil(size as usize), "the last page says that it is the last");
    }
}

#[tokio::test]
async fn a_cursor_of_somebody_who_never_was_there_is_a_place_all_the_same() {
    let bench = Bench::start().await;
    for (user, deadline) in [(5, 9_000_000_000_005_i64), (6, 9_000_000_000_006), (60, 9_000_000_000_006)] {
        bench.redis.cli(&["ZADD", "presence:{0}:live", &deadline.to_string(), &user.to_string()]);
    }
    let behind = async |deadline, user| {
        let cursor = OnlineCursor { deadline: Millis(deadline), user };
        bench.live.online(Place::After(cursor, 10)).await.unwrap().users
    };
    assert_eq!(behind(9_999_999_999_999, 1).await, [60, 6, 5]);
    assert_eq!(behind(9_000_000_000_006, 7).await, [60, 6, 5]);
    // Members are compared as text.
    assert_eq!(behind(9_000_000_000_006, 60).await, [6, 5]);
    assert_eq!(behind(9_000_000_000_006, 59).await, [5]);
    assert_eq!(behind(9_000_000_000_006, 1).await, [5]);
    assert_eq!(behind(9_000_000_000_005, 4).await, [0_i64; 0]);
    assert_eq!(behind(0, i64::MAX).await, [0_i64; 0]);
}

#[tokio::test]
async fn the_seen_are_paged_through_without_a_gap_where_many_share_a_deadline() {
    let bench = Bench::start().await;
    let soon = chrono::Utc::now().timestamp_millis() + 60_000;
    for user in 1..=50 {
        let deadline = soon + (user / 20);
        bench.redis.cli(&["ZADD", "presence:{0}:live", &deadline.to_string(), &user.to_string()]);
    }
    let (mut users, mut place, mut pages) = (Vec::new(), None, 0);
    loop {
        let page = bench.live.seen(0, place, 7).await.unwrap();
        users.extend(page.users);
        pages += 1;
        if page.next.is_none() {
            break;
        }
        place = page.next;
    }
    users.sort_unstable();
    assert_eq!(users.iter().map(|(user, _)| *user).collect::<Vec<_>>(), (1..=50).collect::<Vec<_>>());
    assert!(users.iter().all(|(user, seen)| seen.0 == soon + (user / 20) - TTL_MS));
    assert!(pages <= 4, "{pages}");
}

#[tokio::test]
async fn a_walk_over_the_seen_ends_though_everyone_keeps_moving_ahead() {
    let bench = Bench::start().await;
    for user in 1..=40 {
        bench.beat(user, "phone", Online).await;
    }
    let (mut place, mut pages) = (None, 0);
    loop {
        let page = bench.live.seen(0, place, 4).await.unwrap();
        for (user, _) in page.users {
            bench.beat(user, "phone", Online).await;
        }
        pages += 1;
        if page.next.is_none() {
            break;
        }
        place = page.next;
        assert!(pages < 30, "a walk without end");
    }
}
