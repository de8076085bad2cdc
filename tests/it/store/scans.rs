//! Statements that read every account: they leave the others alone, and are cancelled when their caller gives up.

use std::time::{Duration, Instant};

use presenced::model::Page;
use presenced::store::{AccountFilter, Options, Store, StoreError, open};

use super::{Db, on_both};
use crate::support::poll::eventually;

on_both!(
    searches_without_end_leave_other_statements_alone,
    a_search_ends_in_the_database_when_its_caller_gives_up_or_its_time_is_over,
);

/// Has every account that a search finds cost a while of computing, so that one that finds them all takes minutes.
async fn make_searches_slow(db: &Db) {
    db.users(2_000).await;
    let computing = if db.is_postgres() {
        "(SELECT count(*) FROM generate_series(1, 400000 + u.id % 2) AS n WHERE n <> u.id) > 0"
    } else {
        "(WITH RECURSIVE n (i) AS (SELECT u.id UNION ALL SELECT i + 1 FROM n WHERE i < u.id + 400000) \
         SELECT count(*) FROM n) > 0"
    };
    db.sql("ALTER TABLE users RENAME TO all_users").await;
    db.sql(&format!("CREATE VIEW users AS SELECT u.* FROM all_users u WHERE {computing}")).await;
}

/// A search that finds every account.
async fn search(store: &dyn Store) -> Result<i64, StoreError> {
    let filter = AccountFilter { search: Some("u".to_owned()), ..AccountFilter::default() };
    Ok(store.list_accounts(&filter, Page { number: 1, size: 50 }.into(), &[]).await?.total)
}

async fn searches_without_end_leave_other_statements_alone(db: Db) {
    make_searches_slow(&db).await;
    let begun = Instant::now();
    let searches = (0..40).map(|_| {
        let store = db.store.clone();
        tokio::spawn(async move { (search(&*store).await, begun.elapsed()) })
    });
    let searches: Vec<_> = searches.collect();
    tokio::time::sleep(Duration::from_millis(300)).await;
    for _ in 0..5 {
        let asked = Instant::now();
        assert!(db.store.newest_transition(0).await.unwrap().is_none());
        assert!(asked.elapsed() < Duration::from_secs(1), "{:?}", asked.elapsed());
    }
    let mut busy = 0;
    for search in searches {
        let (outcome, took) = search.await.unwrap();
        let error = outcome.expect_err("a search that takes minutes");
        assert!(error.is_busy() || error.is_unavailable(), "{error}");
        assert!(took < Duration::from_secs(3), "{took:?}: within the bound of every call");
        busy += usize::from(error.is_busy());
    }
    assert!(busy >= 36, "{busy} of 40 had no place");
}

async fn a_search_ends_in_the_database_when_its_caller_gives_up_or_its_time_is_over(db: Db) {
    make_searches_slow(&db).await;
    // Long enough for both ends to be told apart from the statement's own bound.
    let store =
        open(&db.url, &Options { timeout: Duration::from_secs(20), ..Options::default() }).await.unwrap();
    tokio::select! {
        outcome = search(&*store) => panic!("it ended by itself: {outcome:?}"),
        () = is_computing(&db, true) => {}
    }
    is_computing(&db, false).await;
    let store =
        open(&db.url, &Options { timeout: Duration::from_secs(2), ..Options::default() }).await.unwrap();
    let (outcome, ()) = tokio::join!(search(&*store), is_computing(&db, true));
    assert!(outcome.unwrap_err().is_unavailable());
    is_computing(&db, false).await;
}

/// Waits until the database computes a search, or computes none any more: PostgreSQL says so; SQLite does it on threads of
/// this process, which Linux names.
async fn is_computing(db: &Db, expected: bool) {
    eventually(Duration::from_secs(3), async || {
        let computing = if db.is_postgres() {
            let active = "SELECT query FROM pg_stat_activity WHERE state = 'active' AND query LIKE '%matching AS MATERIALIZED%' \
                          AND datname = current_database() AND pid <> pg_backend_pid()";
            !db.texts(active).await.is_empty()
        } else {
            computing_threads().await > 0
        };
        if computing == expected { Ok(()) } else { Err(computing) }
    })
    .await;
}

/// The threads of SQLite connections that compute: one that waits uses no core at all.
async fn computing_threads() -> usize {
    const LOOK: Duration = Duration::from_millis(100);
    let used = || -> Vec<(String, u64)> {
        let tasks = std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
        let used = tasks.filter_map(|task| {
            let read = |file| std::fs::read_to_string(task.path().join(file)).ok();
            let is_sqlite = read("comm")?.starts_with("sqlx-sqlite");
            let nanoseconds = read("schedstat")?.split(' ').next()?.parse().ok()?;
            is_sqlite.then(|| (task.file_name().to_string_lossy().into_owned(), nanoseconds))
        });
        used.collect()
    };
    let before = used();
    tokio::time::sleep(LOOK).await;
    let busy = |(thread, after): &(String, u64)| {
        let before = before.iter().find(|(known, _)| known == thread).map_or(0, |(_, before)| *before);
        Duration::from_nanos(after.saturating_sub(before)) > LOOK / 20
    };
    used().iter().filter(|used| busy(used)).count()
}
