//! A presence that an administrator lent: it is no sighting (`lua/set_status.lua`, and whatever ends or returns it).

use presenced::live::{HeartbeatOutcome, Verdict};
use presenced::model::HeartbeatWord::{Away, Online};
use presenced::model::{OnlineStatus, Presence, UserId};

use super::{Bench, LIVE, TTL_MS, now_ms, session};

const LENT: &str = "presence:{0}:lent";

fn is_lent(bench: &Bench, user: UserId) -> bool {
    bench.redis.cli(&["SISMEMBER", LENT, &user.to_string()]) == "1"
}

async fn lend(bench: &Bench, user: UserId, to: OnlineStatus) {
    bench.live.set_status(user, to).await.unwrap();
}

/// `to` and `reason` of the last entry, and whether it names a last heartbeat.
fn last(bench: &Bench) -> (String, bool) {
    let [user, to, reason, _, seen] = bench.entries().pop().unwrap();
    (format!("{user} {to} {reason}"), !seen.is_empty())
}

#[tokio::test]
async fn what_is_lent_is_no_sighting_in_the_key_in_the_stream_and_in_reads() {
    let bench = Bench::start().await;
    for _ in 0..2 {
        lend(&bench, 7, OnlineStatus::Online).await;
        lend(&bench, 8, OnlineStatus::Away).await;
    }
    assert_eq!((bench.field(7, "admin"), bench.field(8, "admin")), ("0".into(), "0 away".into()));
    assert!(is_lent(&bench, 7) && is_lent(&bench, 8));
    let seen: Vec<_> =
        bench.entries().into_iter().map(|[user, to, reason, _, seen]| [user, to, reason, seen]).collect();
    assert_eq!(seen, [["7", "online", "admin", ""], ["8", "away", "admin", ""]]);
    let read = bench.live.read(&[7, 8]).await.unwrap();
    let unseen = |status| Some(Presence { status, last_seen: None });
    assert_eq!(read, [unseen(OnlineStatus::Online), unseen(OnlineStatus::Away)]);
    let page = bench.live.online(presenced::model::Page { number: 1, size: 10 }).await.unwrap();
    assert_eq!((page.count, page.users.len()), (2, 2), "both are present");
    // Another word of the administrator changes the status, and nothing else.
    let deadline = bench.deadline(7);
    lend(&bench, 7, OnlineStatus::Away).await;
    assert_eq!(last(&bench), ("7 away admin".into(), false));
    assert_eq!((bench.field(7, "admin").as_str(), bench.deadline(7)), ("0 away", deadline));
}

#[tokio::test]
async fn the_write_behind_of_last_seen_leaves_out_what_was_lent_and_pages_on() {
    let bench = Bench::start().await;
    for user in 1..=9 {
        lend(&bench, user, OnlineStatus::Online).await;
        bench.beat(user + 10, "phone", Online).await;
    }
    bench.beat(5, "phone", Online).await;
    let (mut users, mut lent, mut place, mut pages) = (Vec::new(), Vec::new(), None, 0);
    loop {
        let page = bench.live.seen(0, place, 4).await.unwrap();
        users.extend(page.users.into_iter().map(|(user, _)| user));
        lent.extend(page.lent);
        (place, pages) = (page.next, pages + 1);
        if place.is_none() {
            break;
        }
    }
    users.sort_unstable();
    lent.sort_unstable();
    assert_eq!(lent, [1, 2, 3, 4, 6, 7, 8, 9], "which is for whatever compares all who are present");
    assert_eq!(users, [5, 11, 12, 13, 14, 15, 16, 17, 18, 19]);
    assert!(pages >= 4, "a page is full of those it looked at: {pages}");
}

#[tokio::test]
async fn an_expiry_of_what_was_lent_is_no_sighting_whoever_notices_it() {
    // The sweeper, a heartbeat that returns late, the administrator and a block.
    for noticed_by in 0..4 {
        let bench = Bench::start().await;
        lend(&bench, 7, OnlineStatus::Online).await;
        bench.age(7, TTL_MS + 1_000);
        let deadline = bench.redis.cli(&["ZSCORE", LIVE, "7"]);
        match noticed_by {
            0 => assert_eq!(bench.live.claim(0, &[7, 7]).await.unwrap(), 1),
            1 => assert!(matches!(bench.beat(7, "phone", Online).await, HeartbeatOutcome::Present(_))),
            2 => lend(&bench, 7, OnlineStatus::Away).await,
            _ => assert_eq!(bench.tell(&[(7, Verdict::Block)]).await, 1),
        }
        let [user, to, reason, at, seen] = &bench.entries()[1];
        assert_eq!([user, to, reason, at, seen], ["7", "offline", "expired", &deadline, ""], "{noticed_by}");
        assert_eq!(is_lent(&bench, 7), noticed_by == 2, "{noticed_by}");
        assert_eq!(bench.live.claim(0, &[7]).await.unwrap(), 0, "{noticed_by}");
    }
}

#[tokio::test]
async fn a_heartbeat_returns_what_was_lent_and_is_a_sighting() {
    let bench = Bench::start().await;
    lend(&bench, 7, OnlineStatus::Away).await;
    for _ in 0..2 {
        let (now, outcome) = bench.beat_at(7, "phone", Online).await;
        assert_eq!(outcome, HeartbeatOutcome::Present(OnlineStatus::Online));
        assert!(!is_lent(&bench, 7) && bench.field(7, "admin").is_empty());
        assert_eq!(bench.live.read(&[7]).await.unwrap()[0].unwrap().last_seen, Some(now));
        assert_eq!(bench.deadline(7), Some(now.0 + TTL_MS));
    }
    assert_eq!(last(&bench), ("7 online heartbeat".into(), true));
    bench.age(7, TTL_MS + 1_000);
    bench.live.claim(0, &[7]).await.unwrap();
    assert_eq!(last(&bench), ("7 offline expired".into(), true));
}

#[tokio::test]
async fn the_end_of_what_was_lent_is_no_sighting() {
    let bench = Bench::start().await;
    for user in 7..=9 {
        lend(&bench, user, OnlineStatus::Online).await;
    }
    for _ in 0..2 {
        lend(&bench, 7, OnlineStatus::Offline).await;
    }
    assert_eq!(last(&bench), ("7 offline admin".into(), false));
    bench.tell(&[(8, Verdict::Block), (9, Verdict::Gone)]).await;
    assert_eq!(last(&bench), ("8 offline blocked".into(), false));
    assert_eq!(bench.entries().len(), 5, "of an account that is gone nothing is told");
    assert_eq!(bench.redis.cli(&["EXISTS", LENT]), "0");
    // A session that never spoke ends, and takes nothing along.
    lend(&bench, 7, OnlineStatus::Online).await;
    bench.live.leave(7, &session("phone"), presenced::model::Millis(0)).await.unwrap();
    assert!(is_lent(&bench, 7) && bench.deadline(7).is_some());
}

#[tokio::test]
async fn a_user_who_is_present_by_a_heartbeat_stays_a_sighting_when_the_administrator_speaks() {
    let bench = Bench::start().await;
    let (now, _) = bench.beat_at(7, "phone", Online).await;
    lend(&bench, 7, OnlineStatus::Away).await;
    assert!(!is_lent(&bench, 7));
    assert_eq!(bench.entries()[1][4], now.0.to_string());
    assert_eq!(bench.live.read(&[7]).await.unwrap()[0].unwrap().last_seen, Some(now));
    assert_eq!(bench.live.seen(0, None, 10).await.unwrap().users, [(7, now)]);
}

#[tokio::test]
async fn what_was_lent_and_is_affirmed_or_made_anew_is_no_sighting() {
    let bench = Bench::start().await;
    lend(&bench, 7, OnlineStatus::Away).await;
    for _ in 0..2 {
        assert_eq!(bench.live.affirm(0, &[7]).await.unwrap(), 1);
        assert_eq!(last(&bench), ("7 away heartbeat".into(), false));
    }
    bench.redis.cli(&["DEL", "presence:{0}:user:7"]);
    let mend = presenced::live::Mend { user: 7, fallback: OnlineStatus::Away, tell: false };
    assert_eq!(bench.live.mend(0, &[mend]).await.unwrap(), [presenced::live::Mended::KeyMade]);
    assert_eq!((bench.field(7, "admin").as_str(), is_lent(&bench, 7)), ("0 away", true));
    assert_eq!(bench.live.read(&[7]).await.unwrap()[0].unwrap().last_seen, None);
    assert!(bench.deadline(7).unwrap() > now_ms());
    assert_eq!(bench.beat(7, "phone", Away).await, HeartbeatOutcome::Present(OnlineStatus::Away));
    assert!(!is_lent(&bench, 7));
}
