//! What the doctor reads, and how it mends: only what still is as it was seen.

use presenced::model::audit::{Break, HistoryStep, InSql, breaks};
use presenced::model::{Millis, OnlineStatus};
use presenced::store::SetAside;

use super::{Db, on_both, transition};
use OnlineStatus::{Away, Offline, Online};

on_both!(
    accounts_are_told_with_the_newest_word_of_their_history,
    a_history_is_walked_row_by_row_whatever_the_page,
    what_was_set_aside_is_counted,
    a_mirror_is_set_to_where_the_history_leads,
    a_mirror_that_has_moved_since_is_left_alone,
    a_version_is_lowered_where_it_still_is_the_one_seen,
    a_row_that_does_not_follow_is_chained_to_the_one_before,
    a_break_that_is_another_by_now_is_left_alone,
);

async fn accounts_are_told_with_the_newest_word_of_their_history(db: Db) {
    let (ada, bob, cyd) = (db.user("ada").await, db.user("bob").await, db.user("cyd").await);
    let batch =
        [transition(1_000, ada, Online), transition(2_000, ada, Away), transition(3_000, bob, Online)];
    db.record(0, &batch).await.unwrap();
    db.falsify("online_status = 'offline', status = 'banned'", &format!("id = {bob}")).await;
    let version = |ms: i64| ms << 20;
    let row = |user, mirror, ms: i64, history| InSql {
        user,
        may_be_present: user != bob,
        mirror,
        version: version(ms),
        last_seen: Some(Millis(ms)).filter(|seen| seen.0 > 0),
        history,
    };
    let all = [
        row(ada, Away, 2_000, Some(Away)),
        row(bob, Offline, 3_000, Some(Online)),
        row(cyd, Offline, 0, None),
    ];
    assert_eq!(db.store.presences_after(0, 10).await.unwrap(), all);
    assert_eq!(db.store.presences_after(0, 2).await.unwrap(), all[..2]);
    assert_eq!(db.store.presences_after(bob, 2).await.unwrap(), all[2..]);
    assert_eq!(db.store.presences_after(cyd, 2).await.unwrap(), []);
    assert_eq!(db.store.presences(&[cyd, 999]).await.unwrap(), all[2..]);
    assert_eq!(db.store.presences(&[]).await.unwrap(), []);
}

async fn a_history_is_walked_row_by_row_whatever_the_page(db: Db) {
    let (ada, bob) = (db.user("ada").await, db.user("bob").await);
    let mut batch = Vec::new();
    for ms in (1_000..1_020).step_by(2) {
        batch.extend([transition(ms, bob, Online), transition(ms + 1, ada, Online)]);
        batch.extend([transition(ms + 100, bob, Offline), transition(ms + 101, ada, Offline)]);
        let now = std::mem::take(&mut batch);
        for (place, mut one) in now.into_iter().enumerate() {
            one.id.ms = ms * 10 + place as u64;
            batch.push(one);
        }
        db.record(0, &std::mem::take(&mut batch)).await.unwrap();
    }
    let whole = db.store.history_after(0, 0, 1_000).await.unwrap();
    assert_eq!(whole.len(), 40);
    assert!(whole.is_sorted_by_key(|row| (row.user, row.id)));
    assert_eq!(breaks(&mut None, &whole), []);
    for size in [1, 3, 20, 40] {
        let (mut walked, mut place) = (Vec::new(), (0, 0));
        loop {
            let page = db.store.history_after(place.0, place.1, size).await.unwrap();
            let Some(last) = page.last() else { break };
            assert!(page.len() <= size as usize);
            place = (last.user, last.id);
            walked.extend(page);
        }
        assert_eq!(walked, whole, "{size} a page");
    }
}

async fn what_was_set_aside_is_counted(db: Db) {
    assert_eq!(db.store.set_aside().await.unwrap(), SetAside { count: 0, latest: None });
    let batch = [transition(1_000, 777, Online), transition(2_000, 778, Online)];
    db.record(0, &batch).await.unwrap();
    let expected = SetAside { count: 2, latest: Some(Millis(2_000)) };
    assert_eq!(db.store.set_aside().await.unwrap(), expected);
}

async fn a_mirror_is_set_to_where_the_history_leads(db: Db) {
    let (ada, bob, cyd) = (db.user("ada").await, db.user("bob").await, db.user("cyd").await);
    let batch = [transition(1_000, ada, Away), transition(2_000, bob, Online)];
    db.record(0, &batch).await.unwrap();
    db.falsify("online_status = 'offline'", "true").await;
    db.falsify("online_status = 'online'", &format!("id = {cyd}")).await;
    let rows = db.store.presences_after(0, 10).await.unwrap();
    let seen: Vec<_> = rows.iter().map(|row| (row.user, row.version)).collect();
    assert_eq!(db.store.mend_mirror(&seen).await.unwrap(), 3);
    assert_eq!((db.mirror(ada).await.0, db.mirror(bob).await.0), (Away, Online));
    assert_eq!(db.mirror(cyd).await.0, Offline, "this one was never present");
    assert_eq!(db.store.mend_mirror(&seen).await.unwrap(), 0);
    assert_eq!(db.store.mend_mirror(&[]).await.unwrap(), 0);
}

async fn a_mirror_that_has_moved_since_is_left_alone(db: Db) {
    let ada = db.user("ada").await;
    db.record(0, &[transition(1_000, ada, Online)]).await.unwrap();
    let seen = db.store.presences(&[ada]).await.unwrap()[0].version;
    db.record(0, &[transition(2_000, ada, Away)]).await.unwrap();
    db.falsify("online_status = 'offline'", "true").await;
    assert_eq!(db.store.mend_mirror(&[(ada, seen)]).await.unwrap(), 0);
    assert_eq!(db.mirror(ada).await.0, Offline);
}

async fn a_version_is_lowered_where_it_still_is_the_one_seen(db: Db) {
    let ada = db.user("ada").await;
    db.record(0, &[transition(9_000, ada, Online)]).await.unwrap();
    let seen = db.store.presences(&[ada]).await.unwrap()[0].version;
    assert_eq!(db.store.lower_versions(&[(ada, seen + 1)], 5_000 << 20).await.unwrap(), 0);
    assert_eq!(db.store.lower_versions(&[(ada, seen)], seen + 5).await.unwrap(), 0, "never raised");
    assert_eq!(db.record(0, &[transition(6_000, ada, Offline)]).await.unwrap().recorded, 0);
    assert_eq!(db.store.lower_versions(&[(ada, seen)], 5_000 << 20).await.unwrap(), 1);
    assert_eq!(db.record(0, &[transition(6_001, ada, Offline)]).await.unwrap().recorded, 1);
    assert_eq!(db.store.lower_versions(&[], 1).await.unwrap(), 0);
}

async fn walk(db: &Db) -> (Vec<HistoryStep>, Vec<Break>) {
    let rows = db.store.history_after(0, 0, 1_000).await.unwrap();
    let broken = breaks(&mut None, &rows);
    (rows, broken)
}

async fn a_row_that_does_not_follow_is_chained_to_the_one_before(db: Db) {
    let (ada, bob) = (db.user("ada").await, db.user("bob").await);
    let lives = [Online, Away, Online, Offline];
    let batch: Vec<_> = (1_000..)
        .zip(lives)
        .flat_map(|(ms, to)| [transition(ms, ada, to), transition(ms + 500, bob, to)])
        .collect();
    let mut batch = batch;
    batch.sort_by_key(|transition| transition.id);
    db.record(0, &batch).await.unwrap();
    // Ada's second row is lost: the third leads where the first has been. Bob's third begins elsewhere.
    let (rows, _) = walk(&db).await;
    let (adas, bobs): (Vec<HistoryStep>, Vec<HistoryStep>) =
        rows.into_iter().partition(|row| row.user == ada);
    db.sql(&format!("DELETE FROM presence_transitions WHERE id = {}", adas[1].id)).await;
    db.sql(&format!("UPDATE presence_transitions SET from_status = 'offline' WHERE id = {}", bobs[2].id))
        .await;
    let (_, broken) = walk(&db).await;
    assert_eq!(broken.len(), 2);
    for one in &broken {
        assert!(db.store.mend_history(one).await.unwrap(), "{one:?}");
        assert!(!db.store.mend_history(one).await.unwrap(), "once");
    }
    let (rows, broken) = walk(&db).await;
    assert_eq!(broken, []);
    let words: Vec<_> = rows.iter().filter(|row| row.user == ada).map(|row| (row.from, row.to)).collect();
    assert_eq!(words, [(Offline, Online), (Online, Offline)]);
    let words: Vec<_> = rows.iter().filter(|row| row.user == bob).map(|row| (row.from, row.to)).collect();
    assert_eq!(words, [(Offline, Online), (Online, Away), (Away, Online), (Online, Offline)]);
}

async fn a_break_that_is_another_by_now_is_left_alone(db: Db) {
    let ada = db.user("ada").await;
    let batch: Vec<_> =
        (1_000..).zip([Online, Away, Offline]).map(|(ms, to)| transition(ms, ada, to)).collect();
    db.record(0, &batch).await.unwrap();
    let (rows, _) = walk(&db).await;
    db.sql(&format!("DELETE FROM presence_transitions WHERE id = {}", rows[1].id)).await;
    let broken = walk(&db).await.1[0];
    // The history was pruned meanwhile: there is nothing before the row that it could contradict.
    db.sql(&format!("DELETE FROM presence_transitions WHERE id = {}", rows[0].id)).await;
    assert!(!db.store.mend_history(&broken).await.unwrap());
    assert_eq!(walk(&db).await.0, [rows[2]]);
}
