//! Rows that arrive in PostgreSQL by logical replication: from another application's database, or from another presenced's.

use std::time::Duration;

use presenced::model::{OnlineStatus, UserId};

use presenced::store::{Standing, Store, open};
use sqlx::{AssertSqlSafe, PgPool};

use super::{LATER, transition};
use crate::support::poll::eventually;
use crate::support::postgres::{PrivatePostgres, TestDatabase};

const SOON: Duration = Duration::from_secs(20);

struct Side {
    database: TestDatabase,
    store: std::sync::Arc<dyn Store>,
    sql: PgPool,
}

impl Side {
    async fn new(server: &PrivatePostgres) -> Self {
        let database = server.database().await;
        let store = open(&database.url, &presenced::store::Options::default()).await.unwrap();
        store.migrate().await.unwrap();
        let sql = PgPool::connect(&database.url).await.unwrap();
        Self { database, store, sql }
    }

    async fn run(&self, script: &str) {
        sqlx::raw_sql(AssertSqlSafe(script.to_owned())).execute(&self.sql).await.unwrap();
    }

    async fn texts(&self, query: &str) -> Vec<String> {
        sqlx::query_scalar(AssertSqlSafe(query.to_owned())).fetch_all(&self.sql).await.unwrap()
    }

    /// Waits until the query gives this.
    async fn comes_to(&self, query: &str, expected: &[&str]) {
        eventually(SOON, async || {
            let found = self.texts(query).await;
            if found == expected { Ok(()) } else { Err(found) }
        })
        .await;
    }

    /// The counts are those of the rows.
    async fn is_counted(&self) {
        let counted = "SELECT sum(users)::text FROM user_counts WHERE block = -1";
        let rows = self.texts("SELECT count(*)::text FROM users").await;
        assert_eq!(self.texts(counted).await, rows);
        assert_eq!(self.store.mend_counts().await.unwrap(), 0);
    }
}

/// A whole presenced database that is replicated into another, all tables: as a change of the major version of PostgreSQL is
/// made, and with an ordinary ban on the way.
#[tokio::test]
async fn what_arrives_by_replication_is_heard_counted_and_forgotten_like_any_other() {
    let mut server = PrivatePostgres::start().await;
    {
        let admin = PgPool::connect(&server.url()).await.unwrap();
        sqlx::raw_sql("ALTER SYSTEM SET wal_level = logical").execute(&admin).await.unwrap();
        admin.close().await;
    }
    server.restart().await;
    let (from, to) = (Side::new(&server).await, Side::new(&server).await);
    from.run(
        "INSERT INTO users (username, email, password_hash) SELECT 'u' || n, 'u' || n, 'x' FROM generate_series(1, 40) n",
    )
    .await;
    let ada: UserId = 1;
    from.store.record(0, &[transition(1_000, ada, OnlineStatus::Online)], LATER).await.unwrap();

    // Both are databases of one server: the slot has to be there before.
    from.run("CREATE PUBLICATION presence FOR ALL TABLES").await;
    from.run("SELECT pg_create_logical_replication_slot('presence', 'pgoutput')").await;
    to.run("TRUNCATE _sqlx_migrations").await;
    to.run(&format!(
        "CREATE SUBSCRIPTION presence CONNECTION '{}' PUBLICATION presence WITH (create_slot = false, slot_name = 'presence')",
        from.database.url
    ))
    .await;
    let count = "SELECT count(*)::text FROM users";
    to.comes_to(count, &["40"]).await;
    to.comes_to("SELECT count(*)::text FROM presence_transitions", &["1"]).await;
    to.comes_to("SELECT online_status FROM users WHERE id = 1", &["online"]).await;
    to.is_counted().await;

    // The log's own ids do not clash with those that the other database gives.
    let cursor = to.store.change_cursor().await.unwrap();
    to.store.wait_for_account_change(Duration::from_secs(5)).await.unwrap();
    from.run("UPDATE users SET status = 'banned' WHERE id = 1").await;
    let began = std::time::Instant::now();
    to.store.wait_for_account_change(Duration::from_mins(1)).await.unwrap();
    assert!(began.elapsed() < Duration::from_secs(5), "the notice wakes: {:?}", began.elapsed());
    eventually(SOON, async || {
        let changed = to.store.account_changes(&cursor).await.unwrap().users;
        if changed.contains(&ada) { Ok(()) } else { Err(changed) }
    })
    .await;
    assert_eq!(to.store.standings(&[ada]).await.unwrap(), [(ada, Standing::Blocked)]);

    // Presence goes on, what other applications write is put back on either side, and accounts come and go.
    from.store.record(0, &[transition(2_000, ada, OnlineStatus::Offline)], LATER).await.unwrap();
    from.store.touch_last_seen(&[(2, presenced::model::Millis(5_000))], LATER).await.unwrap();
    to.comes_to("SELECT online_status FROM users WHERE id = 1", &["offline"]).await;
    to.comes_to("SELECT id::text FROM users WHERE last_seen = '1970-01-01T00:00:05Z'", &["2"]).await;
    to.run("UPDATE users SET online_status = 'online', last_seen = now()").await;
    assert_eq!(to.texts("SELECT count(*)::text FROM users WHERE online_status <> 'offline'").await, ["0"]);
    from.run("INSERT INTO users (username, email, password_hash) VALUES ('new', 'new', 'x')").await;
    from.run("DELETE FROM users WHERE id <= 10").await;
    to.comes_to(count, &["31"]).await;
    to.comes_to("SELECT count(*)::text FROM presence_transitions", &["0"]).await;
    from.is_counted().await;
    to.is_counted().await;
    assert!(to.texts("SELECT id::text FROM account_changes WHERE user_id = 41").await.len() == 1, "once");
    // Rows that arrive leave a slot each; the upkeep sums them up.
    from.run("INSERT INTO users (username, email, password_hash) SELECT 'v' || n, 'v' || n, 'x' FROM generate_series(1, 100) n")
        .await;
    to.comes_to(count, &["131"]).await;
    to.store.upkeep().await.unwrap();
    assert!(to.texts("SELECT slot::text FROM user_counts WHERE block = -1").await.len() < 20);
    to.is_counted().await;
    to.run("ALTER SUBSCRIPTION presence DISABLE; ALTER SUBSCRIPTION presence SET (slot_name = NONE); DROP SUBSCRIPTION presence")
        .await;
    from.run("SELECT pg_drop_replication_slot('presence')").await;
}
