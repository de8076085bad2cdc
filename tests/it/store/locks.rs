//! Other applications' locks in PostgreSQL: a row that one holds waits alone, and no other application is chosen as the
//! victim of a deadlock. (SQLite has one writer, and no locks of rows.)

use std::time::{Duration, Instant};

use presenced::model::{Millis, OnlineStatus, Role};
use presenced::store::{AccountPatch, Options, RecordOutcome, StoreError, open};
use sqlx::{AssertSqlSafe, Connection, PgConnection};

use super::{Db, LATER, new_account, transition};
use crate::support::poll::eventually;
use OnlineStatus::{Away, Offline, Online};

/// Another application's transaction, open until a test ends it.
struct Other {
    connection: PgConnection,
}

impl Other {
    async fn begin(db: &Db, statement: &str) -> Self {
        let mut other = Self { connection: PgConnection::connect(&db.url).await.unwrap() };
        other.run("BEGIN").await.unwrap();
        other.run(statement).await.unwrap();
        other
    }

    async fn run(&mut self, statement: &str) -> Result<(), sqlx::Error> {
        let script = sqlx::raw_sql(AssertSqlSafe(statement.to_owned()));
        script.execute(&mut self.connection).await.map(drop)
    }
}

fn locks(user: i64) -> String {
    format!("UPDATE users SET email = email WHERE id = {user}")
}

#[tokio::test]
async fn a_row_that_another_application_holds_waits_alone() {
    let db = Db::postgres().await;
    db.users(3).await;
    let mut other = Other::begin(&db, &locks(2)).await;
    let batch = [
        transition(1_000, 1, Online),
        transition(1_001, 2, Online),
        transition(1_002, 99, Online),
        transition(1_003, 2, Away),
        transition(1_004, 3, Online),
    ];
    let began = Instant::now();
    let outcome = db.record(0, &batch).await.unwrap();
    assert_eq!(outcome, RecordOutcome { recorded: 2, unknown: vec![99], locked: vec![2] });
    assert_eq!(db.touch(&[(1, Millis(5_000)), (2, Millis(5_000)), (3, Millis(5_000))]).await.unwrap(), 2);
    assert!(began.elapsed() < Duration::from_secs(2), "nothing waited: {:?}", began.elapsed());
    assert_eq!((db.mirror(1).await, db.mirror(2).await), ((Online, Some(5_000)), (Offline, None)));
    assert_eq!(db.history(2).await.len(), 0);
    other.run("ROLLBACK").await.unwrap();
    let held = [batch[1].clone(), batch[3].clone()];
    assert_eq!(db.record(0, &held).await.unwrap(), RecordOutcome { recorded: 2, ..Default::default() });
    assert_eq!(db.history(2).await, ["offline>online heartbeat 1001", "online>away heartbeat 1003"]);
}

#[tokio::test]
async fn an_account_that_another_transaction_deletes_is_held_and_then_unknown() {
    let db = Db::postgres().await;
    db.users(2).await;
    let mut other = Other::begin(&db, "DELETE FROM users WHERE id = 2").await;
    let batch = [transition(1_000, 2, Online)];
    assert_eq!(db.record(0, &batch).await.unwrap().locked, [2]);
    other.run("COMMIT").await.unwrap();
    assert_eq!(db.record(0, &batch).await.unwrap().unknown, [2]);
}

#[tokio::test]
async fn a_comparison_and_a_repair_leave_out_rows_that_are_held() {
    let db = Db::postgres().await;
    db.users(2).await;
    db.record(0, &[transition(1_000, 1, Online), transition(1_001, 2, Online)]).await.unwrap();
    db.falsify("online_status = 'offline'", "true").await;
    let mut other = Other::begin(&db, &locks(2)).await;
    assert_eq!(db.store.mend_mirrors_after(0, 10).await.unwrap().mended, 1);
    let versions: Vec<_> =
        db.store.presences_after(0, 10).await.unwrap().iter().map(|row| (row.user, row.version)).collect();
    assert_eq!(db.store.lower_versions(&versions, 5).await.unwrap(), 1);
    other.run("ROLLBACK").await.unwrap();
    assert_eq!(db.store.mend_mirrors_after(0, 10).await.unwrap().mended, 1);
}

#[tokio::test]
async fn a_change_of_an_account_waits_for_its_row_and_says_what_is_in_the_way() {
    let db = Db::postgres().await;
    let ada = db.user("ada").await;
    let options = Options { timeout: Duration::from_millis(500), ..Options::default() };
    let store = open(&db.url, &options).await.unwrap();
    let mut other = Other::begin(&db, &locks(ada)).await;
    let patch = AccountPatch { email: Some("new@example.com".into()), ..AccountPatch::default() };
    for _ in 0..2 {
        let refused = store.update_account(ada, &patch, None).await.unwrap_err();
        assert!(matches!(refused, StoreError::Locked(_)) && refused.is_unavailable(), "{refused:?}");
        let refused = store.delete_account(ada, None).await.unwrap_err();
        assert!(matches!(refused, StoreError::Locked(_)), "{refused:?}");
    }
    // A call that waits goes on when the row is free.
    let freed = async {
        tokio::task::yield_now().await;
        other.run("COMMIT").await.unwrap();
    };
    let (changed, ()) = tokio::join!(db.store.update_account(ada, &patch, None), freed);
    assert_eq!(changed.unwrap().unwrap().email, "new@example.com");
    assert!(store.delete_account(ada, None).await.unwrap());
}

/// The other application holds one row and asks for another, which a call of the service holds while it wants the first.
#[tokio::test]
async fn no_other_application_is_the_victim_of_a_deadlock() {
    let db = Db::postgres().await;
    let (root, second) = (db.administrator().await, db.administrator().await);
    let ada = db.user("ada").await;
    db.store.create_session(&super::sessions::session(ada, "s", 1_000)).await.unwrap();
    let demote = AccountPatch { role: Some(Role::User), ..AccountPatch::default() };
    let promote = AccountPatch { role: Some(Role::Admin), ..AccountPatch::default() };
    for round in 0..6_u64 {
        // Two administrators, in either order; a row and the session of its account; a name that is being added.
        let (first, then) = if round % 2 == 0 { (root, second) } else { (second, root) };
        let mut other = Other::begin(&db, &locks(first)).await;
        let patch = db.store.update_account(first, &demote, None);
        let wants = async { other.run(&locks(then)).await };
        let (changed, met) = tokio::join!(tokio::time::timeout(Duration::from_millis(400), patch), wants);
        met.expect("the other application is no victim");
        assert!(changed.is_err(), "its row is held");
        other.run("COMMIT").await.unwrap();
        db.store.update_account(first, &promote, None).await.unwrap();

        let mut other = Other::begin(&db, "SELECT FROM login_sessions FOR UPDATE").await;
        let deletion = db.store.delete_account(ada, None);
        let wants = async { other.run(&locks(ada)).await };
        let (deleted, met) = tokio::join!(tokio::time::timeout(Duration::from_millis(400), deletion), wants);
        met.expect("the other application is no victim");
        assert!(deleted.is_err(), "its session is held");
        other.run("ROLLBACK").await.unwrap();

        let name = format!("name{round}");
        let add =
            format!("INSERT INTO users (username, email, password_hash) VALUES ('{name}', '{name}', 'x')");
        let mut other = Other::begin(&db, &add).await;
        let rename = AccountPatch { email: Some(name.clone()), ..AccountPatch::default() };
        let patch = db.store.update_account(ada, &rename, None);
        let wants = async { other.run(&locks(ada)).await };
        let (changed, met) = tokio::join!(tokio::time::timeout(Duration::from_millis(400), patch), wants);
        met.expect("the other application is no victim");
        assert!(changed.is_err(), "the address is another's, or soon");
        other.run("ROLLBACK").await.unwrap();
    }
}

/// A migration of another application: an index, which lets rows be locked and not be changed, then a column.
#[tokio::test]
async fn a_batch_holds_no_rows_while_another_application_changes_a_table() {
    let db = Db::postgres().await;
    db.users(3).await;
    let mut other = Other::begin(&db, "CREATE INDEX ON users (role)").await;
    let batch = [transition(1_000, 1, Online)];
    let record = db.record(0, &batch);
    let migrate = async {
        other.run("ALTER TABLE users ADD COLUMN plan text").await.expect("no victim");
        other.run(&locks(1)).await.expect("no victim");
        other.run("LOCK TABLE presence_transitions").await.expect("no victim");
        other.run("COMMIT").await.expect("no victim");
    };
    let (recorded, ()) = tokio::join!(record, migrate);
    assert_eq!(recorded.unwrap().recorded, 1, "a retry");
    assert_eq!(db.history(1).await.len(), 1);
}

#[tokio::test]
async fn a_migration_holds_no_other_application_up_while_it_waits_for_a_table() {
    let db = Db::empty_postgres().await;
    super::leftovers::to_third_version(&db).await;
    db.users(1).await;
    // Another application reads the table in a transaction that lasts.
    let mut other = Other::begin(&db, "SELECT FROM users").await;
    let store = db.another().await;
    let migrating = tokio::spawn(async move { store.migrate().await });
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(3) {
        let asked = Instant::now();
        db.sql("UPDATE users SET email = 'new'").await;
        assert!(asked.elapsed() < Duration::from_millis(1_500), "{:?}", asked.elapsed());
    }
    assert!(!migrating.is_finished(), "it waits, and tries again");
    other.run("COMMIT").await.unwrap();
    let migrated = tokio::time::timeout(Duration::from_secs(20), migrating).await.unwrap().unwrap();
    assert_eq!(migrated.unwrap()[0], "0004 history");
}

#[tokio::test]
async fn a_login_and_a_batch_go_past_each_other() {
    let db = Db::postgres().await;
    db.users(200).await;
    let logins = async {
        for user in 1..=50 {
            let session = super::sessions::session(user, &format!("s{user}"), 1_000);
            assert!(db.store.create_session(&session).await.unwrap().is_some());
        }
    };
    let batches = async {
        for round in 0..40_u64 {
            let to = if round % 2 == 0 { Online } else { Offline };
            let batch: Vec<_> = (1..=200_i64)
                .map(|user| transition(1_000 * (round + 1) + user.unsigned_abs(), user, to))
                .collect();
            let mut left = batch;
            eventually(Duration::from_secs(10), async || {
                let outcome = db.record(0, &left).await.unwrap();
                left.retain(|transition| outcome.locked.contains(&transition.user));
                if left.is_empty() { Ok(()) } else { Err(left.len()) }
            })
            .await;
        }
    };
    tokio::join!(logins, batches);
    for user in [1, 50, 200] {
        assert_eq!(db.history(user).await.len(), 40, "{user}");
    }
}

#[tokio::test]
async fn a_batch_behind_another_of_its_shard_waits_and_is_recorded() {
    let db = Db::postgres().await;
    db.users(1).await;
    // As another persister holds the shard: the two keys of its lock.
    let mut other = Other::begin(&db, "SELECT pg_advisory_xact_lock(1886545267, 0)").await;
    let (batch, next) = ([transition(1_000, 1, Online)], [transition(2_000, 1, Offline)]);
    let waits = tokio::time::timeout(Duration::from_millis(400), db.record(0, &batch));
    assert!(waits.await.is_err());
    assert_eq!(db.record(1, &[transition(1_000, 1, Online)]).await.unwrap().recorded, 1, "another shard");
    let record = db.store.record(0, &next, LATER);
    let freed = async {
        tokio::task::yield_now().await;
        other.run("COMMIT").await.unwrap();
    };
    let (recorded, ()) = tokio::join!(record, freed);
    assert_eq!(recorded.unwrap().recorded, 1);
}

#[tokio::test]
async fn accounts_are_made_beside_an_open_transaction_that_adds_some() {
    let db = Db::postgres().await;
    let mut other =
        Other::begin(&db, "INSERT INTO users (username, email, password_hash) VALUES ('x', 'x', 'x')").await;
    db.user("ada").await;
    let options = Options { timeout: Duration::from_millis(400), ..Options::default() };
    let store = open(&db.url, &options).await.unwrap();
    let refused = store.create_account(&new_account("X"), None).await.unwrap_err();
    assert!(
        matches!(refused, StoreError::Locked(_)),
        "whether the name is taken is not known yet: {refused}"
    );
    other.run("COMMIT").await.unwrap();
    let refused = store.create_account(&new_account("X"), None).await.unwrap_err();
    assert!(matches!(refused, StoreError::Taken { field: "username" }), "{refused}");
}
