//! What goes with an account, however it was deleted; the ids of accounts; and how far SQL has come.

use std::time::Duration;

use presenced::model::{OnlineStatus, StreamId, Transition};
use presenced::store::{Options, open};
use sqlx::migrate::Migrator;

use super::{Db, LATER, on_both, transition};
use crate::support::sql::Sql;
use OnlineStatus::{Away, Offline, Online};

on_both!(
    an_account_that_plain_sql_deletes_leaves_nothing,
    many_accounts_that_one_statement_deletes_leave_nothing,
    a_deletion_that_is_rolled_back_takes_nothing_along,
    a_sequence_that_explicit_ids_left_behind_is_raised,
    an_account_is_made_though_the_sequence_was_left_behind,
    the_newest_transition_outlives_a_pruned_history,
    the_newest_transition_is_known_where_only_the_history_was_restored,
);

/// How many rows there are of these users, and of all.
async fn rows(db: &Db, users: &str) -> Vec<String> {
    let mut found = Vec::new();
    for table in ["presence_transitions", "presence_set_aside", "login_sessions"] {
        let count = format!("SELECT CAST(count(*) AS text) FROM {table} WHERE user_id IN ({users})");
        found.push(db.texts(&count).await.remove(0));
    }
    found.push(db.texts("SELECT CAST(count(*) AS text) FROM refresh_tokens").await.remove(0));
    found
}

/// A user with a history, a session and a transition from before the account was there.
async fn user(db: &Db, name: &str) -> i64 {
    let user = db.user(name).await;
    let now = u64::try_from(user).unwrap() * 10_000;
    db.record(0, &[transition(now, user, Online), transition(now + 1, user, Offline)]).await.unwrap();
    db.sql(&format!(
        "INSERT INTO presence_set_aside (stream_id, user_id, to_status, reason, at) VALUES \
         ('1/{user}-0', {user}, 'online', 'login', '2026-01-15T10:30:00.120Z')"
    ))
    .await;
    db.store.create_session(&super::sessions::session(user, name, 1_000)).await.unwrap();
    user
}

async fn an_account_that_plain_sql_deletes_leaves_nothing(db: Db) {
    let (ada, bob, cyd) = (user(&db, "ada").await, user(&db, "bob").await, user(&db, "cyd").await);
    db.sql(&format!("DELETE FROM users WHERE id = {ada}")).await;
    assert!(db.store.delete_account(bob, None).await.unwrap());
    assert_eq!(rows(&db, &format!("{ada}, {bob}")).await, ["0", "0", "0", "1"]);
    assert_eq!(rows(&db, &cyd.to_string()).await, ["2", "1", "1", "1"]);
}

async fn many_accounts_that_one_statement_deletes_leave_nothing(db: Db) {
    let kept = user(&db, "kept").await;
    for name in ["a", "b", "c", "d"] {
        user(&db, name).await;
    }
    db.sql(&format!("DELETE FROM users WHERE id > {kept}")).await;
    assert_eq!(
        rows(&db, &format!("SELECT user_id FROM presence_transitions WHERE user_id <> {kept}")).await,
        ["0", "0", "0", "1"]
    );
    assert_eq!(rows(&db, &kept.to_string()).await, ["2", "1", "1", "1"]);
    db.sql("DELETE FROM users").await;
    assert_eq!(rows(&db, &kept.to_string()).await, ["0", "0", "0", "0"]);
}

async fn a_deletion_that_is_rolled_back_takes_nothing_along(db: Db) {
    let ada = user(&db, "ada").await;
    db.sql("BEGIN; DELETE FROM users; ROLLBACK").await;
    assert_eq!(rows(&db, &ada.to_string()).await, ["2", "1", "1", "1"]);
    db.record(0, &[transition(90_000, ada, Online)]).await.unwrap();
    assert_eq!(db.history(ada).await.len(), 3);
}

#[tokio::test]
async fn truncated_and_replicated_deletions_leave_nothing_on_postgres() {
    let db = Db::postgres().await;
    let (ada, bob) = (user(&db, "ada").await, user(&db, "bob").await);
    // Foreign keys delete nothing here.
    db.sql(&format!("SET session_replication_role = replica; DELETE FROM users WHERE id = {ada}; RESET ALL"))
        .await;
    assert_eq!(rows(&db, &ada.to_string()).await, ["0", "0", "0", "1"]);
    assert_eq!(rows(&db, &bob.to_string()).await, ["2", "1", "1", "1"]);
    db.sql("TRUNCATE users CASCADE").await;
    assert_eq!(rows(&db, &bob.to_string()).await, ["0", "0", "0", "0"]);
}

#[tokio::test]
async fn a_deletion_without_foreign_keys_leaves_nothing_on_sqlite() {
    let db = Db::sqlite().await;
    let ada = user(&db, "ada").await;
    db.sql("PRAGMA foreign_keys = OFF; DELETE FROM users; PRAGMA foreign_keys = ON").await;
    assert_eq!(rows(&db, &ada.to_string()).await, ["0", "0", "0", "0"]);
}

const EXPLICIT: &str = "INSERT INTO users (id, username, email, password_hash) VALUES";

async fn a_sequence_that_explicit_ids_left_behind_is_raised(db: Db) {
    assert_eq!(db.store.max_user_id().await.unwrap(), 0);
    assert!(!db.store.raise_user_id_sequence(0).await.unwrap(), "nothing to raise it to");
    let first = db.user("first").await;
    assert_eq!(db.store.max_user_id().await.unwrap(), first);
    db.sql(&format!("{EXPLICIT} (500, 'x', 'x', 'x')")).await;
    let is_postgres = db.url.starts_with("postgres");
    assert_eq!(db.store.upkeep().await.unwrap().ids_raised, is_postgres, "SQLite does it by itself");
    assert_eq!(db.user("second").await, 501);
    // What Redis knows of accounts that a restored dump has lost.
    assert!(db.store.raise_user_id_sequence(9_000).await.unwrap());
    assert!(!db.store.raise_user_id_sequence(8_000).await.unwrap(), "never back");
    assert_eq!(db.store.max_user_id().await.unwrap(), 9_000);
    assert_eq!(db.user("third").await, 9_001);
    db.store.delete_account(9_001, None).await.unwrap();
    assert_eq!(db.store.max_user_id().await.unwrap(), 9_001);
    assert_eq!(db.store.upkeep().await.unwrap().largest_id, 9_001);
    let large = (1_i64 << 53) + 1;
    assert!(db.store.raise_user_id_sequence(large).await.unwrap());
    assert_eq!(db.user("fourth").await, large + 1);
}

async fn an_account_is_made_though_the_sequence_was_left_behind(db: Db) {
    let root = db.administrator().await;
    let by = presenced::model::Actor { user: root, username: "root".into(), address: "::1".into() };
    db.sql(&format!("{EXPLICIT} (2, 'x', 'x', 'x'), (3, 'y', 'y', 'y'), (7, 'z', 'z', 'z')")).await;
    let account = db.store.create_account(&super::new_account("ada"), Some(&by)).await.unwrap();
    assert_eq!(account.id, 8);
    db.sql(&format!("{EXPLICIT} (9, 'v', 'v', 'x')")).await;
    assert_eq!(db.user("bob").await, 10);
    assert_eq!(
        db.store
            .trail(&presenced::store::TrailFilter::default(), presenced::model::Page { number: 1, size: 9 })
            .await
            .unwrap()
            .total,
        1
    );
}

async fn the_newest_transition_outlives_a_pruned_history(db: Db) {
    assert_eq!(db.store.newest_transition_id().await.unwrap(), None);
    let (ada, now) = (db.user("ada").await, 1_795_332_000_000);
    let at = |seq, to| Transition { id: StreamId { ms: now, seq }, ..transition(now, ada, to) };
    db.record(3, &[at(9, Online), at(10, Away)]).await.unwrap();
    db.record(3, &[at(2, Offline)]).await.unwrap();
    db.record(4, &[transition(now - 5, 777, Online)]).await.unwrap();
    let newest = Some(StreamId { ms: now, seq: 10 });
    assert_eq!(db.store.newest_transition_id().await.unwrap(), newest);
    db.sql("DELETE FROM presence_transitions").await;
    assert_eq!(db.store.newest_transition_id().await.unwrap(), newest);
    let millis = |ms: u64| Some(presenced::model::Millis(i64::try_from(ms).unwrap()));
    assert_eq!(db.store.newest_transition(3).await.unwrap(), millis(now));
    assert_eq!(db.store.newest_transition(4).await.unwrap(), millis(now - 5), "set aside, and taken");
    assert_eq!(db.store.newest_transition(5).await.unwrap(), None);
}

async fn the_newest_transition_is_known_where_only_the_history_was_restored(db: Db) {
    let (ada, now) = (db.user("ada").await, 1_795_332_000_000);
    for (shard, at) in [(6, now), (60, now + 4_000), (61, now + 3_000), (7, now + 2_000), (0, now + 1)] {
        db.record(shard, &[transition(at, ada, if at == now { Online } else { Away })]).await.unwrap();
        db.record(shard, &[transition(at, ada, Offline)]).await.unwrap();
    }
    db.sql("DELETE FROM presence_positions").await;
    let newest = db.store.newest_transition_id().await.unwrap();
    assert_eq!(newest, Some(StreamId { ms: now + 4_001, seq: 0 }), "no older than any");
    db.sql(
        "INSERT INTO presence_transitions (user_id, stream_id, from_status, to_status, reason, at) VALUES \
            (1, 'odd', 'offline', 'online', 'login', '2026-01-15T10:30:00.120Z')",
    )
    .await;
    assert_eq!(db.store.newest_transition_id().await.unwrap(), newest);
}

/// Brings an empty database to version 0003, as it was released.
pub async fn to_third_version(db: &Db) {
    let engine = if db.url.starts_with("sqlite") { "sqlite" } else { "postgres" };
    let folder = tempfile::tempdir().unwrap();
    for name in ["0001_schema.sql", "0002_doors.sql", "0003_counts.sql"] {
        std::fs::copy(format!("migrations/{engine}/{name}"), folder.path().join(name)).unwrap();
    }
    let migrator = Migrator::new(folder.path()).await.unwrap();
    match Sql::open(&db.url).await {
        Sql::Postgres(pool) => migrator.run(&pool).await.unwrap(),
        Sql::Sqlite(pool) => migrator.run(&pool).await.unwrap(),
    }
}

async fn a_filled_database_goes_on(db: Db) {
    to_third_version(&db).await;
    db.users(4).await;
    let version = 1_768_473_000_120_i64 << 20;
    db.sql(&format!(
        "UPDATE users SET online_status = 'online', presence_version = {version} + 5 WHERE id IN (1, 2)"
    ))
    .await;
    db.sql("UPDATE users SET presence_version = 9223372036854775807 WHERE id = 3").await;
    let row =
        "INSERT INTO presence_transitions (user_id, stream_id, from_status, to_status, reason, at) VALUES";
    for user in [1, 77] {
        db.sql(&format!("{row} ({user}, '0/1768473000120-{user}', 'offline', 'online', 'login', '2026-01-15T10:30:00.120Z')"))
            .await;
    }
    if db.url.starts_with("postgres") {
        db.sql("UPDATE users SET last_seen = 'infinity' WHERE id = 4").await;
    }
    assert_eq!(db.store.migrate().await.unwrap()[0], "0004 history");
    assert_eq!(db.history(77).await.len(), 0, "no account has this id");
    let newest = StreamId { ms: 1_768_473_000_120, seq: 5 };
    assert_eq!(db.store.newest_transition_id().await.unwrap(), Some(newest));
    assert_eq!(db.store.mend_mirrors_after(0, 10).await.unwrap().mended, 0);
    assert_eq!(db.mirror(4).await, (Offline, None));
    let batch: Vec<_> =
        (1..=3_i64).map(|user| transition(1_768_473_000_121 + user.unsigned_abs(), user, Offline)).collect();
    assert_eq!(db.record(0, &batch).await.unwrap().recorded, 2, "2 goes on from the copy: it was pruned");
    assert_eq!(db.mirror(1).await.0, Offline);
}

#[tokio::test]
async fn a_filled_database_of_the_third_version_goes_on_on_postgres() {
    a_filled_database_goes_on(Db::empty_postgres().await).await;
}

#[tokio::test]
async fn a_filled_database_of_the_third_version_goes_on_on_sqlite() {
    a_filled_database_goes_on(Db::empty_sqlite().await).await;
}

/// What another process does to the file for long only delays the service.
#[tokio::test]
async fn a_long_write_of_another_process_makes_every_write_unavailable_on_sqlite() {
    use sqlx::Connection;
    let db = Db::sqlite().await;
    let ada = db.user("ada").await;
    let options = Options { timeout: Duration::from_millis(300), ..Options::default() };
    let store = open(&db.url, &options).await.unwrap();
    let mut other = sqlx::SqliteConnection::connect(&db.url).await.unwrap();
    let mut long = other.begin_with("BEGIN IMMEDIATE").await.unwrap();
    sqlx::query("UPDATE users SET email = 'meanwhile'").execute(&mut *long).await.unwrap();
    let batch = [transition(1_000, ada, Online)];
    let patch = presenced::store::AccountPatch { is_active: Some(false), ..Default::default() };
    for _ in 0..2 {
        let errors = [
            store.record(0, &batch, LATER).await.map(drop),
            store.touch_last_seen(&[(ada, presenced::model::Millis(1))], LATER).await.map(drop),
            store.update_account(ada, &patch, None).await.map(drop),
            store.raise_user_id_sequence(50).await.map(drop),
            store.migrate().await.map(drop),
        ];
        for (place, error) in errors.into_iter().enumerate() {
            let error = error.expect_err("the file is locked");
            assert!(error.is_unavailable(), "{place}: {error}");
        }
    }
    long.commit().await.unwrap();
    crate::support::poll::eventually(Duration::from_secs(15), async || {
        store.record(0, &batch, LATER).await.map_err(|error| error.to_string())
    })
    .await;
    assert_eq!(db.mirror(ada).await.0, Online);
}
