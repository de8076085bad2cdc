//! Accounts from before the keys, and those that triggers have missed.

use sqlx::migrate::Migrator;

use super::{
    a_search_goes_by_the_same_rule, add, all_right, clashes, complete, found, in_every_locale, insert,
    names_that_only_some_locales_take_for_equal_are_two, two_spellings_of_a_name_are_one_login_name,
};
use crate::store::Db;
use crate::support::sql::Sql;

in_every_locale!(
    accounts_from_before_the_keys_lose_nothing,
    keys_that_triggers_have_missed_are_found_and_computed,
);

/// Brings an empty database to version 0003, by the files themselves.
async fn to_third_version(db: &Db) {
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

async fn accounts_from_before_the_keys_lose_nothing(db: Db) {
    to_third_version(&db).await;
    let rows = [
        (1, "Ada", "ada@example.com"),
        (2, "same@example.com", "SAME@example.com"),
        // Of two ASCII names, and of one that only the service can fold, the older keeps it.
        (3, "bob", "kim@outlook.com"),
        (4, "KIM@outlook.com", "four@example.com"),
        (5, "\u{fb01}n", "five@example.com"),
        (6, "fin", "six@example.com"),
        (7, "Straße", "seven@example.com"),
        (8, "STRASSE", "eight@example.com"),
        (9, "\u{200b}", "nine@example.com"),
    ];
    for (id, username, email) in rows {
        insert(&db, username, email).await.unwrap();
        assert_eq!(db.texts(&format!("SELECT username FROM users WHERE id = {id}")).await, [username]);
    }
    db.store.migrate().await.unwrap();
    for login in ["ada", "same@example.com", "Straße", "\u{fb01}n", "kim@OUTLOOK.com"] {
        assert!(found(&db, login).await.is_some(), "{login} before it is completed");
    }
    assert_eq!(complete(&db).await, 3);
    for (login, user) in
        [("ADA", 1), ("same@example.com", 2), ("kim@outlook.com", 3), ("FIN", 5), ("strasse", 7)]
    {
        assert_eq!(found(&db, login).await, Some(user), "{login}");
    }
    for (user, email) in [(4, "four"), (6, "six"), (8, "eight"), (9, "nine")] {
        assert_eq!(found(&db, &format!("{email}@example.com")).await, Some(user), "by its other name");
    }
    let clashes: Vec<_> = db.store.login_name_clashes(0, 100).await.unwrap();
    let pairs: Vec<_> =
        clashes.iter().map(|clash| (clash.user, clash.holder.as_ref().unwrap().user)).collect();
    assert_eq!(pairs, [(4, 3), (6, 5), (8, 7)]);
    assert_eq!(add(&db, "STRASSE", "x@y").await, Err("username"));
    // Given another name, it holds that.
    db.sql("UPDATE users SET username = 'own' WHERE id = 6").await;
    assert_eq!((found(&db, "own").await, found(&db, "fin").await), (Some(6), Some(5)));
    assert_eq!(db.store.login_name_clashes(0, 100).await.unwrap().len(), 2);
    all_right(&db).await;
}

async fn keys_that_triggers_have_missed_are_found_and_computed(db: Db) {
    db.store.migrate().await.unwrap();
    add(&db, "ada", "ada@example.com").await.unwrap();
    let gone = add(&db, "bob", "bob@example.com").await.unwrap();
    if db.url.starts_with("sqlite") {
        // REPLACE deletes without triggers.
        db.sql("INSERT OR REPLACE INTO users (username, email, password_hash) VALUES ('BOB', 'new@example.com', 'x')")
            .await;
        assert_ne!(found(&db, "bob").await, Some(gone));
        assert_eq!(found(&db, "bob@example.com").await, None);
        assert!(insert(&db, "eve", "BOB@example.com").await.is_ok(), "what the former account had is free");
        db.sql("DELETE FROM login_names WHERE name_key = 'ada'").await;
    } else {
        db.sql(
            "ALTER TABLE users DISABLE TRIGGER users_named; \
             INSERT INTO users (username, email, password_hash) VALUES ('eve', 'ÉVE@example.com', 'x'); \
             ALTER TABLE users ENABLE ALWAYS TRIGGER users_named",
        )
        .await;
        assert_eq!(found(&db, "eve").await, None);
    }
    assert!(db.store.mark_incomplete_login_names().await.unwrap() >= 1);
    complete(&db).await;
    for login in ["ada", "eve", "bob"] {
        assert!(found(&db, login).await.is_some(), "{login}");
    }
    all_right(&db).await;
    assert_eq!(db.store.mark_incomplete_login_names().await.unwrap(), 0);
    // Wrong ones, too, though nobody looks for these at a start.
    let ada = found(&db, "ada").await.unwrap();
    db.sql(&format!("UPDATE login_names SET name_key = 'wrong' WHERE user_id = {ada} AND of_email")).await;
    assert!(!db.store.login_names(&[ada]).await.unwrap()[0].are_right());
    db.store.mark_login_names(&[ada]).await.unwrap();
    complete(&db).await;
    all_right(&db).await;
}

/// In a Turkish locale lower('I') is no 'i'. PostgreSQL brings that locale along from version 15 on.
#[tokio::test]
async fn a_turkish_database_keeps_the_same_rule() {
    let version: u32 = Db::postgres().await.texts("SHOW server_version_num").await[0].parse().unwrap();
    if version < 150_000 {
        return;
    }
    let turkish = async || {
        Db::empty_postgres_with("TEMPLATE template0 LOCALE_PROVIDER icu ICU_LOCALE 'tr-TR' LOCALE 'C'").await
    };
    two_spellings_of_a_name_are_one_login_name(turkish().await).await;
    names_that_only_some_locales_take_for_equal_are_two(turkish().await).await;
    a_search_goes_by_the_same_rule(turkish().await).await;
    accounts_from_before_the_keys_lose_nothing(turkish().await).await;

    // Its former index has let in two that are equal by the rule.
    let db = turkish().await;
    to_third_version(&db).await;
    insert(&db, "din", "one@example.com").await.unwrap();
    insert(&db, "DIN", "two@example.com").await.unwrap();
    db.store.migrate().await.unwrap();
    assert_eq!(found(&db, "Din").await, found(&db, "one@example.com").await);
    assert_eq!(clashes(&db).await.len(), 1);
    assert_eq!(add(&db, "dIN", "x@y").await, Err("username"));
}

/// What arrives by replication has been accepted elsewhere: it is taken, compared and, where it clashes, named.
#[tokio::test]
async fn replicated_accounts_are_taken_and_compared_on_postgres() {
    let db = Db::postgres().await;
    let ada = add(&db, "ada", "ada@example.com").await.unwrap();
    db.sql(
        "SET session_replication_role = replica; \
         INSERT INTO users (username, email, password_hash) VALUES ('bob', 'ADA', 'x'), ('eve', 'eve@x', 'x'); \
         RESET session_replication_role",
    )
    .await;
    assert!(found(&db, "bob").await.is_some(), "at once");
    assert_eq!(complete(&db).await, 2);
    assert_eq!(found(&db, "ada").await, Some(ada));
    assert_eq!(clashes(&db).await.len(), 1);
    all_right(&db).await;
    // The keys of the other database are not taken, and those of an account that goes there go here too.
    db.sql(
        "SET session_replication_role = replica; \
         INSERT INTO login_names (user_id, name_key, of_username, of_email) VALUES (1, 'foreign', true, false); \
         UPDATE login_names SET name_key = 'other'; DELETE FROM login_names; \
         UPDATE users SET id = 100 WHERE username = 'eve'; DELETE FROM users WHERE username = 'bob'; \
         RESET session_replication_role",
    )
    .await;
    assert_eq!(found(&db, "eve@x").await, Some(100));
    assert_eq!((found(&db, "bob").await, clashes(&db).await.len()), (None, 0));
    all_right(&db).await;
    let left = "SELECT name_key FROM login_names WHERE user_id NOT IN (SELECT id FROM users)";
    assert_eq!(db.texts(left).await, [""; 0]);
    assert_eq!(db.texts("SELECT trigger::text FROM presence_triggers_off()").await, [""; 0]);
}
