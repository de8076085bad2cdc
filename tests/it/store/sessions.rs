//! Login sessions and the rotation of refresh tokens.

use presenced::model::{Millis, Page, SessionId, UserId};
use presenced::store::{NewSession, RefreshHash, Rotation, RotationRequest, Session, SessionEnd, Store};

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
    a_session_of_a_deleted_account_comes_to_nothing,
    a_login_forgets_what_ended_long_ago,
    sessions_are_listed_by_pages,
    a_login_beyond_the_most_ends_the_oldest,
    a_session_that_has_run_out_makes_room_before_one_that_is_used,
    logins_at_once_leave_no_more_alive_than_may_be,
    an_account_with_very_many_sessions_loses_them_a_bounded_number_at_a_time,
    a_refresh_beyond_the_greatest_age_ends_the_session,
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
        most_alive: 50,
        now: Millis(now),
    }
}

/// The first thousand sessions of the user that are alive.
pub async fn alive(store: &dyn Store, user: UserId, now: i64) -> Vec<Session> {
    let list = store.sessions(user, Millis(now), Page { number: 1, size: 1_000 }).await.unwrap();
    assert!(list.total > 1_000 || i64::try_from(list.sessions.len()) == Ok(list.total), "{}", list.total);
    list.sessions
}

/// Ends one session of the user; whether it was alive.
pub async fn end(store: &dyn Store, user: UserId, name: &str, now: i64) -> bool {
    let sid = sid(name);
    let end = SessionEnd { user, sid: Some(&sid), now: Millis(now), by: None };
    !store.end_sessions(&end).await.unwrap().sids.is_empty()
}

/// Ends all sessions of the user, and names those that were alive.
pub async fn end_all(store: &dyn Store, user: UserId, now: i64) -> Vec<SessionId> {
    let end = SessionEnd { user, sid: None, now: Millis(now), by: None };
    let ended = store.end_sessions(&end).await.unwrap();
    assert!(!ended.more);
    ended.sids
}

fn rotation(user: UserId, name: &str, presented: RefreshHash, now: i64) -> RotationRequest {
    RotationRequest {
        sid: sid(name),
        user,
        presented,
        successor: hash(),
        successor_expires_at: Millis(now + 7 * DAY_MS),
        begun_since: None,
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
        alive(&*db.store, ada, now)
            .await
            .into_iter()
            .map(|session| session.sid.to_string())
            .collect::<Vec<_>>()
    };
    assert_eq!(listed(2_000).await, ["new", "old"]);
    let first = &alive(&*db.store, ada, 2_000).await[0];
    assert_eq!((first.created_at, first.last_used_at), (Millis(2_000), Millis(2_000)));
    assert_eq!(first.user_agent.as_deref(), Some("a browser"));
    assert_eq!(listed(1_000 + 7 * DAY_MS).await, ["new"]);
    assert!(end(&*db.store, ada, "new", 3_000).await);
    assert_eq!(listed(3_000).await, ["old"]);
}

async fn a_user_agent_is_kept_short_and_plain(db: Db) {
    let ada = db.user("ada").await;
    let said = format!("a\0b\n{}", "ü".repeat(300));
    db.store
        .create_session(&NewSession { user_agent: Some(said), ..session(ada, "s", 1_000) })
        .await
        .unwrap();
    let kept = alive(&*db.store, ada, 1_000).await.remove(0).user_agent.unwrap();
    assert_eq!(kept, format!("ab{}", "ü".repeat(254)));
}

async fn an_unused_token_rotates(db: Db) {
    let ada = db.user("ada").await;
    let new = session(ada, "s", 1_000);
    db.store.create_session(&new).await.unwrap();
    let first = rotation(ada, "s", new.refresh_hash, 50_000);
    assert_eq!(db.store.rotate_refresh(&first).await.unwrap(), Rotation::Rotated);
    assert_eq!(alive(&*db.store, ada, 50_000).await[0].last_used_at, Millis(50_000));
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
    assert!(!end(&*db.store, bob, "s", 2_000).await);
    assert!(end_all(&*db.store, bob, 2_000).await.is_empty());
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
    assert!(end(&*db.store, ada, "s", 2_000).await);
    assert!(!end(&*db.store, ada, "s", 9_000).await);
    assert!(db.store.session_has_ended(ada, &new.sid).await.unwrap());
    assert!(!db.store.session_has_ended(ada, &sid("unheard-of")).await.unwrap());
    let late = rotation(ada, "s", new.refresh_hash, 3_000);
    assert_eq!(db.store.rotate_refresh(&late).await.unwrap(), Rotation::Ended);
}

async fn all_sessions_end_together_and_are_named_once(db: Db) {
    let (ada, other) = (db.user("ada").await, db.another().await);
    for name in ["a", "b", "c"] {
        db.store.create_session(&session(ada, name, 1_000)).await.unwrap();
    }
    end(&*db.store, ada, "b", 1_500).await;
    let (one, two) = tokio::join!(end_all(&*db.store, ada, 2_000), end_all(&*other, ada, 2_000));
    let mut ended: Vec<String> = one.into_iter().chain(two).map(|sid| sid.to_string()).collect();
    ended.sort();
    assert_eq!(ended, ["a", "c"]);
    assert_eq!(tokens(&db).await, 0);
}

async fn a_session_of_a_deleted_account_comes_to_nothing(db: Db) {
    let new = session(4_711, "s", 1_000);
    assert_eq!(db.store.create_session(&new).await.unwrap(), None);
    assert!(alive(&*db.store, 4_711, 1_000).await.is_empty());
    let next = rotation(4_711, "s", new.refresh_hash, 2_000);
    assert_eq!(db.store.rotate_refresh(&next).await.unwrap(), Rotation::Ended);
}

async fn a_login_forgets_what_ended_long_ago(db: Db) {
    let ada = db.user("ada").await;
    for name in ["ended", "told", "untold", "run-out", "alive"] {
        db.store.create_session(&session(ada, name, 1_000)).await.unwrap();
    }
    for name in ["ended", "told", "untold"] {
        end(&*db.store, ada, name, 2_000).await;
    }
    // One ended before ends were told by Redis's clock, one was told late, and of one Redis was not told at all.
    db.sql("UPDATE login_sessions SET end_untold = (1 = 0) WHERE sid = 'ended'").await;
    db.store.ends_told(&[("told".into(), Millis(20 * DAY_MS))]).await.unwrap();
    db.sql("UPDATE refresh_tokens SET expires_at = '2999-01-01T00:00:00.000Z' WHERE sid = 'alive'").await;
    db.store.create_session(&session(ada, "soon", 20 * DAY_MS)).await.unwrap();
    assert_eq!(db.texts("SELECT sid FROM login_sessions").await.len(), 6);
    db.store.create_session(&session(ada, "later", 45 * DAY_MS)).await.unwrap();
    let kept = async || db.texts("SELECT sid FROM login_sessions ORDER BY sid").await;
    assert_eq!(kept().await, ["alive", "later", "soon", "told", "untold"]);
    db.store.create_session(&session(ada, "last", 60 * DAY_MS)).await.unwrap();
    assert_eq!(kept().await, ["alive", "last", "later", "untold"]);
}

async fn sessions_are_listed_by_pages(db: Db) {
    let (ada, bob) = (db.user("ada").await, db.user("bob").await);
    for number in 1..=5 {
        db.store.create_session(&session(ada, &format!("s{number}"), number * 1_000)).await.unwrap();
    }
    db.store.create_session(&session(bob, "bob's", 9_000)).await.unwrap();
    end(&*db.store, ada, "s4", 9_000).await;
    let page = async |number, size| {
        let list = db.store.sessions(ada, Millis(10_000), Page { number, size }).await.unwrap();
        assert_eq!(list.total, 4);
        list.sessions.into_iter().map(|session| session.sid.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(page(1, 3).await, ["s5", "s3", "s2"]);
    assert_eq!(page(2, 3).await, ["s1"]);
    assert!(page(3, 3).await.is_empty() && page(u32::MAX, 1_000).await.is_empty());
}

/// A login that leaves room for so many sessions; names those that it displaced.
async fn login(store: &dyn Store, user: UserId, name: &str, now: i64, most_alive: u32) -> Vec<String> {
    let new = NewSession { most_alive, ..session(user, name, now) };
    let begun = store.create_session(&new).await.unwrap().expect("an account that may be present");
    let mut displaced: Vec<String> = begun.displaced.iter().map(ToString::to_string).collect();
    displaced.sort();
    displaced
}

async fn a_login_beyond_the_most_ends_the_oldest(db: Db) {
    let (ada, bob) = (db.user("ada").await, db.user("bob").await);
    login(&*db.store, bob, "bob's", 1, 3).await;
    for name in ["s1", "s2", "s3"] {
        assert!(login(&*db.store, ada, name, 1_000, 3).await.is_empty());
    }
    assert_eq!(login(&*db.store, ada, "s4", 2_000, 3).await, ["s1"]);
    assert!(db.store.session_has_ended(ada, &sid("s1")).await.unwrap());
    assert_eq!(tokens(&db).await, 4, "its refresh token is void");
    // A clock that was set back makes nobody log out who has just logged in.
    assert_eq!(login(&*db.store, ada, "s5", 500, 3).await, ["s2"]);
    // A smaller setting counts from the next login on.
    assert_eq!(login(&*db.store, ada, "s6", 3_000, 1).await, ["s3", "s4", "s5"]);
    assert_eq!(alive(&*db.store, bob, 3_000).await.len(), 1);
}

async fn a_session_that_has_run_out_makes_room_before_one_that_is_used(db: Db) {
    let ada = db.user("ada").await;
    for (name, at) in [("phone", 1_000), ("run-out", 2_000), ("laptop", 3_000)] {
        login(&*db.store, ada, name, at, 3).await;
    }
    db.sql("UPDATE refresh_tokens SET expires_at = '1970-01-01T00:00:03.500Z' WHERE sid = 'run-out'").await;
    assert_eq!(login(&*db.store, ada, "tablet", 4_000, 3).await, ["run-out"]);
    assert_eq!(login(&*db.store, ada, "watch", 5_000, 3).await, ["phone"]);
}

async fn logins_at_once_leave_no_more_alive_than_may_be(db: Db) {
    let (ada, other) = (db.user("ada").await, db.another().await);
    for round in 0..5 {
        let stores = [&*db.store, &*other, &*db.store, &*other, &*db.store, &*other];
        let names: Vec<String> = (0..stores.len()).map(|number| format!("s{round}-{number}")).collect();
        let logins = stores.into_iter().zip(&names).map(|(store, name)| login(store, ada, name, 1_000, 3));
        futures_util::future::join_all(logins).await;
        assert_eq!(alive(&*db.store, ada, 1_000).await.len(), 3, "round {round}");
    }
}

async fn an_account_with_very_many_sessions_loses_them_a_bounded_number_at_a_time(db: Db) {
    let ada = db.user("ada").await;
    // As a version without a bound has left them.
    db.old_sessions(ada, 2_600, false).await;
    assert_eq!(login(&*db.store, ada, "new", 1_800_000_000_000, 50).await.len(), 1_000);
    assert!(!db.store.session_has_ended(ada, &sid("new")).await.unwrap());
    let mut left = 2_601 - 1_000;
    while left > 0 {
        let end = SessionEnd { user: ada, sid: None, now: Millis(1_800_000_000_000), by: None };
        let ended = db.store.end_sessions(&end).await.unwrap();
        assert!(!ended.sids.is_empty() && ended.sids.len() <= 1_000);
        left -= ended.sids.len();
        assert!(ended.more || left == 0);
    }
    assert!(end_all(&*db.store, ada, 1_800_000_000_000).await.is_empty());
}

async fn a_refresh_beyond_the_greatest_age_ends_the_session(db: Db) {
    let ada = db.user("ada").await;
    let new = session(ada, "s", 1_000);
    db.store.create_session(&new).await.unwrap();
    let bounded = |presented, now| RotationRequest {
        begun_since: Some(Millis(now - 10_000)),
        ..rotation(ada, "s", presented, now)
    };
    let first = bounded(new.refresh_hash, 11_000);
    assert_eq!(db.store.rotate_refresh(&first).await.unwrap(), Rotation::Rotated);
    let second = bounded(first.successor, 11_001);
    assert_eq!(db.store.rotate_refresh(&second).await.unwrap(), Rotation::TooOld);
    assert!(db.store.session_has_ended(ada, &new.sid).await.unwrap());
    assert_eq!((tokens(&db).await, db.store.rotate_refresh(&second).await.unwrap()), (0, Rotation::Ended));
}

/// What a login and an end cost must not grow with the sessions that the account once had: 50,000 take far longer to read
/// than the whole login takes.
async fn old_sessions_cost_nothing(db: Db) {
    let (ada, bob) = (db.user("ada").await, db.user("bob").await);
    db.old_sessions(bob, 50_000, true).await;
    db.sql("ANALYZE").await;
    let mut times = [Vec::new(), Vec::new()];
    for round in 0..40 {
        for (user, times) in [ada, bob].into_iter().zip(&mut times) {
            let name = format!("{user}-{round}");
            let began = std::time::Instant::now();
            login(&*db.store, user, &name, 1_800_000_000_000 + round, 10).await;
            alive(&*db.store, user, 1_800_000_000_000).await;
            if round % 2 == 0 {
                assert!(end(&*db.store, user, &name, 1_800_000_000_000).await);
            }
            times.push(began.elapsed());
        }
    }
    let median = |mut times: Vec<std::time::Duration>| {
        times.sort_unstable();
        times[times.len() / 2]
    };
    let [plain, old] = times.map(median);
    println!("a login, a list and an end: {plain:?}; with 50,000 old sessions: {old:?}");
    assert!(old < plain * 3, "{plain:?} became {old:?}");
}

#[tokio::test]
async fn old_sessions_cost_a_login_nothing_on_sqlite() {
    old_sessions_cost_nothing(Db::sqlite().await).await;
}

#[tokio::test]
async fn old_sessions_cost_a_login_nothing_on_postgres() {
    old_sessions_cost_nothing(Db::postgres().await).await;
}
