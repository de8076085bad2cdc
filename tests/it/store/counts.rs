//! How many accounts there are, without counting them, and what that saves.

use std::time::Duration;

use presenced::model::{AccountStatus, Page, Place, Role, UserId};
use presenced::store::{AccountFilter, ImportRow, Options, PasswordHash, open};
use sqlx::migrate::Migrator;

use super::{Db, new_account, on_both};
use crate::support::poll::eventually;
use crate::support::sql::Sql;

on_both!(
    the_number_follows_every_change,
    a_wrong_number_is_put_right_whoever_writes_meanwhile,
    a_page_by_its_number_is_the_right_one_however_deep,
    a_list_names_who_asks_and_whether_others_follow,
);

/// What a list says of how many there are.
async fn total(db: &Db) -> i64 {
    let one = Page { number: 1, size: 1 };
    db.store.list_accounts(&AccountFilter::default(), one.into(), &[]).await.unwrap().total
}

/// The number is right, in all and in each block of ids.
async fn is_right(db: &Db, said: &str) {
    let counted = db.texts("SELECT CAST(count(*) AS text) FROM users").await;
    assert_eq!(total(db).await.to_string(), counted[0], "{said}");
    let blocks = "SELECT CAST(block AS text) || ': ' || CAST(sum(users) AS text) FROM user_counts \
                  WHERE block >= 0 GROUP BY block HAVING sum(users) <> 0 ORDER BY block";
    let counted = "SELECT CAST(id / 4096 AS text) || ': ' || CAST(count(*) AS text) FROM users GROUP BY id / 4096 \
                   ORDER BY id / 4096";
    assert_eq!(db.texts(blocks).await, db.texts(counted).await, "{said}");
}

fn import_row(name: &str, id: Option<UserId>) -> ImportRow {
    ImportRow {
        id,
        username: name.into(),
        email: format!("{name}@example.com"),
        password_hash: PasswordHash("!".into()),
        role: Role::User,
        status: AccountStatus::Active,
        is_active: true,
        created_at: None,
    }
}

async fn the_number_follows_every_change(db: Db) {
    is_right(&db, "nobody").await;
    db.users(9_000).await;
    is_right(&db, "many in one statement").await;
    let ada = db.user("ada").await;
    db.administrator().await;
    db.store.create_account(&new_account("ADA"), None).await.unwrap_err();
    is_right(&db, "one by one, and one refused").await;
    let rows = [import_row("far", Some(900_000)), import_row("near", None), import_row("u5", None)];
    db.store.import_accounts(&rows[..2], true).await.unwrap();
    is_right(&db, "a dry run").await;
    db.store.import_accounts(&rows[..2], false).await.unwrap();
    db.store.import_accounts(&rows, false).await.unwrap();
    is_right(&db, "imported").await;
    assert!(db.store.delete_account(ada, None).await.unwrap());
    db.sql("DELETE FROM users WHERE id BETWEEN 4000 AND 4200 OR id = 900000").await;
    db.sql("DELETE FROM users WHERE id = 123456789").await;
    is_right(&db, "deleted").await;
    db.sql("UPDATE users SET id = id + 1000000 WHERE id < 100").await;
    db.sql("UPDATE users SET status = 'pending', last_seen = NULL WHERE id < 200").await;
    is_right(&db, "with other ids").await;
    let add = "INSERT INTO users (username, email, password_hash) VALUES ('x', 'x', 'x'), ('y', 'y', 'y')";
    db.sql(&format!("BEGIN; {add}; DELETE FROM users WHERE id < 500; ROLLBACK")).await;
    is_right(&db, "taken back").await;
    db.sql(&format!("BEGIN; {add}; DELETE FROM users WHERE username = 'x'; {} COMMIT", savepoint())).await;
    is_right(&db, "half taken back").await;
    db.sql(
        "INSERT INTO users (username, email, password_hash) VALUES ('y', 'z', 'z') ON CONFLICT DO NOTHING",
    )
    .await;
    is_right(&db, "nothing done").await;
    db.sql(if db.url.starts_with("sqlite") { "DELETE FROM users" } else { "TRUNCATE users CASCADE" }).await;
    assert_eq!(total(&db).await, 0);
    is_right(&db, "all gone").await;
    db.user("ada").await;
    is_right(&db, "and somebody again").await;
    assert_eq!(db.store.mend_counts().await.unwrap(), 0, "there was nothing to mend");
}

fn savepoint() -> &'static str {
    "SAVEPOINT s; DELETE FROM users WHERE id < 700; ROLLBACK TO s;"
}

/// Nobody waits for the number that somebody else is changing, and it is the sum of what is committed.
#[tokio::test]
async fn nobody_waits_for_a_transaction_that_adds_accounts_on_postgres() {
    let db = Db::postgres().await;
    let (one, two) = (Sql::open(&db.url).await, Sql::open(&db.url).await);
    let (Sql::Postgres(one), Sql::Postgres(two)) = (one, two) else { unreachable!() };
    db.users(10).await;
    let (mut one, mut two) = (one.begin().await.unwrap(), two.begin().await.unwrap());
    for name in ["a", "b", "c", "d"] {
        let transaction = if ["a", "c"].contains(&name) { &mut one } else { &mut two };
        let add =
            format!("INSERT INTO users (username, email, password_hash) VALUES ('{name}', '{name}', 'x')");
        sqlx::query(sqlx::AssertSqlSafe(add)).execute(&mut **transaction).await.unwrap();
        // The bound of the store is the measure: behind a lock it would fail.
        db.user(&format!("beside {name}")).await;
    }
    assert_eq!(total(&db).await, 14);
    one.commit().await.unwrap();
    assert_eq!(total(&db).await, 16);
    two.rollback().await.unwrap();
    is_right(&db, "one committed, one not").await;
    let crowd = (0..200).map(|number| {
        let store = db.store.clone();
        async move {
            let account = store.create_account(&new_account(&format!("crowd{number}")), None).await.unwrap();
            if number % 3 == 0 {
                store.delete_account(account.id, None).await.unwrap();
            }
        }
    });
    futures_util::future::join_all(crowd).await;
    is_right(&db, "a crowd").await;
    let slots = "SELECT CAST(count(*) AS text) FROM user_counts";
    let before: i64 = db.texts(slots).await[0].parse().unwrap();
    assert!(before < 60, "slots are used again: {before}");
    for level in ["REPEATABLE READ", "SERIALIZABLE"] {
        for number in 0..20 {
            let name = format!("{level} {number}");
            db.sql(&format!(
                "BEGIN ISOLATION LEVEL {level}; INSERT INTO users (username, email, password_hash) \
                 VALUES ('{name}', '{name}', 'x'); COMMIT"
            ))
            .await;
        }
    }
    is_right(&db, "stricter levels").await;
    assert_eq!(db.store.mend_counts().await.unwrap(), 0);
    let folded: i64 = db.texts(slots).await[0].parse().unwrap();
    assert!(folded < before + 20, "{folded} slots left of {before} and 80 more");
    is_right(&db, "folded").await;
}

async fn a_wrong_number_is_put_right_whoever_writes_meanwhile(db: Db) {
    db.users(5_000).await;
    db.sql("UPDATE user_counts SET users = users + 7 WHERE block = 0").await;
    db.sql("DELETE FROM user_counts WHERE block = 1").await;
    db.sql("INSERT INTO user_counts (block, users) VALUES (77, 5)").await;
    let other = db.another().await;
    let writes = async {
        for number in 0..50 {
            db.user(&format!("meanwhile{number}")).await;
        }
    };
    let (one, two, ()) = tokio::join!(db.store.mend_counts(), other.mend_counts(), writes);
    let mended = [one.unwrap(), two.unwrap()];
    assert!(mended.contains(&3), "{mended:?}");
    is_right(&db, "mended").await;
    assert_eq!(db.store.mend_counts().await.unwrap(), 0);
}

async fn a_page_by_its_number_is_the_right_one_however_deep(db: Db) {
    db.users(20_000).await;
    // A gap that holds a whole block, and one at either end.
    db.sql("DELETE FROM users WHERE id < 30 OR id BETWEEN 5000 AND 13000 OR id > 19500 OR id % 7 = 0").await;
    let ids: Vec<UserId> = db
        .texts("SELECT CAST(id AS text) AS text FROM users ORDER BY users.id")
        .await
        .iter()
        .map(|id| id.parse().unwrap())
        .collect();
    let size = 100;
    for number in 1..=u32::try_from(ids.len().div_ceil(100)).unwrap() + 2 {
        let page = Page { number, size };
        let list = db.store.list_accounts(&AccountFilter::default(), page.into(), &[]).await.unwrap();
        let found: Vec<UserId> = list.accounts.iter().map(|account| account.id).collect();
        let from = ids.len().min(usize::try_from(page.offset()).unwrap());
        let to = ids.len().min(from + 100);
        assert_eq!(found, ids[from..to], "page {number}");
        assert_eq!((list.total, list.has_more), (i64::try_from(ids.len()).unwrap(), to < ids.len()));
    }
}

async fn a_list_names_who_asks_and_whether_others_follow(db: Db) {
    db.users(5).await;
    let list = async |filter: AccountFilter, place: Place<UserId>| {
        let before = db.store.statements();
        let list = db.store.list_accounts(&filter, place, &[2, 999, 5]).await.unwrap();
        assert_eq!(db.store.statements(), before + 1, "one statement");
        let mut askers: Vec<UserId> = list.askers.iter().map(|account| account.id).collect();
        askers.sort_unstable();
        assert_eq!(askers, [2, 5]);
        (list.accounts.iter().map(|account| account.id).collect::<Vec<_>>(), list.has_more, list.total)
    };
    let all = AccountFilter::default;
    assert_eq!(list(all(), Page { number: 1, size: 2 }.into()).await, (vec![1, 2], true, 5));
    assert_eq!(list(all(), Page { number: 3, size: 2 }.into()).await, (vec![5], false, 5));
    assert_eq!(list(all(), Page { number: 1, size: 5 }.into()).await, (vec![1, 2, 3, 4, 5], false, 5));
    assert_eq!(list(all(), Place::After(2, 2)).await, (vec![3, 4], true, 5));
    assert_eq!(list(all(), Place::After(3, 2)).await, (vec![4, 5], false, 5));
    assert_eq!(list(all(), Place::After(i64::MAX, 2)).await, (vec![], false, 5));
    let some = || AccountFilter { search: Some("u".into()), ..AccountFilter::default() };
    assert_eq!(list(some(), Place::After(3, 1)).await, (vec![4], true, 5));
    assert_eq!(list(some(), Page { number: 2, size: 4 }.into()).await, (vec![5], false, 5));
    let nul = || AccountFilter { search: Some("\0".into()), ..AccountFilter::default() };
    assert_eq!(list(nul(), Place::After(3, 1)).await, (vec![], false, 0));
}

/// PostgreSQL says itself how many rows it looked at.
#[tokio::test]
async fn a_page_deep_in_the_list_reads_no_more_than_a_block_on_postgres() {
    let db = Db::postgres().await;
    db.users(60_000).await;
    db.sql("ANALYZE users").await;
    // One connection, so that its numbers come with its next statement.
    let options = Options { max_connections: 1, ..Options::default() };
    let store = open(&db.url, &options).await.unwrap();
    let read = async || {
        let statement = "SELECT CAST(sum(idx_tup_read) + (SELECT seq_tup_read FROM pg_stat_user_tables \
                         WHERE relname = 'users') AS text) || ' ' || sum(idx_scan) FROM pg_stat_user_indexes WHERE relname = 'users'";
        let text = db.texts(statement).await.remove(0);
        let (rows, scans) = text.split_once(' ').unwrap();
        (rows.parse::<i64>().unwrap(), scans.parse::<i64>().unwrap())
    };
    let all = AccountFilter::default();
    let places = [
        (Place::Page(Page { number: 1, size: 50 }), 200),
        (Place::Page(Page { number: 1_190, size: 50 }), 4_096 + 200),
        (Place::Page(Page { number: 60, size: 1_000 }), 4_096 + 1_200),
        (Place::After(59_000, 50), 200),
    ];
    for (place, most) in places {
        // Past the first few runs a statement may have one plan for all values.
        for _ in 0..8 {
            store.list_accounts(&all, place, &[7]).await.unwrap();
        }
        // A connection reports at most once a second, with a statement.
        let before = settled(&store, &read, read().await).await;
        let list = store.list_accounts(&all, place, &[7]).await.unwrap();
        assert_eq!((list.accounts.len(), list.total), (place.size() as usize, 60_000));
        let after = eventually(Duration::from_secs(20), async || {
            store.ping().await.unwrap();
            let now = read().await;
            if now.1 > before.1 { Ok(now) } else { Err(now) }
        })
        .await;
        let rows = after.0 - before.0;
        assert!(rows > 0 && rows <= most, "{place:?}: {rows} rows, {most} at most");
    }
}

/// The numbers once all of what was done before is in them: they have stood still for longer than the second for which a
/// connection may hold its own back.
async fn settled(
    store: &std::sync::Arc<dyn presenced::store::Store>,
    read: &impl AsyncFn() -> (i64, i64),
    mut last: (i64, i64),
) -> (i64, i64) {
    let mut since = tokio::time::Instant::now();
    eventually(Duration::from_secs(30), async || {
        store.ping().await.unwrap();
        let now = read().await;
        if now != last {
            (last, since) = (now, tokio::time::Instant::now());
        }
        if since.elapsed() > Duration::from_secs(3) { Ok(now) } else { Err(now) }
    })
    .await
}

/// Brings an empty database to version 0002, as it was released, by the files themselves.
async fn to_second_version(db: &Db) {
    let engine = if db.url.starts_with("sqlite") { "sqlite" } else { "postgres" };
    let folder = tempfile::tempdir().unwrap();
    for name in ["0001_schema.sql", "0002_doors.sql"] {
        std::fs::copy(format!("migrations/{engine}/{name}"), folder.path().join(name)).unwrap();
    }
    let migrator = Migrator::new(folder.path()).await.unwrap();
    match Sql::open(&db.url).await {
        Sql::Postgres(pool) => migrator.run(&pool).await.unwrap(),
        Sql::Sqlite(pool) => migrator.run(&pool).await.unwrap(),
    }
}

async fn a_filled_database_is_counted(db: Db) {
    db.store.ping().await.unwrap();
    to_second_version(&db).await;
    db.users(10_000).await;
    db.sql("DELETE FROM users WHERE id BETWEEN 4000 AND 9000").await;
    assert_eq!(
        db.store.migrate().await.unwrap(),
        ["0003 counts", "0004 history", "0005 sessions", "0006 login names", "0007 installation"]
    );
    is_right(&db, "migrated").await;
    db.user("ada").await;
    is_right(&db, "and goes on").await;
}

#[tokio::test]
async fn a_filled_database_of_the_second_version_is_counted_on_postgres() {
    a_filled_database_is_counted(Db::empty_postgres().await).await;
}

#[tokio::test]
async fn a_filled_database_of_the_second_version_is_counted_on_sqlite() {
    a_filled_database_is_counted(Db::empty_sqlite().await).await;
}
