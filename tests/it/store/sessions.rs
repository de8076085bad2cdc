//! Login sessions and the rotation of refresh tokens.

use presenced::model::{Millis, SessionId, UserId};
use presenced::store::{NewSession, RefreshHash, Rotation, RotationRequest};

use super::{Db, on_both, serial};

const GRACE_MS: i64 = 10_000;
const DAY_MS: i64 = 86_400_000;

on_both!(
    a_session_is_listed_until_it_ends_or_runs_out,
    a_user_agent_is_kept_short_and_plain,
    an_unused_token_rotates,
    a_token_used_twice_within_the_grace_is_two_tabs,
    a_token_used_again_after_the_grace_is_theft,
    a_token_that_the_session_never_had_is_theft,
    another_users_session_is_not_touched,
    two_rotations_at_once_both_win,
    two_thefts_at_once_end_the_session_once,
    rotations_leave_no_old_tokens_behind,
    an_ended_session_stays_ended,
    all_sessions_end_together_and_are_named_once,
    sessions_that_ended_are_told_from_an_instant_on,
    a_session_of_a_deleted_account_comes_to_nothing,
    a_login_forgets_what_ended_long_ago,
);

fn sid(name: &str) -> SessionId {
    SessionId::parse(name).unwrap()
}

fn hash() -> RefreshHash {
    let mut hash = [7; 32];
    hash[..8].copy_from_slice(&serial().to_be_bytes());
    hash
}

pub fn session(user: UserId, name: &str, now: i64) -> NewSession {
    NewSession {
        sid: sid(name),
        user,
        refresh_hash: hash(),
        refresh_expires_at: Millis(now + 7 * DAY_MS),
        user_agent: Some("a browser".into()),
        password_hash: None,
        now: Millis(now),
    }
}

fn rotation(user: UserId, name: &str, presented: RefreshHash, now: i64) -> RotationRequest {
    RotationRequest {
        sid: sid(name),
        user,
        presented,
        successor: hash(),
        successor_expires_at: Millis(now + 7 * DAY_MS),
        now: Millis(now),
        grace_ms: GRACE_MS,
    }
}

async fn tokens(db: &Db) -> usize {
    db.texts("SELECT sid FROM refresh_tokens").await.len()
}

async fn a_session_is_listed_until_it_ends_or_runs_out(db: Db) {
    let ada = db.user("ada").await;
    let (old, new) = (session(ada, "old", 1_000), session(ada, "new", 2_000));
    db.store.create_session(&old).await.unwrap();
    db.store.create_session(&new).await.unwrap();
    let listed = async |now| {
        let sessions = db.store.sessions(ada, Millis(now)).await.unwrap();
        sessions.into_iter().map(|session| session.sid.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(listed(2_000).await, ["new", "old"]);
    let first = &db.store.sessions(ada, Millis(2_000)).await.unwrap()[0];
    assert_eq!((first.created_at, first.last_used_at), (Millis(2_000), Millis(2_000)));
    assert_eq!(first.user_agent.as_deref(), Some("a browser"));
    assert_eq!(listed(1_000 + 7 * DAY_MS).await, ["new"]);
    assert!(db.store.end_session(ada, &new.sid, Millis(3_000)).await.unwrap());
    assert_eq!(listed(3_000).await, ["old"]);
}

async fn a_user_agent_is_kept_short_and_plain(db: Db) {
    let ada = db.user("ada").await;
    let said = format!("a\0b\n{}", "ü".repeat(300));
    db.store
        .create_session(&NewSession { user_agent: Some(said), ..session(ada, "s", 1_000) })
        .await
        .unwrap();
    let kept = db.store.sessions(ada, Millis(1_000)).await.unwrap().remove(0).user_agent.unwrap();
    assert_eq!(kept, format!("ab{}", "ü".repeat(254)));
}

async fn an_unused_token_rotates(db: Db) {
    let ada = db.user("ada").await;
    let new = session(ada, "s", 1_000);
    db.store.create_session(&new).await.unwrap();
    let first = rotation(ada, "s", new.refresh_hash, 50_000);
    assert_eq!(db.store.rotate_refresh(&first).await.unwrap(), Rotation::Rotated);
    assert_eq!(db.store.sessions(ada, Millis(50_000)).await.unwrap()[0].last_used_at, Millis(50_000));
    let second = rotation(ada, "s", first.successor, 900_000);
    assert_eq!(db.store.rotate_refresh(&second).await.unwrap(), Rotation::Rotated);
}

async fn a_token_used_twice_within_the_grace_is_two_tabs(db: Db) {
    let ada = db.user("ada").await;
    let new = session(ada, "s", 1_000);
    db.store.create_session(&new).await.unwrap();
    let one = rotation(ada, "s", new.refresh_hash, 20_000);
    let two = rotation(ada, "s", new.refresh_hash, 20_000 + GRACE_MS);
    for tab in [&one, &two] {
        assert_eq!(db.store.rotate_refresh(tab).await.unwrap(), Rotation::Rotated);
    }
    // From here on each tab has a line of its own, and neither harms the other.
    for (tab, now) in [(&two, 800_000), (&one, 900_000)] {
        let next = rotation(ada, "s", tab.successor, now);
        assert_eq!(db.store.rotate_refresh(&next).await.unwrap(), Rotation::Rotated);
    }
}

async fn a_token_used_again_after_the_grace_is_theft(db: Db) {
    let ada = db.user("ada").await;
    let new = session(ada, "s", 1_000);
    db.store.create_session(&new).await.unwrap();
    let first = rotation(ada, "s", new.refresh_hash, 20_000);
    assert_eq!(db.store.rotate_refresh(&first).await.unwrap(), Rotation::Rotated);
    let thief = rotation(ada, "s", new.refresh_hash, 20_000 + GRACE_MS + 1);
    assert_eq!(db.store.rotate_refresh(&thief).await.unwrap(), Rotation::Reused);
    assert_eq!(tokens(&db).await, 0);
    assert!(db.store.session_has_ended(ada, &new.sid).await.unwrap());
    // The rightful holder is out as well.
    let holder = rotation(ada, "s", first.successor, 31_000);
    assert_eq!(db.store.rotate_refresh(&holder).await.unwrap(), Rotation::Ended);
    assert_eq!(db.store.rotate_refresh(&thief).await.unwrap(), Rotation::Ended);
}

async fn a_token_that_the_session_never_had_is_theft(db: Db) {
    let ada = db.user("ada").await;
    let (one, two) = (session(ada, "one", 1_000), session(ada, "two", 1_000));
    db.store.create_session(&one).await.unwrap();
    db.store.create_session(&two).await.unwrap();
    // A token of the user's other session is none of this one.
    let crossed = rotation(ada, "one", two.refresh_hash, 2_000);
    assert_eq!(db.store.rotate_refresh(&crossed).await.unwrap(), Rotation::Reused);
    assert!(db.store.session_has_ended(ada, &one.sid).await.unwrap());
    let own = rotation(ada, "two", two.refresh_hash, 2_000);
    assert_eq!(db.store.rotate_refresh(&own).await.unwrap(), Rotation::Rotated);
}

async fn another_users_session_is_not_touched(db: Db) {
    let (ada, bob) = (db.user("ada").await, db.user("bob").await);
    let new = session(ada, "s", 1_000);
    db.store.create_session(&new).await.unwrap();
    let stranger = rotation(bob, "s", hash(), 2_000);
    assert_eq!(db.store.rotate_refresh(&stranger).await.unwrap(), Rotation::Ended);
    assert_eq!(db.store.rotate_refresh(&rotation(bob, "none", hash(), 1)).await.unwrap(), Rotation::Ended);
    assert!(!db.store.end_session(bob, &new.sid, Millis(2_000)).await.unwrap());
    assert!(db.store.end_sessions(bob, Millis(2_000)).await.unwrap().is_empty());
    assert!(!db.store.session_has_ended(bob, &new.sid).await.unwrap());
    let own = rotation(ada, "s", new.refresh_hash, 3_000);
    assert_eq!(db.store.rotate_refresh(&own).await.unwrap(), Rotation::Rotated);
}

async fn two_rotations_at_once_both_win(db: Db) {
    let (ada, other) = (db.user("ada").await, db.another().await);
    for round in 0..10 {
        let name = format!("s{round}");
        let new = session(ada, &name, 1_000);
        db.store.create_session(&new).await.unwrap();
        let (one, two) =
            (rotation(ada, &name, new.refresh_hash, 20_000), rotation(ada, &name, new.refresh_hash, 20_001));
        let (first, second) = tokio::join!(db.store.rotate_refresh(&one), other.rotate_refresh(&two));
        assert_eq!((first.unwrap(), second.unwrap()), (Rotation::Rotated, Rotation::Rotated));
        for tab in [&one, &two] {
            let next = rotation(ada, &name, tab.successor, 25_000);
            assert_eq!(db.store.rotate_refresh(&next).await.unwrap(), Rotation::Rotated);
        }
    }
}

async fn two_thefts_at_once_end_the_session_once(db: Db) {
    let (ada, other) = (db.user("ada").await, db.another().await);
    let new = session(ada, "s", 1_000);
    db.store.create_session(&new).await.unwrap();
    let (one, two) = (rotation(ada, "s", hash(), 20_000), rotation(ada, "s", hash(), 20_000));
    let (first, second) = tokio::join!(db.store.rotate_refresh(&one), other.rotate_refresh(&two));
    let mut outcomes = [first.unwrap(), second.unwrap()];
    outcomes.sort_unstable_by_key(|outcome| *outcome == Rotation::Ended);
    assert_eq!(outcomes, [Rotation::Reused, Rotation::Ended]);
}

async fn rotations_leave_no_old_tokens_behind(db: Db) {
    let ada = db.user("ada").await;
    let new = session(ada, "s", 1_000);
    db.store.create_session(&new).await.unwrap();
    let mut presented = new.refresh_hash;
    for step in 1..20 {
        let next = rotation(ada, "s", presented, step * 60_000);
        assert_eq!(db.store.rotate_refresh(&next).await.unwrap(), Rotation::Rotated);
        presented = next.successor;
    }
    // The last one, and the one before it, still within its grace.
    assert_eq!(tokens(&db).await, 2);
}

async fn an_ended_session_stays_ended(db: Db) {
    let ada = db.user("ada").await;
    let new = session(ada, "s", 1_000);
    db.store.create_session(&new).await.unwrap();
    assert!(!db.store.session_has_ended(ada, &new.sid).await.unwrap());
    assert!(db.store.end_session(ada, &new.sid, Millis(2_000)).await.unwrap());
    assert!(!db.store.end_session(ada, &new.sid, Millis(9_000)).await.unwrap());
    assert!(db.store.session_has_ended(ada, &new.sid).await.unwrap());
    assert!(!db.store.session_has_ended(ada, &sid("unheard-of")).await.unwrap());
    let late = rotation(ada, "s", new.refresh_hash, 3_000);
    assert_eq!(db.store.rotate_refresh(&late).await.unwrap(), Rotation::Ended);
    assert!(db.store.sessions_ended_since(Millis(2_001)).await.unwrap().is_empty());
}

async fn all_sessions_end_together_and_are_named_once(db: Db) {
    let (ada, other) = (db.user("ada").await, db.another().await);
    for name in ["a", "b", "c"] {
        db.store.create_session(&session(ada, name, 1_000)).await.unwrap();
    }
    db.store.end_session(ada, &sid("b"), Millis(1_500)).await.unwrap();
    let (one, two) =
        tokio::join!(db.store.end_sessions(ada, Millis(2_000)), other.end_sessions(ada, Millis(2_000)),);
    let mut ended: Vec<String> =
        one.unwrap().into_iter().chain(two.unwrap()).map(|sid| sid.to_string()).collect();
    ended.sort();
    assert_eq!(ended, ["a", "c"]);
    assert_eq!(tokens(&db).await, 0);
}

async fn sessions_that_ended_are_told_from_an_instant_on(db: Db) {
    let (ada, bob) = (db.user("ada").await, db.user("bob").await);
    for (user, name, at) in [(ada, "early", 2_000), (bob, "late", 3_000), (bob, "alive", 0)] {
        db.store.create_session(&session(user, name, 1_000)).await.unwrap();
        if at > 0 {
            db.store.end_session(user, &sid(name), Millis(at)).await.unwrap();
        }
    }
    assert_eq!(
        db.store.sessions_ended_since(Millis(2_000)).await.unwrap(),
        [(ada, sid("early")), (bob, sid("late"))]
    );
    assert_eq!(db.store.sessions_ended_since(Millis(2_001)).await.unwrap(), [(bob, sid("late"))]);
}

async fn a_session_of_a_deleted_account_comes_to_nothing(db: Db) {
    let new = session(4_711, "s", 1_000);
    db.store.create_session(&new).await.unwrap();
    assert!(db.store.sessions(4_711, Millis(1_000)).await.unwrap().is_empty());
    let next = rotation(4_711, "s", new.refresh_hash, 2_000);
    assert_eq!(db.store.rotate_refresh(&next).await.unwrap(), Rotation::Ended);
}

async fn a_login_forgets_what_ended_long_ago(db: Db) {
    let ada = db.user("ada").await;
    for name in ["ended", "run-out", "alive"] {
        db.store.create_session(&session(ada, name, 1_000)).await.unwrap();
    }
    db.store.end_session(ada, &sid("ended"), Millis(2_000)).await.unwrap();
    let alive = db.texts("SELECT sid FROM login_sessions ORDER BY sid").await;
    assert_eq!(alive, ["alive", "ended", "run-out"]);
    db.sql("UPDATE refresh_tokens SET expires_at = '2999-01-01T00:00:00.000Z' WHERE sid = 'alive'").await;
    db.store.create_session(&session(ada, "soon", 20 * DAY_MS)).await.unwrap();
    assert_eq!(db.texts("SELECT sid FROM login_sessions").await.len(), 4);
    db.store.create_session(&session(ada, "later", 60 * DAY_MS)).await.unwrap();
    let kept = db.texts("SELECT sid FROM login_sessions ORDER BY sid").await;
    assert_eq!(kept, ["alive", "later"]);
}
