//! The account rule in SQL, and the log that tells of changes however they were made.

use std::time::{Duration, Instant};

use presenced::model::account::may_be_present;
use presenced::model::{AccountStatus, Role, UserId};
use presenced::store::{AccountPatch, ChangeCursor, ChangeRange, Standing, Store};
use sqlx::{Connection, PgConnection, query};

use super::{Db, on_both};
use crate::support::poll::eventually;

on_both!(
    sql_and_the_account_rule_agree_on_every_account,
    the_blocked_are_told_page_by_page,
    standings_come_in_the_order_asked,
    a_change_by_plain_sql_is_told,
    what_changes_nothing_is_not_told,
    a_deletion_by_plain_sql_is_told,
    each_account_is_told_once,
    a_mass_of_changes_is_read_page_by_page_from_both_ends,
    what_changes_while_a_mass_is_read_belongs_to_the_next_reading,
    a_cursor_goes_on_from_where_it_stands,
    a_cursor_of_another_life_reads_the_whole_log,
    the_cursor_stands_after_the_log_was_pruned,
    a_change_by_plain_sql_wakes_who_waits,
    a_change_by_another_handle_wakes_who_waits,
    nothing_wakes_nobody,
    a_wait_that_was_given_up_misses_nothing,
);

async fn sql_and_the_account_rule_agree_on_every_account(db: Db) {
    let mut expected = Vec::new();
    for status in AccountStatus::ALL {
        for is_active in [true, false] {
            let id = db.user_with(&format!("{status}-{is_active}"), status).await.id;
            let patch = AccountPatch { is_active: Some(is_active), ..AccountPatch::default() };
            assert_eq!(
                db.store.update_account(id, &patch, None).await.unwrap().unwrap().may_be_present(),
                may_be_present(status, is_active)
            );
            expected.push((id, may_be_present(status, is_active)));
        }
    }
    let ids: Vec<UserId> = expected.iter().map(|(id, _)| *id).collect();
    let standings: Vec<_> = expected
        .iter()
        .map(|(id, may)| (*id, if *may { Standing::MayBePresent } else { Standing::Blocked }))
        .collect();
    assert_eq!(db.store.standings(&ids).await.unwrap(), standings);
    let blocked: Vec<_> = expected.iter().filter(|(_, may)| !may).map(|(id, _)| *id).collect();
    assert_eq!(db.store.blocked_after(0, 100).await.unwrap(), blocked);
}

async fn the_blocked_are_told_page_by_page(db: Db) {
    let mut ids = Vec::new();
    for name in ["a", "b", "c", "d", "e"] {
        ids.push(db.user_with(name, AccountStatus::Banned).await.id);
    }
    db.user("fine").await;
    assert_eq!(db.store.blocked_after(0, 2).await.unwrap(), ids[..2]);
    assert_eq!(db.store.blocked_after(ids[1], 2).await.unwrap(), ids[2..4]);
    assert_eq!(db.store.blocked_after(ids[3], 2).await.unwrap(), ids[4..]);
    assert!(db.store.blocked_after(ids[4], 2).await.unwrap().is_empty());
}

async fn standings_come_in_the_order_asked(db: Db) {
    let (ada, bob) = (db.user("ada").await, db.user_with("bob", AccountStatus::Suspended).await.id);
    let asked = [bob, 999, ada, bob];
    let told = db.store.standings(&asked).await.unwrap();
    let expected = [Standing::Blocked, Standing::Gone, Standing::MayBePresent, Standing::Blocked];
    assert_eq!(told, asked.into_iter().zip(expected).collect::<Vec<_>>());
}

async fn changed(store: &dyn Store, since: &ChangeCursor) -> Vec<UserId> {
    let mut users = store.account_changes(since).await.unwrap().users;
    users.sort_unstable();
    users
}

/// Goes on from the cursor until nothing is told again, and returns where that was.
async fn passed(store: &dyn Store, mut cursor: ChangeCursor) -> ChangeCursor {
    eventually(Duration::from_secs(30), async || {
        let changes = store.account_changes(&cursor).await.unwrap();
        cursor = changes.cursor;
        if changes.users.is_empty() { Ok(cursor.clone()) } else { Err(changes.users) }
    })
    .await
}

async fn a_change_by_plain_sql_is_told(db: Db) {
    let (ada, bob) = (db.user("ada").await, db.user("bob").await);
    let flag = |on: bool| if on { "is_active = (1 = 1)" } else { "is_active = (1 = 0)" };
    for change in ["status = 'banned'", flag(false), flag(true), "status = 'active'", "role = 'admin'"] {
        let cursor = db.settled().await;
        db.sql(&format!("UPDATE users SET {change} WHERE id = {ada}")).await;
        assert_eq!(changed(&*db.store, &cursor).await, [ada], "{change}");
    }
    let cursor = db.settled().await;
    db.sql(&format!("UPDATE users SET id = 500 WHERE id = {bob}")).await;
    assert_eq!(changed(&*db.store, &cursor).await, [bob, 500]);
    let cursor = db.settled().await;
    db.sql("INSERT INTO users (id, username, email, password_hash, status) VALUES (900, 'c', 'c', 'x', 'banned')").await;
    assert_eq!(changed(&*db.store, &cursor).await, [900]);
}

async fn what_changes_nothing_is_not_told(db: Db) {
    let ada = db.user("ada").await;
    let cursor = db.settled().await;
    db.sql("UPDATE users SET status = status, is_active = is_active, role = role, email = 'new@example.com'")
        .await;
    assert!(changed(&*db.store, &cursor).await.is_empty());
    assert!(db.try_sql(&format!("UPDATE users SET status = 'nonsense' WHERE id = {ada}")).await.is_err());
    assert!(changed(&*db.store, &cursor).await.is_empty());
}

async fn a_deletion_by_plain_sql_is_told(db: Db) {
    let ada = db.user("ada").await;
    db.store.create_session(&super::sessions::session(ada, "s", 1_000)).await.unwrap();
    let cursor = db.settled().await;
    db.sql(&format!("DELETE FROM users WHERE id = {ada}")).await;
    assert_eq!(changed(&*db.store, &cursor).await, [ada]);
    assert_eq!(db.store.standings(&[ada]).await.unwrap(), [(ada, Standing::Gone)]);
    assert!(db.texts("SELECT sid FROM login_sessions").await.is_empty());
}

async fn each_account_is_told_once(db: Db) {
    let ada = db.user("ada").await;
    // Somebody else can administer all the while.
    db.administrator().await;
    let cursor = db.settled().await;
    for role in [Role::Admin, Role::User, Role::Admin] {
        let patch = AccountPatch { role: Some(role), ..AccountPatch::default() };
        db.store.update_account(ada, &patch, None).await.unwrap();
    }
    assert_eq!(db.store.account_changes(&cursor).await.unwrap().users, [ada]);
}

/// Reads the next page, and says whether it was the last.
async fn page(db: &Db, range: &mut ChangeRange) -> (Vec<UserId>, bool) {
    let users = db.store.read_changes(range).await.unwrap();
    (users, range.is_read())
}

async fn a_mass_of_changes_is_read_page_by_page_from_both_ends(db: Db) {
    db.users(2_500).await;
    let cursor = db.settled().await;
    let ban = async |which: &str| db.sql(&format!("UPDATE users SET status = 'banned' WHERE {which}")).await;
    ban("id = 7").await;
    ban("id > 100").await;
    ban("id = 8").await;
    let mut range = ChangeRange::since(cursor.clone());
    assert_eq!(range.end(), cursor);
    let (newest, done) = page(&db, &mut range).await;
    assert!(newest[0] == 8 && newest.len() == 1_000 && !done, "{newest:?}");
    let (oldest, done) = page(&db, &mut range).await;
    assert!(oldest[0] == 7 && oldest.len() == 1_000 && !done, "{oldest:?}");
    let (rest, done) = page(&db, &mut range).await;
    assert!(rest.len() == 402 && done, "{}", rest.len());
    assert!(page(&db, &mut range).await.0.is_empty());
    let mut all = [newest, oldest, rest].concat();
    all.sort_unstable();
    assert_eq!(all, [7, 8].into_iter().chain(101..=2_500).collect::<Vec<_>>());
    let after = db.store.account_changes(&range.end()).await.unwrap();
    assert!(after.users.is_empty(), "{:?}", after.users);
    assert_eq!(db.store.account_changes(&cursor).await.unwrap().users.len(), 2_402);
    // An account that changed several times is on a page once.
    let mut range = ChangeRange::since(after.cursor);
    for status in ["active", "banned", "active"] {
        db.sql(&format!("UPDATE users SET status = '{status}' WHERE id = 9")).await;
    }
    db.sql("DELETE FROM users WHERE id = 10").await;
    assert_eq!(page(&db, &mut range).await, (vec![10, 9], true));
}

async fn what_changes_while_a_mass_is_read_belongs_to_the_next_reading(db: Db) {
    db.users(1_500).await;
    let mut range = ChangeRange::since(db.settled().await);
    db.sql("UPDATE users SET status = 'banned'").await;
    let (mut all, _) = page(&db, &mut range).await;
    db.sql("UPDATE users SET role = 'admin' WHERE id = 1").await;
    let eve = db.user("eve").await;
    let (rest, done) = page(&db, &mut range).await;
    all.extend(rest);
    all.sort_unstable();
    assert!(done && all == (1..=1_500).collect::<Vec<_>>());
    assert_eq!(page(&db, &mut ChangeRange::since(range.end())).await, (vec![eve, 1], true));
}

async fn a_cursor_goes_on_from_where_it_stands(db: Db) {
    let start = db.settled().await;
    let ada = db.user("ada").await;
    let first = db.store.account_changes(&start).await.unwrap();
    assert_eq!(first.users, [ada]);
    let after_ada = passed(&*db.store, first.cursor.clone()).await;
    let bob = db.user("bob").await;
    assert_eq!(db.store.account_changes(&after_ada).await.unwrap().users, [bob]);
    // Another instance goes by its own cursor.
    assert_eq!(changed(&*db.another().await, &start).await, [ada, bob]);
    let word = &first.cursor.0;
    assert!(!word.is_empty() && word.bytes().all(|byte| byte.is_ascii_graphic()), "{word:?}");
}

async fn a_cursor_of_another_life_reads_the_whole_log(db: Db) {
    let ada = db.user("ada").await;
    for odd in ["", "nonsense", "-5", "0", "999999999999", "99999999999999999999999"] {
        let mut range = ChangeRange::since(ChangeCursor(odd.to_owned()));
        assert_eq!(page(&db, &mut range).await, (vec![ada], true), "{odd}");
        let changes = db.store.account_changes(&ChangeCursor(odd.to_owned())).await.unwrap();
        assert_eq!(changes.users, [ada], "{odd}");
        passed(&*db.store, changes.cursor).await;
    }
}

async fn the_cursor_stands_after_the_log_was_pruned(db: Db) {
    db.user("ada").await;
    let cursor = db.settled().await;
    db.sql("DELETE FROM account_changes").await;
    let changes = db.store.account_changes(&cursor).await.unwrap();
    assert!(changes.users.is_empty());
    let bob = db.user("bob").await;
    assert_eq!(changed(&*db.store, &changes.cursor).await, [bob]);
    assert_eq!(changed(&*db.store, &cursor).await, [bob]);
}

/// Sets the watch up: the first wait returns at once.
async fn watching(store: &dyn Store) {
    let began = Instant::now();
    store.wait_for_account_change(Duration::from_mins(1)).await.unwrap();
    assert!(began.elapsed() < Duration::from_secs(5));
}

async fn woken_within_a_second(store: &dyn Store, change: impl Future<Output = ()>) {
    let waiting = async {
        store.wait_for_account_change(Duration::from_mins(1)).await.unwrap();
        Instant::now()
    };
    let changing = async {
        change.await;
        Instant::now()
    };
    let (woken, changed) = tokio::join!(waiting, changing);
    assert!(woken.saturating_duration_since(changed) < Duration::from_secs(1));
}

async fn a_change_by_plain_sql_wakes_who_waits(db: Db) {
    let ada = db.user("ada").await;
    watching(&*db.store).await;
    for sql in
        [format!("UPDATE users SET status = 'banned' WHERE id = {ada}"), "DELETE FROM users".to_owned()]
    {
        let cursor = db.settled().await;
        woken_within_a_second(&*db.store, db.sql(&sql)).await;
        assert_eq!(changed(&*db.store, &cursor).await, [ada]);
    }
}

async fn a_change_by_another_handle_wakes_who_waits(db: Db) {
    let other = db.another().await;
    watching(&*db.store).await;
    watching(&*other).await;
    woken_within_a_second(&*other, async {
        db.user("ada").await;
    })
    .await;
    woken_within_a_second(&*db.store, async {}).await;
}

async fn nothing_wakes_nobody(db: Db) {
    let ada = db.user("ada").await;
    watching(&*db.store).await;
    db.record(0, &[super::transition(1_000, ada, presenced::model::OnlineStatus::Online)]).await.unwrap();
    db.sql("UPDATE users SET status = status").await;
    let began = Instant::now();
    db.store.wait_for_account_change(Duration::from_millis(500)).await.unwrap();
    assert!(began.elapsed() >= Duration::from_millis(490));
}

async fn a_wait_that_was_given_up_misses_nothing(db: Db) {
    watching(&*db.store).await;
    for _ in 0..3 {
        let wait = db.store.wait_for_account_change(Duration::from_mins(1));
        assert!(tokio::time::timeout(Duration::from_millis(20), wait).await.is_err());
    }
    db.user("ada").await;
    woken_within_a_second(&*db.store, async {}).await;
}

#[tokio::test]
async fn a_transaction_that_commits_late_is_not_missed_on_postgres() {
    let db = Db::postgres().await;
    let (ada, bob) = (db.user("ada").await, db.user("bob").await);
    let mut cursor = db.settled().await;
    let mut early = PgConnection::connect(&db.url).await.unwrap();
    let mut early = early.begin().await.unwrap();
    query("UPDATE users SET status = 'banned' WHERE id = $1").bind(ada).execute(&mut *early).await.unwrap();

    // A later transaction is done first; its reader goes on from a cursor that still holds the early one.
    db.sql(&format!("UPDATE users SET status = 'banned' WHERE id = {bob}")).await;
    let mut told = Vec::new();
    for _ in 0..3 {
        let changes = db.store.account_changes(&cursor).await.unwrap();
        told.extend(changes.users);
        cursor = changes.cursor;
    }
    assert!(told.contains(&bob) && !told.contains(&ada), "{told:?}");
    // One that asks for its cursor only now is served as well.
    let late = db.store.change_cursor().await.unwrap();
    early.commit().await.unwrap();
    for cursor in [cursor, late] {
        let changes = db.store.account_changes(&cursor).await.unwrap();
        assert!(changes.users.contains(&ada), "{:?}", changes.users);
        passed(&*db.store, changes.cursor).await;
    }
}

/// A transaction that stays open for long must not make each reading repeat what was read since it began.
#[tokio::test]
async fn each_change_is_read_once_though_a_transaction_stays_open_on_postgres() {
    let db = Db::postgres().await;
    let (ada, bob) = (db.user("ada").await, db.user("bob").await);
    let mut long = PgConnection::connect(&db.url).await.unwrap();
    let mut long = long.begin().await.unwrap();
    query("UPDATE users SET status = 'banned' WHERE id = $1").bind(ada).execute(&mut *long).await.unwrap();
    let mut cursor = db.store.change_cursor().await.unwrap();
    for status in ["banned", "active", "suspended"] {
        db.sql(&format!("UPDATE users SET status = '{status}' WHERE id = {bob}")).await;
        let changes = db.store.account_changes(&cursor).await.unwrap();
        assert_eq!(changes.users, [bob], "{status}");
        let again = db.store.account_changes(&changes.cursor).await.unwrap();
        assert!(again.users.is_empty(), "{status}: {:?}", again.users);
        cursor = again.cursor;
    }
    long.commit().await.unwrap();
    assert_eq!(db.store.account_changes(&cursor).await.unwrap().users, [ada]);
}

/// The number alone is what the version before kept as a cursor: the oldest transaction that ran.
#[tokio::test]
async fn a_cursor_of_the_version_before_goes_on_on_postgres() {
    let db = Db::postgres().await;
    db.user("ada").await;
    let before = db.texts("SELECT pg_snapshot_xmin(pg_current_snapshot())::text").await.remove(0);
    let bob = db.user("bob").await;
    let changes = db.store.account_changes(&ChangeCursor(before)).await.unwrap();
    assert!(changes.users.contains(&bob), "{:?}", changes.users);
}

#[tokio::test]
async fn who_may_write_to_users_can_block_on_postgres() {
    let db = Db::postgres().await;
    let ada = db.user("ada").await;
    let cursor = db.settled().await;
    let role = format!("ops_{}", std::process::id());
    db.sql(&format!(
        "CREATE ROLE {role}; GRANT SELECT, UPDATE ON users TO {role}; \
         BEGIN; SET LOCAL ROLE {role}; SET LOCAL search_path = ''; UPDATE public.users SET status = 'banned'; COMMIT; \
         REVOKE ALL ON users FROM {role}; DROP ROLE {role}"
    ))
    .await;
    assert_eq!(changed(&*db.store, &cursor).await, [ada]);
}

#[tokio::test]
async fn emptying_the_table_tells_of_everyone_on_postgres() {
    let db = Db::postgres().await;
    let (ada, bob) = (db.user("ada").await, db.user("bob").await);
    let cursor = db.settled().await;
    db.sql("TRUNCATE users CASCADE").await;
    assert_eq!(changed(&*db.store, &cursor).await, [ada, bob]);
}
