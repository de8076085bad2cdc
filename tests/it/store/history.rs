//! `record`: the chain through SQL, exactly once, whatever is run again, overlaps or comes late.

use std::collections::BTreeMap;

use presenced::model::history::{Recorded, chain};
use presenced::model::{Millis, OnlineStatus, Reason, StreamId, Transition, UserId};
use presenced::store::RecordOutcome;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use super::{Db, LATER, on_both, transition};
use OnlineStatus::{Away, Offline, Online};

on_both!(
    a_batch_becomes_history_and_mirror,
    an_empty_batch_is_nothing,
    a_batch_written_again_adds_nothing,
    overlapping_batches_add_each_transition_once,
    an_older_batch_after_a_newer_one_changes_nothing,
    two_transitions_of_one_instant_keep_their_order,
    strangers_are_set_aside_and_block_nobody,
    a_user_who_was_deleted_is_set_aside,
    a_history_alternates_after_redis_lost_its_data,
    shards_are_told_apart,
    two_persisters_of_one_shard_record_each_transition_once,
    persisters_of_many_shards_and_account_changes_do_not_wait_in_a_circle,
    a_large_batch_is_one_step,
    a_blocked_user_is_recorded_like_any_other,
    the_newest_transition_is_told_by_shard,
);

async fn the_newest_transition_is_told_by_shard(db: Db) {
    assert_eq!(db.store.newest_transition(6).await.unwrap(), None);
    let ada = db.user("ada").await;
    let now = 1_795_332_000_000;
    for (shard, at) in [(6, now), (61, now + 3_000), (60, now + 4_000), (7, now + 2_000), (6, now + 1_000)] {
        let to = if at == now || at == now + 4_000 { Online } else { Offline };
        db.record(shard, &[transition(at, ada, to)]).await.unwrap();
    }
    let newest = async |shard| {
        let newest = db.store.newest_transition(shard).await.unwrap();
        newest.map(|at| at.0.unsigned_abs() - now)
    };
    assert_eq!(newest(6).await, Some(1_000), "what came late was taken as well");
    assert_eq!((newest(61).await, newest(60).await), (Some(3_000), Some(4_000)));
    assert_eq!((newest(7).await, newest(0).await), (Some(2_000), None));
}

async fn a_batch_becomes_history_and_mirror(db: Db) {
    let (ada, bob) = (db.user("ada").await, db.user("bob").await);
    let batch = [
        transition(1_000, ada, Online),
        transition(2_000, bob, Online),
        transition(3_000, ada, Away),
        transition(4_000, ada, Offline),
        Transition { reason: Reason::Login, ..transition(5_000, ada, Online) },
    ];
    let outcome = db.record(3, &batch).await.unwrap();
    assert_eq!(outcome, RecordOutcome { recorded: 5, ..RecordOutcome::default() });
    let expected = [
        "offline>online heartbeat 1000",
        "online>away heartbeat 3000",
        "away>offline expired 4000",
        "offline>online login 5000",
    ];
    assert_eq!(db.history(ada).await, expected);
    assert_eq!(db.history(bob).await, ["offline>online heartbeat 2000"]);
    assert_eq!(db.mirror(ada).await, (Online, Some(5_000)));
    assert_eq!(db.mirror(bob).await, (Online, Some(2_000)));
    let ids = db
        .texts(&format!("SELECT stream_id FROM presence_transitions WHERE user_id = {ada} ORDER BY id"))
        .await;
    assert_eq!(ids, ["3/1000-0", "3/3000-0", "3/4000-0", "3/5000-0"]);
}

async fn an_empty_batch_is_nothing(db: Db) {
    let before = db.store.statements();
    assert_eq!(db.record(0, &[]).await.unwrap(), RecordOutcome::default());
    assert_eq!(db.store.statements(), before);
}

async fn a_batch_written_again_adds_nothing(db: Db) {
    let ada = db.user("ada").await;
    let batch =
        [transition(1_000, ada, Online), transition(2_000, ada, Offline), transition(3_000, 99, Online)];
    db.record(0, &batch).await.unwrap();
    let before = (db.history(ada).await, db.mirror(ada).await);
    let again = db.record(0, &batch).await.unwrap();
    assert_eq!(again, RecordOutcome { unknown: vec![99], ..RecordOutcome::default() });
    assert_eq!((db.history(ada).await, db.mirror(ada).await), before);
    assert_eq!(db.texts("SELECT stream_id FROM presence_set_aside").await, ["0/3000-0"]);
}

async fn overlapping_batches_add_each_transition_once(db: Db) {
    let ada = db.user("ada").await;
    let words = [Online, Away, Online, Offline, Online, Offline];
    let stream: Vec<_> = (1_000..).zip(words).map(|(ms, to)| transition(ms, ada, to)).collect();
    let mut recorded = 0;
    for (from, to) in [(0, 2), (0, 4), (1, 5), (3, 6), (0, 6)] {
        recorded += db.record(0, &stream[from..to]).await.unwrap().recorded;
    }
    assert_eq!((recorded, db.history(ada).await.len()), (6, 6));
    assert_eq!(db.mirror(ada).await, (Offline, Some(1_004)));
}

async fn an_older_batch_after_a_newer_one_changes_nothing(db: Db) {
    let ada = db.user("ada").await;
    db.record(0, &[transition(5_000, ada, Online)]).await.unwrap();
    let late = [transition(1_000, ada, Online), transition(2_000, ada, Offline)];
    assert_eq!(db.record(0, &late).await.unwrap().recorded, 0);
    assert_eq!(db.mirror(ada).await, (Online, Some(5_000)));
    assert_eq!(db.history(ada).await, ["offline>online heartbeat 5000"]);
}

async fn two_transitions_of_one_instant_keep_their_order(db: Db) {
    let ada = db.user("ada").await;
    let at = |seq, to| Transition { id: StreamId { ms: 9_000, seq }, ..transition(9_000, ada, to) };
    // The tenth would stand before the second if ids were compared as text.
    let words =
        [Online, Offline, Online, Offline, Online, Offline, Online, Offline, Online, Offline, Online, Away];
    let batch: Vec<_> = (0..).zip(words).map(|(seq, to)| at(seq, to)).collect();
    assert_eq!(db.record(0, &batch).await.unwrap().recorded, words.len());
    let history = db.history(ada).await;
    let mut status = "offline".to_owned();
    for (row, word) in history.iter().zip(words) {
        assert!(row.starts_with(&format!("{status}>{word} ")), "{history:?}");
        word.as_str().clone_into(&mut status);
    }
}

async fn strangers_are_set_aside_and_block_nobody(db: Db) {
    let ada = db.user("ada").await;
    let batch = [
        transition(1_000, 777, Online),
        transition(2_000, ada, Online),
        transition(3_000, 777, Offline),
        transition(4_000, i64::MAX, Online),
    ];
    let outcome = db.record(0, &batch).await.unwrap();
    assert_eq!(
        outcome,
        RecordOutcome { recorded: 1, unknown: vec![777, i64::MAX], ..RecordOutcome::default() }
    );
    let aside = db
        .texts("SELECT stream_id || ' ' || to_status || ' ' || reason FROM presence_set_aside ORDER BY stream_id")
        .await;
    assert_eq!(aside, ["0/1000-0 online heartbeat", "0/3000-0 offline expired", "0/4000-0 online heartbeat"]);
    assert_eq!(db.history(777).await.len(), 0);
}

async fn a_user_who_was_deleted_is_set_aside(db: Db) {
    let ada = db.user("ada").await;
    db.record(0, &[transition(1_000, ada, Online)]).await.unwrap();
    db.store.delete_account(ada, None).await.unwrap();
    let outcome = db.record(0, &[transition(2_000, ada, Offline)]).await.unwrap();
    assert_eq!(outcome, RecordOutcome { unknown: vec![ada], ..RecordOutcome::default() });
    assert_eq!(db.history(ada).await.len(), 0);
}

async fn a_history_alternates_after_redis_lost_its_data(db: Db) {
    let ada = db.user("ada").await;
    db.record(0, &[transition(1_000, ada, Online)]).await.unwrap();
    // Redis came back empty and hears Ada anew: SQL calls her online already.
    assert_eq!(db.record(0, &[transition(9_000, ada, Online)]).await.unwrap().recorded, 0);
    assert_eq!(db.mirror(ada).await, (Online, Some(9_000)));
    db.record(0, &[transition(10_000, ada, Offline)]).await.unwrap();
    assert_eq!(db.history(ada).await, ["offline>online heartbeat 1000", "online>offline expired 10000"]);
}

async fn shards_are_told_apart(db: Db) {
    let (ada, bob) = (db.user("ada").await, db.user("bob").await);
    // Two shards may well append in the same millisecond.
    assert_eq!(db.record(0, &[transition(1_000, ada, Online)]).await.unwrap().recorded, 1);
    assert_eq!(db.record(u32::MAX, &[transition(1_000, bob, Online)]).await.unwrap().recorded, 1);
}

async fn two_persisters_of_one_shard_record_each_transition_once(db: Db) {
    let other = db.another().await;
    let mut users = Vec::new();
    for index in 0..5 {
        users.push(db.user(&format!("user{index}")).await);
    }
    let stream: Vec<_> = (0..200u64)
        .map(|step| {
            let index = usize::try_from(step).unwrap();
            transition(
                1_000 + step,
                users[index % 5],
                if (index / 5).is_multiple_of(2) { Online } else { Offline },
            )
        })
        .collect();
    let persist = async |store: &dyn presenced::store::Store, size: usize| {
        let mut recorded = 0;
        let mut done = 0;
        while done < stream.len() {
            // What the stream still holds begins at or before what SQL has not taken yet.
            let end = (done + size).min(stream.len());
            recorded += store.record(0, &stream[..end], LATER).await.unwrap().recorded;
            done = end;
        }
        recorded
    };
    let (one, two) = tokio::join!(persist(&*db.store, 30), persist(&*other, 17));
    assert_eq!(one + two, stream.len());
    for user in users {
        let history = db.history(user).await;
        assert_eq!(history.len(), 40);
        assert!(history.iter().step_by(2).all(|row| row.starts_with("offline>online ")), "{history:?}");
    }
}

async fn persisters_of_many_shards_and_account_changes_do_not_wait_in_a_circle(db: Db) {
    let other = db.another().await;
    let mut users = Vec::new();
    for index in 0..40 {
        users.push(db.user(&format!("user{index}")).await);
    }
    let seen = |ms: i64| users.iter().rev().map(|user| (*user, Millis(ms))).collect::<Vec<_>>();
    let batch = |ms: u64, to| users.iter().rev().map(|user| transition(ms, *user, to)).collect::<Vec<_>>();
    let patch =
        |is_active| presenced::store::AccountPatch { is_active: Some(is_active), ..Default::default() };
    for round in 1..15u64 {
        let ms = round * 1_000;
        let word = if round.is_multiple_of(2) { Offline } else { Online };
        let later = i64::try_from(ms).unwrap() + 500;
        let (one, two) = (batch(ms, word), batch(ms + 1, Away));
        let (seen, patch) = (seen(later), patch(round.is_multiple_of(2)));
        let (a, b, c, d) = tokio::join!(
            db.record(0, &one),
            other.record(1, &two, LATER),
            other.touch_last_seen(&seen, LATER),
            db.store.update_account(users[0], &patch, None),
        );
        a.unwrap();
        b.unwrap();
        c.unwrap();
        d.unwrap();
    }
}

async fn a_large_batch_is_one_step(db: Db) {
    db.users(10_000).await;
    let batch: Vec<_> =
        (1..=10_000u64).map(|id| transition(1_000 + id, i64::try_from(id).unwrap(), Online)).collect();
    assert_eq!(db.record(0, &batch).await.unwrap().recorded, 10_000);
    let present = db.store.present_in_mirror_after(0, 20_000).await.unwrap();
    assert_eq!(present.len(), 10_000);
}

async fn a_blocked_user_is_recorded_like_any_other(db: Db) {
    let ada = db.user("ada").await;
    db.record(0, &[transition(1_000, ada, Online)]).await.unwrap();
    db.sql("UPDATE users SET is_active = NOT is_active").await;
    let blocked = Transition { reason: Reason::Blocked, ..transition(2_000, ada, Offline) };
    db.record(0, &[blocked]).await.unwrap();
    assert_eq!(db.history(ada).await, ["offline>online heartbeat 1000", "online>offline blocked 2000"]);
}

/// One entry of a made-up stream: which of three users, the new status, the heartbeat that it knows.
type Word = (usize, OnlineStatus, Option<i64>);
/// Where a batch ends, and how far it reaches back over what was written already.
type Cut = (usize, usize);

/// A stream of three users, and where it is cut into batches (each written together with some of what came before).
fn any_stream() -> impl Strategy<Value = (Vec<Word>, Vec<Cut>)> {
    let entry = (0..3usize, prop::sample::select(OnlineStatus::ALL.to_vec()), prop::option::of(0..5_000i64));
    (prop::collection::vec(entry, 0..30), prop::collection::vec((0..30usize, 0..6usize), 0..5))
}

#[test]
fn what_sql_holds_is_what_the_chain_says() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let db = runtime.block_on(Db::sqlite());
    let mut runner = TestRunner::new(Config { cases: 24, failure_persistence: None, ..Config::default() });
    let outcome = runner.run(&any_stream(), |(words, cuts)| {
        let case = super::serial();
        runtime.block_on(check(&db, case, &words, &cuts));
        Ok(())
    });
    outcome.unwrap();
}

async fn check(db: &Db, case: u64, words: &[Word], cuts: &[Cut]) {
    let mut users: Vec<UserId> = Vec::new();
    for index in 0..3 {
        users.push(db.user(&format!("case{case}user{index}")).await);
    }
    let stream: Vec<Transition> = (case * 1_000..)
        .zip(words)
        .map(|(ms, (index, to, seen))| Transition {
            last_seen: seen.map(Millis),
            ..transition(ms, users[*index], *to)
        })
        .collect();
    let mut ends: Vec<_> = cuts.iter().map(|(end, back)| ((*end).min(stream.len()), *back)).collect();
    ends.sort_unstable();
    ends.push((stream.len(), stream.len()));
    let (mut recorded, mut done) = (0, 0);
    for (end, back) in ends {
        let batch = &stream[done - back.min(done)..end];
        recorded += db.record(0, batch).await.unwrap().recorded;
        done = end;
    }
    let mut rows = 0;
    let mut by_user: BTreeMap<UserId, Vec<&Transition>> = BTreeMap::new();
    for transition in &stream {
        by_user.entry(transition.user).or_default().push(transition);
    }
    for (user, transitions) in by_user {
        let mut end = Recorded { status: Offline, version: 0, last_seen: None };
        let expected: Vec<String> = chain(&mut end, transitions)
            .into_iter()
            .map(|row| format!("{}>{} {} {}", row.from, row.to, row.reason.as_str(), row.at.0))
            .collect();
        rows += expected.len();
        assert_eq!(db.history(user).await, expected);
        assert_eq!(db.mirror(user).await, (end.status, end.last_seen.map(|seen| seen.0)));
    }
    assert_eq!(recorded, rows);
}
