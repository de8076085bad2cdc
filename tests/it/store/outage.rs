//! A PostgreSQL that hangs or dies: every call ends within its bound, and the store recovers by itself.

use std::sync::Arc;
use std::time::{Duration, Instant};

use presenced::model::{Millis, OnlineStatus, Page};
use presenced::store::{AccountFilter, ChangeCursor, Options, SessionEnd, Store, StoreError, open};
use sqlx::{Connection, PgConnection, query};

use super::{Db, LATER, new_account, transition};
use crate::support::poll::eventually;
use crate::support::postgres::{PrivatePostgres, TestDatabase};

const BOUND: Duration = Duration::from_secs(3);
const RECOVERS_WITHIN: Duration = Duration::from_secs(15);

async fn migrated(server: &PrivatePostgres) -> (TestDatabase, Arc<dyn Store>) {
    let database = server.database().await;
    let store = open(&database.url, &Options::default()).await.unwrap();
    store.migrate().await.unwrap();
    (database, store)
}

async fn is_unavailable<T>(what: &str, bound: Duration, call: impl Future<Output = Result<T, StoreError>>) {
    let began = Instant::now();
    let Err(error) = call.await else { panic!("{what} succeeded") };
    assert!(error.is_unavailable(), "{what}: {error}");
    assert!(began.elapsed() < bound, "{what}: {:?}", began.elapsed());
}

#[tokio::test]
async fn every_call_ends_while_postgres_hangs_and_works_again_after() {
    let server = PrivatePostgres::start().await;
    let (_database, store) = migrated(&server).await;
    let ada = store.create_account(&new_account("ada"), None).await.unwrap().id;
    store.wait_for_account_change(BOUND).await.unwrap();
    server.pause();
    let session = super::sessions::session(ada, "s", 1_000);
    let (filter, page, cursor) =
        (AccountFilter::default(), Page { number: 1, size: 50 }, ChangeCursor("0".into()));
    let batch = [transition(1_000, ada, OnlineStatus::Online)];
    let (seen, ids) = ([(ada, Millis(1_000))], [ada]);
    let end = SessionEnd { user: ada, sid: None, now: Millis(1_000), by: None };
    let told = [("s".to_owned(), Millis(1_000))];
    // More calls than connections, all at once and then again, now that the connections in use were given up.
    for _ in 0..2 {
        tokio::join!(
            is_unavailable("ping", BOUND, store.ping()),
            is_unavailable("account", BOUND, store.account(ada)),
            is_unavailable("credentials", BOUND, store.credentials("ada")),
            is_unavailable("list_accounts", BOUND, store.list_accounts(&filter, page.into(), &[])),
            is_unavailable("delete_account", BOUND, store.delete_account(ada, None)),
            is_unavailable("standings", BOUND, store.standings(&ids)),
            is_unavailable("account_changes", BOUND, store.account_changes(&cursor)),
            is_unavailable("create_session", BOUND, store.create_session(&session)),
            is_unavailable("sessions", BOUND, store.sessions(ada, Millis(1_000), page)),
            is_unavailable("end_sessions", BOUND, store.end_sessions(&end)),
            is_unavailable("untold_ends", BOUND, store.untold_ends(0)),
            is_unavailable("ends_told", BOUND, store.ends_told(&told)),
            is_unavailable("present", BOUND, store.present_in_mirror_after(0, 10)),
            is_unavailable("administrator", BOUND, store.administrator()),
            is_unavailable("migrate", BOUND, store.migrate()),
            is_unavailable("record", Duration::from_secs(11), store.record(0, &batch, LATER)),
            is_unavailable("touch", Duration::from_secs(11), store.touch_last_seen(&seen, LATER)),
        );
    }
    server.resume();
    eventually(RECOVERS_WITHIN, async || store.account(ada).await.map_err(|error| error.to_string())).await;
    eventually(RECOVERS_WITHIN, async || {
        store.record(0, &batch, LATER).await.map_err(|error| error.to_string())
    })
    .await;
    let present = store.present_in_mirror_after(0, 10).await.unwrap();
    assert_eq!(present.len(), 1);
}

#[tokio::test]
async fn calls_that_were_given_up_free_their_connections() {
    let server = PrivatePostgres::start().await;
    let (database, _) = migrated(&server).await;
    let options = Options { max_connections: 1, ..Options::default() };
    let store = open(&database.url, &options).await.unwrap();
    let ada = store.create_account(&new_account("ada"), None).await.unwrap().id;
    let mut holder = PgConnection::connect(&database.url).await.unwrap();
    let mut held = holder.begin().await.unwrap();
    query("SELECT 1 FROM users FOR UPDATE").execute(&mut *held).await.unwrap();
    // The client went away in the midst of a statement that waits for a lock.
    let waiting = tokio::time::timeout(Duration::from_millis(200), store.delete_account(ada, None));
    assert!(waiting.await.is_err());
    let began = Instant::now();
    assert!(store.account(ada).await.unwrap().is_some());
    assert!(began.elapsed() < Duration::from_secs(1));
    held.rollback().await.unwrap();
    assert!(store.account(ada).await.unwrap().is_some());
}

#[tokio::test]
async fn a_restart_costs_one_failed_call_at_most_and_no_watch() {
    let mut server = PrivatePostgres::start().await;
    let (_database, store) = migrated(&server).await;
    let ada = store.create_account(&new_account("ada"), None).await.unwrap().id;
    // Fill the pool.
    let many: Vec<_> = (0..10)
        .map(|_| {
            let store = Arc::clone(&store);
            tokio::spawn(async move { store.account(ada).await })
        })
        .collect();
    for read in many {
        read.await.unwrap().unwrap();
    }
    store.wait_for_account_change(BOUND).await.unwrap();
    let watching = {
        let store = Arc::clone(&store);
        tokio::spawn(async move { store.wait_for_account_change(Duration::from_mins(1)).await })
    };
    tokio::task::yield_now().await;
    server.restart().await;
    assert!(watching.await.unwrap().unwrap_err().is_unavailable());
    let mut failed = 0;
    for _ in 0..20 {
        match store.account(ada).await {
            Ok(found) => assert!(found.is_some()),
            Err(error) => {
                assert!(error.is_unavailable(), "{error}");
                failed += 1;
            }
        }
    }
    assert!(failed <= 1, "{failed} calls failed");
    // The watch sets itself up anew, and says so by returning at once.
    store.wait_for_account_change(Duration::from_mins(1)).await.unwrap();
    let patch = presenced::store::AccountPatch { is_active: Some(false), ..Default::default() };
    let (woken, changed) = tokio::join!(
        store.wait_for_account_change(Duration::from_mins(1)),
        store.update_account(ada, &patch, None),
    );
    woken.unwrap();
    changed.unwrap();
}

#[tokio::test]
async fn a_sqlite_file_that_another_holds_is_unavailable_and_comes_back() {
    let db = Db::sqlite().await;
    let ada = db.user("ada").await;
    let options = Options { timeout: Duration::from_millis(300), ..Options::default() };
    let store = open(&db.url, &options).await.unwrap();
    let mut holder = sqlx::SqliteConnection::connect(&db.url).await.unwrap();
    let held = holder.begin_with("BEGIN IMMEDIATE").await.unwrap();
    is_unavailable("update", BOUND, store.delete_account(ada, None)).await;
    is_unavailable("update again", BOUND, store.create_account(&new_account("bob"), None)).await;
    // Readers are not in the way of a writer, nor it in theirs.
    assert!(store.account(ada).await.unwrap().is_some());
    held.rollback().await.unwrap();
    let deleted = eventually(RECOVERS_WITHIN, async || {
        store.delete_account(ada, None).await.map_err(|error| error.to_string())
    });
    assert!(deleted.await);
}
