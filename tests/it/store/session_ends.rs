//! The ends of sessions, as Redis must be told of them: each until it is noted, however the session ended.

use presenced::model::{AccountStatus, Millis, UserId};
use presenced::store::{Store, UntoldEnd};
use sqlx::{Connection, PgConnection, query};

use super::sessions::{end, end_all, session};
use super::{Db, on_both};
use crate::support::poll::eventually;

on_both!(
    every_end_is_untold_until_it_is_noted_however_it_came_about,
    an_end_that_was_taken_back_is_none,
    ends_are_told_again_from_an_instant_of_redis_on,
    an_account_with_many_ends_holds_up_no_other,
    an_end_wakes_who_waits_and_nothing_else_of_a_session_does,
);

fn untold(user: UserId, sid: &str, blocked: bool) -> UntoldEnd {
    UntoldEnd { user, sid: sid.to_owned(), blocked }
}

async fn untold_names(store: &dyn Store) -> Vec<String> {
    let page = store.untold_ends(0).await.unwrap();
    assert_eq!(page.next, None);
    page.ends.into_iter().map(|end| end.sid).collect()
}

async fn every_end_is_untold_until_it_is_noted_however_it_came_about(db: Db) {
    let (ada, bob) = (db.user("ada").await, db.user("bob").await);
    for name in ["api", "all", "sql", "theft"] {
        db.store.create_session(&session(ada, name, 1_000)).await.unwrap();
    }
    db.store.create_session(&session(bob, "block", 1_000)).await.unwrap();
    assert!(untold_names(&*db.store).await.is_empty(), "all are alive");

    end(&*db.store, ada, "api", 2_000).await;
    assert_eq!(untold_names(&*db.store).await, ["api"]);
    db.sql("UPDATE login_sessions SET ended_at = created_at WHERE sid = 'sql'").await;
    assert_eq!(untold_names(&*db.store).await, ["api", "sql"]);
    end_all(&*db.store, ada, 2_000).await;
    db.sql(&format!("UPDATE users SET status = 'banned' WHERE id = {bob}")).await;
    db.sql(&format!(
        "INSERT INTO login_sessions (sid, user_id, created_at, last_used_at, ended_at) \
         SELECT 'imported', {ada}, created_at, created_at, created_at FROM login_sessions WHERE sid = 'api'"
    ))
    .await;
    let all = db.store.untold_ends(0).await.unwrap().ends;
    let mut expected: Vec<_> =
        ["all", "api", "imported", "sql", "theft"].iter().map(|sid| untold(ada, sid, false)).collect();
    expected.push(untold(bob, "block", true));
    assert_eq!(all, expected);
    assert_eq!(db.store.untold_ends_of(&[bob]).await.unwrap(), expected[5..]);
    assert!(db.store.untold_ends_of(&[]).await.unwrap().is_empty());

    let told = |sids: &[&str]| sids.iter().map(|sid| ((*sid).to_owned(), Millis(3_000))).collect::<Vec<_>>();
    assert_eq!(db.store.ends_told(&told(&["api", "all", "block", "unknown"])).await.unwrap(), 3);
    assert_eq!(db.store.ends_told(&told(&["api"])).await.unwrap(), 0);
    assert_eq!(db.store.ends_told(&[]).await.unwrap(), 0);
    assert_eq!(untold_names(&*db.store).await, ["imported", "sql", "theft"]);
    // That SQL dates an end anew is no new end.
    db.sql("UPDATE login_sessions SET ended_at = last_used_at WHERE sid = 'api'").await;
    assert_eq!(untold_names(&*db.store).await, ["imported", "sql", "theft"]);
}

async fn an_end_that_was_taken_back_is_none(db: Db) {
    let ada = db.user("ada").await;
    for name in ["told", "untold"] {
        db.store.create_session(&session(ada, name, 1_000)).await.unwrap();
        end(&*db.store, ada, name, 2_000).await;
    }
    db.store.ends_told(&[("told".into(), Millis(3_000))]).await.unwrap();
    db.sql("UPDATE login_sessions SET ended_at = NULL").await;
    assert!(untold_names(&*db.store).await.is_empty());
    assert!(db.store.sessions_ended_since(Millis(0)).await.unwrap().is_empty());
    assert_eq!(db.store.ends_told(&[("untold".into(), Millis(3_000))]).await.unwrap(), 0);
    end(&*db.store, ada, "told", 4_000).await;
    assert_eq!(untold_names(&*db.store).await, ["told"], "it ended anew");
}

async fn ends_are_told_again_from_an_instant_of_redis_on(db: Db) {
    let (ada, bob) = (db.user("ada").await, db.user("bob").await);
    // The instants at which SQL or the service say that it ended do not matter: they may be of any clock.
    for (name, ended, told) in [("early", 9_000_000, 2_000), ("late", 1, 3_000), ("untold", 5, 0)] {
        db.store.create_session(&session(ada, name, 1_000)).await.unwrap();
        end(&*db.store, ada, name, ended).await;
        if told > 0 {
            db.store.ends_told(&[(name.into(), Millis(told))]).await.unwrap();
        }
    }
    db.store.create_session(&session(ada, "alive", 1_000)).await.unwrap();
    db.store.create_session(&session(bob, "of-the-blocked", 1_000)).await.unwrap();
    db.sql(&format!("UPDATE users SET status = 'banned' WHERE id = {bob}")).await;
    let since = async |at| {
        let ended = db.store.sessions_ended_since(Millis(at)).await.unwrap();
        assert!(ended.iter().all(|(user, _)| *user == ada));
        ended.into_iter().map(|(_, sid)| sid.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(since(2_000).await, ["early", "late", "untold"]);
    assert_eq!(since(2_001).await, ["late", "untold"]);
    assert_eq!(since(3_001).await, ["untold"]);
}

async fn an_account_with_many_ends_holds_up_no_other(db: Db) {
    let (ada, bob) = (db.user("ada").await, db.user("bob").await);
    db.old_sessions(ada, 5_000, false).await;
    end_all_of(&db, ada).await;
    db.store.create_session(&session(bob, "bob's", 1_000)).await.unwrap();
    end(&*db.store, bob, "bob's", 2_000).await;
    let (mut found, mut pages) = (0, 0);
    loop {
        let page = db.store.untold_ends(0).await.unwrap();
        if page.ends.is_empty() {
            break;
        }
        pages += 1;
        assert!(page.ends.len() <= 2_048, "{}", page.ends.len());
        let of_bob = page.ends.iter().filter(|end| end.user == bob).count();
        assert_eq!(of_bob, usize::from(pages == 1), "he is on the first page");
        found += page.ends.len();
        let told: Vec<_> = page.ends.into_iter().map(|end| (end.sid, Millis(5_000))).collect();
        assert_eq!(db.store.ends_told(&told).await.unwrap(), told.len() as u64);
    }
    assert_eq!((found, pages), (5_001, 3));

    // More accounts than a page holds: the next one begins behind the last.
    db.sql("DELETE FROM users").await;
    db.sql("DELETE FROM account_changes").await;
    for number in 0..300 {
        db.user(&format!("user{number}")).await;
    }
    db.sql(
        "INSERT INTO login_sessions (sid, user_id, created_at, last_used_at, ended_at) \
         SELECT username, id, created_at, created_at, created_at FROM users",
    )
    .await;
    let first = db.store.untold_ends(0).await.unwrap();
    assert_eq!((first.ends.len(), first.next), (256, first.ends.last().map(|end| end.user)));
    let second = db.store.untold_ends(first.next.unwrap()).await.unwrap();
    assert_eq!((second.ends.len(), second.next), (44, None));
    let of_each = db.store.untold_ends_of(&[first.ends[0].user, second.ends[43].user]).await.unwrap();
    assert_eq!(of_each.len(), 2);
}

/// Ends all sessions of the user by a block, which is taken back.
async fn end_all_of(db: &Db, user: UserId) {
    for status in [AccountStatus::Banned, AccountStatus::Active] {
        db.sql(&format!("UPDATE users SET status = '{status}' WHERE id = {user}")).await;
    }
}

async fn an_end_wakes_who_waits_and_nothing_else_of_a_session_does(db: Db) {
    let ada = db.user("ada").await;
    // What has changed until now is known after the first wait, or the second.
    let (bound, almost) = (std::time::Duration::from_millis(400), std::time::Duration::from_millis(390));
    for _ in 0..2 {
        db.store.wait_for_account_change(bound).await.unwrap();
    }
    let new = session(ada, "s", 1_000);
    db.store.create_session(&new).await.unwrap();
    let began = std::time::Instant::now();
    db.store.wait_for_account_change(bound).await.unwrap();
    assert!(began.elapsed() >= almost, "a login wakes nobody");
    end(&*db.store, ada, "s", 2_000).await;
    let woken = db.store.wait_for_account_change(std::time::Duration::from_mins(1)).await.unwrap();
    assert!(woken.sessions && !woken.accounts, "{woken:?}");
    db.store.ends_told(&[("s".into(), Millis(3_000))]).await.unwrap();
    let began = std::time::Instant::now();
    db.store.wait_for_account_change(bound).await.unwrap();
    assert!(began.elapsed() >= almost, "that it is noted wakes nobody");
}

/// What another transaction holds is not waited for, and is noted the next time.
#[tokio::test]
async fn an_end_whose_row_is_held_is_noted_later_on_postgres() {
    let db = Db::postgres().await;
    let ada = db.user("ada").await;
    for name in ["free", "held"] {
        db.store.create_session(&session(ada, name, 1_000)).await.unwrap();
        end(&*db.store, ada, name, 2_000).await;
    }
    let mut other = PgConnection::connect(&db.url).await.unwrap();
    let mut holding = other.begin().await.unwrap();
    query("SELECT FROM login_sessions WHERE sid = 'held' FOR UPDATE").execute(&mut *holding).await.unwrap();
    let told = [("free".to_owned(), Millis(3_000)), ("held".to_owned(), Millis(3_000))];
    assert_eq!(db.store.ends_told(&told).await.unwrap(), 1);
    assert_eq!(untold_names(&*db.store).await, ["held"]);
    holding.rollback().await.unwrap();
    eventually(std::time::Duration::from_secs(5), async || {
        let noted = db.store.ends_told(&told).await.unwrap();
        if noted == 1 { Ok(()) } else { Err(noted) }
    })
    .await;
}
