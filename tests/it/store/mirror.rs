//! The mirror and `last_seen` in `users`: written behind, never back.

use presenced::model::{Millis, OnlineStatus, Page, Place, Transition};
use presenced::store::MirrorRow;

use super::{Db, on_both, transition};
use OnlineStatus::{Away, Offline, Online};

on_both!(
    last_seen_moves_forward_and_never_back,
    a_transition_that_knows_no_heartbeat_leaves_last_seen,
    a_transition_that_is_late_news_moves_last_seen_all_the_same,
    a_batch_never_takes_last_seen_back,
    who_is_present_is_told_page_by_page,
    the_present_are_listed_most_recently_seen_first,
    the_mirror_costs_the_log_of_changes_nothing,
);

async fn last_seen_moves_forward_and_never_back(db: Db) {
    let (ada, bob) = (db.user("ada").await, db.user("bob").await);
    let seen = [
        (bob, Millis(3_000)),
        (ada, Millis(2_000)),
        (ada, Millis(5_000)),
        (ada, Millis(1_000)),
        (999, Millis(1)),
    ];
    assert_eq!(db.touch(&seen).await.unwrap(), 2);
    assert_eq!(db.mirror(ada).await, (Offline, Some(5_000)));
    assert_eq!(db.touch(&[(ada, Millis(4_999)), (bob, Millis(3_001))]).await.unwrap(), 1);
    assert_eq!((db.mirror(ada).await.1, db.mirror(bob).await.1), (Some(5_000), Some(3_001)));
    assert_eq!(db.touch(&[]).await.unwrap(), 0);
}

async fn a_transition_that_knows_no_heartbeat_leaves_last_seen(db: Db) {
    let ada = db.user("ada").await;
    db.record(0, &[transition(1_000, ada, Offline)]).await.unwrap();
    assert_eq!(db.mirror(ada).await, (Offline, None));
    db.record(0, &[transition(2_000, ada, Online)]).await.unwrap();
    db.record(0, &[transition(3_000, ada, Offline)]).await.unwrap();
    assert_eq!(db.mirror(ada).await, (Offline, Some(2_000)));
}

async fn a_transition_that_is_late_news_moves_last_seen_all_the_same(db: Db) {
    let ada = db.user("ada").await;
    db.record(0, &[transition(1_000, ada, Online)]).await.unwrap();
    db.record(0, &[transition(2_000, ada, Online)]).await.unwrap();
    assert_eq!(db.mirror(ada).await, (Online, Some(2_000)));
    assert_eq!(db.history(ada).await.len(), 1);
}

async fn a_batch_never_takes_last_seen_back(db: Db) {
    let ada = db.user("ada").await;
    db.touch(&[(ada, Millis(9_000))]).await.unwrap();
    let old = Transition { last_seen: Some(Millis(1_500)), ..transition(2_000, ada, Away) };
    db.record(0, &[old]).await.unwrap();
    assert_eq!(db.mirror(ada).await, (Away, Some(9_000)));
}

async fn who_is_present_is_told_page_by_page(db: Db) {
    let mut users = Vec::new();
    for name in ["a", "b", "c", "d"] {
        users.push(db.user(name).await);
    }
    let batch = [
        transition(1_000, users[3], Away),
        transition(1_001, users[0], Online),
        transition(1_002, users[2], Online),
    ];
    db.record(0, &batch).await.unwrap();
    let row =
        |index: usize, status, seen| MirrorRow { user: users[index], status, last_seen: Some(Millis(seen)) };
    let first = db.store.present_in_mirror_after(0, 2).await.unwrap();
    assert_eq!(first, [row(0, Online, 1_001), row(2, Online, 1_002)]);
    assert_eq!(db.store.present_in_mirror_after(users[2], 2).await.unwrap(), [row(3, Away, 1_000)]);
    assert!(db.store.present_in_mirror_after(users[3], 2).await.unwrap().is_empty());
}

async fn the_present_are_listed_most_recently_seen_first(db: Db) {
    let mut users = Vec::new();
    for name in ["old", "first", "last", "blocked", "off"] {
        users.push(db.user(name).await);
    }
    let batch: Vec<_> = [(0, 500), (1, 1_000), (2, 2_000), (3, 3_000)]
        .map(|(index, ms): (usize, u64)| transition(ms, users[index], Online))
        .into();
    db.record(0, &batch).await.unwrap();
    db.touch(&[(users[4], Millis(5_000))]).await.unwrap();
    db.sql(&format!("UPDATE users SET status = 'inactive' WHERE id = {}", users[3])).await;
    let page =
        |number, size| db.store.list_present_in_mirror(Millis(1_000), Page { number, size }.into(), &[]);
    let list = page(1, 10).await.unwrap();
    let names: Vec<_> = list.accounts.iter().map(|account| account.username.as_str()).collect();
    assert_eq!((names, list.total), (vec!["last", "first"], 2));
    assert_eq!(page(2, 1).await.unwrap().accounts[0].username, "first");
    let past = page(3, 1).await.unwrap();
    assert_eq!((past.accounts.len(), past.total), (0, 2));
    let cursor = (Millis(2_000), users[2]);
    let behind = db.store.list_present_in_mirror(Millis(1_000), Place::After(cursor, 1), &users[3..4]);
    let behind = behind.await.unwrap();
    assert_eq!((behind.accounts[0].username.as_str(), behind.has_more, behind.total), ("first", false, 2));
    assert_eq!(behind.askers[0].username, "blocked");
    assert!(page(1, 1).await.unwrap().has_more);
}

async fn the_mirror_costs_the_log_of_changes_nothing(db: Db) {
    let ada = db.user("ada").await;
    let cursor = db.settled().await;
    db.record(0, &[transition(1_000, ada, Online)]).await.unwrap();
    db.touch(&[(ada, Millis(2_000))]).await.unwrap();
    assert!(db.store.account_changes(&cursor).await.unwrap().users.is_empty());
}
