//! `lua/audit.lua`, `lua/members.lua`, `lua/stock.lua` and the walk over the stream: what the doctor looks at. None of them
//! writes.

use std::collections::BTreeSet;

use presenced::live::{Turn, Verdict};
use presenced::model::HeartbeatWord::{Away, Online};
use presenced::model::audit::{InRedis, Key};
use presenced::model::{Millis, OnlineStatus, StreamId};

use super::{Bench, ENDED, FENCE, LIVE, STREAM, TTL_MS};

#[tokio::test]
async fn an_audit_tells_what_a_user_has_in_redis() {
    let bench = Bench::start().await;
    let (first, _) = bench.beat_at(1, "phone", Online).await;
    bench.beat(2, "laptop", Online).await;
    let (second, _) = bench.beat_at(2, "phone", Away).await;
    bench.age_session(2, "laptop", TTL_MS + 1_000);
    bench.tell(&[(3, Verdict::Block)]).await;
    bench.redis.cli(&["RPUSH", "presence:{0}:user:4", "x"]);
    bench.redis.cli(&["ZADD", LIVE, "inf", "4"]);
    bench.redis.cli(&["HSET", "presence:{0}:user:5", "status", "busy"]);
    let before = bench.everything();
    let found = bench.live.audit(0, &[1, 2, 3, 4, 5, 9]).await.unwrap();
    assert_eq!(bench.everything(), before);
    let now = found[0].now;
    assert!(now >= second, "{now} is the time of the look");
    let deadline = Some(Millis(first.0 + TTL_MS));
    let key = Key::Hash {
        expires: deadline,
        status: Some(OnlineStatus::Online),
        alive: Some(OnlineStatus::Online),
        said_online: true,
    };
    assert_eq!(found[0], InRedis { user: 1, now, deadline, key, blocked: false });
    let deadline = Some(Millis(second.0 + TTL_MS));
    let key = Key::Hash {
        expires: deadline,
        status: Some(OnlineStatus::Online),
        alive: Some(OnlineStatus::Away),
        said_online: true,
    };
    assert_eq!(found[1], InRedis { user: 2, now, deadline, key, blocked: false });
    assert_eq!(found[2], InRedis { user: 3, now, deadline: None, key: Key::None, blocked: true });
    let deadline = Some(Millis(i64::MAX));
    assert_eq!(found[3], InRedis { user: 4, now, deadline, key: Key::Other("list".into()), blocked: false });
    let key = Key::Hash { expires: None, status: None, alive: None, said_online: false };
    assert_eq!(found[4], InRedis { user: 5, now, deadline: None, key, blocked: false });
    assert_eq!(found[5], InRedis { user: 9, now, deadline: None, key: Key::None, blocked: false });
    assert_eq!(bench.live.audit(0, &[]).await.unwrap(), []);
}

#[tokio::test]
async fn a_walk_over_the_live_set_meets_each_member_once_also_where_many_share_a_deadline() {
    let bench = Bench::start().await;
    for user in 1..=50 {
        bench.redis.cli(&["ZADD", LIVE, &(9_000_000 + user / 20).to_string(), &user.to_string()]);
    }
    for (deadline, member) in [("5", "007"), ("inf", "x"), ("9000001", "-3")] {
        bench.redis.cli(&["ZADD", LIVE, deadline, member]);
    }
    for size in [1, 7, 54, 1_000] {
        let (mut users, mut strays, mut place) = (Vec::new(), Vec::new(), None);
        loop {
            let page = bench.live.members(0, place, size).await.unwrap();
            users.extend(page.users);
            strays.extend(page.strays);
            place = page.next;
            if place.is_none() {
                break;
            }
        }
        assert_eq!(users.len(), 50, "{size} a page");
        assert_eq!(users.iter().copied().collect::<BTreeSet<_>>(), (1..=50).collect());
        assert_eq!(strays, ["x", "-3", "007"], "nor is the mark of a whole set one");
    }
    let there = bench.live.still_members(0, &["x".into(), "nobody".into(), "7".into()]).await.unwrap();
    assert_eq!(there, [true, false, true]);
}

#[tokio::test]
async fn a_member_of_another_shard_is_a_stray() {
    let bench = Bench::start().await;
    let live = super::live_set(&bench.redis, "two", 2);
    bench.redis.cli(&["SET", "presence:{0}:shards", "2"]);
    assert_eq!(live.visit().await.unwrap(), Some(2));
    bench.redis.cli(&["ZADD", LIVE, "5", "2", "6", "3"]);
    let page = live.members(0, None, 10).await.unwrap();
    assert_eq!((page.users, page.strays), (vec![2], vec!["3".to_string()]));
}

#[tokio::test]
async fn the_stock_tells_what_waits_and_with_whom() {
    let bench = Bench::start().await;
    let server = bench.live.server(0).await.unwrap();
    let stock = bench.live.stock(0, &server).await.unwrap();
    assert_eq!((stock.entries, stock.oldest, stock.has_group, stock.pending), (0, None, true, 0));
    assert_eq!((stock.heard_since, stock.epoch()), (None, None));
    bench.beat(1, "phone", Online).await;
    bench.beat(2, "phone", Online).await;
    let first: StreamId =
        bench.redis.cli(&["XRANGE", STREAM, "-", "+", "COUNT", "1"]).lines().next().unwrap().parse().unwrap();
    let stock = bench.live.stock(0, &server).await.unwrap();
    assert_eq!((stock.entries, stock.oldest, stock.has_group), (2, Some(first), true));
    bench.redis.cli(&["XGROUP", "DESTROY", STREAM, "persist"]);
    assert!(!bench.live.stock(0, &server).await.unwrap().has_group);
    bench.live.epoch(0).await.unwrap();
    let Turn::Mine(work) = bench.live.take(0, 10).await.unwrap() else { panic!("nobody else is here") };
    let before = bench.everything();
    let stock = bench.live.stock(0, &server).await.unwrap();
    assert_eq!(bench.everything(), before);
    assert_eq!((stock.has_group, stock.pending), (true, 2));
    assert_eq!(stock.holder.as_ref().unwrap().0, "bench");
    let seen = stock.epoch().unwrap();
    assert!(!seen.is_new);
    assert!(stock.heard_since.unwrap() <= stock.now);
    bench.live.ack(0, &work).await.unwrap();
    let stock = bench.live.stock(0, &server).await.unwrap();
    assert_eq!((stock.entries, stock.pending, stock.holder), (0, 0, None));
    bench.redis.cli(&["SET", "presence:{0}:epoch", "another-life 5"]);
    assert_eq!(bench.live.stock(0, &server).await.unwrap().heard_since, None);
}

#[tokio::test]
async fn keys_of_another_type_are_named() {
    let bench = Bench::start().await;
    let server = bench.live.server(0).await.unwrap();
    assert!(bench.live.stock(0, &server).await.unwrap().odd_keys.is_empty());
    bench.redis.cli(&["SET", LIVE, "x"]);
    bench.redis.cli(&["SET", STREAM, "x"]);
    bench.redis.cli(&["SET", ENDED, "x"]);
    bench.redis.cli(&["DEL", FENCE]);
    bench.redis.cli(&["SADD", FENCE, "x"]);
    let odd = bench.live.stock(0, &server).await.unwrap().odd_keys;
    let odd: Vec<_> = odd.iter().map(|(key, kind)| (key.as_str(), kind.as_str())).collect();
    assert_eq!(odd, [(LIVE, "string"), (STREAM, "string"), (ENDED, "string"), (FENCE, "set")]);
}

#[tokio::test]
async fn the_stream_is_walked_without_taking_anything() {
    let bench = Bench::start().await;
    for user in 1..=5 {
        bench.beat(user, "phone", Online).await;
    }
    let id = bench.redis.cli(&["XADD", STREAM, "*", "hello", "world"]);
    let before = bench.everything();
    let (mut users, mut unreadable, mut place) = (Vec::new(), Vec::new(), None);
    loop {
        let page = bench.live.entries(0, place, 2).await.unwrap();
        users.extend(page.users);
        unreadable.extend(page.unreadable);
        place = page.next;
        if place.is_none() {
            break;
        }
    }
    assert_eq!(bench.everything(), before);
    assert_eq!((users, unreadable), (vec![1, 2, 3, 4, 5], vec![id]));
    let none = bench.live.entries(0, None, 1_000).await.unwrap();
    assert_eq!((none.users.len(), none.next), (5, None));
}

#[tokio::test]
async fn a_visitor_notes_nothing_and_learns_the_number_of_shards() {
    let redis = crate::support::redis::RedisServer::start(&[]).await;
    let live = super::live_set(&redis, "visitor", 1);
    assert_eq!(live.visit().await.unwrap(), None);
    assert_eq!(redis.cli(&["DBSIZE"]), "0");
    assert!(live.server(0).await.is_ok(), "the gate is open");
    redis.cli(&["SET", "presence:{0}:shards", "4"]);
    let other = super::live_set(&redis, "other", 1);
    assert_eq!(other.visit().await.unwrap(), Some(4));
    assert!(other.server(0).await.is_err(), "everyone would be looked for in the wrong place");
}

#[tokio::test]
async fn whether_expiries_are_published_is_read_and_not_tried() {
    let bench = Bench::start().await;
    for (flags, expected) in [("", false), ("Ex", true), ("KEA", true), ("Kx", false)] {
        bench.redis.cli(&["CONFIG", "SET", "notify-keyspace-events", flags]);
        assert_eq!(bench.live.publishes_expiries().await.unwrap(), Some(expected), "{flags}");
    }
    let redis = crate::support::redis::RedisServer::start(&["--rename-command", "CONFIG", ""]).await;
    let live = super::live_set(&redis, "managed", 1);
    live.visit().await.unwrap();
    assert_eq!(live.publishes_expiries().await.unwrap(), None);
}
