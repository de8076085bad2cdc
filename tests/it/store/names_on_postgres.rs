//! Login names where PostgreSQL's own rules differ most: another locale's letters, and rows that come by replication.

use super::Db;
use super::leftovers::to_third_version;
use super::names::{
    a_search_goes_by_the_same_rule, accounts_from_before_the_keys_lose_nothing, add, all_right, clashes,
    complete, found, insert, names_that_only_some_locales_take_for_equal_are_two,
    two_spellings_of_a_name_are_one_login_name,
};

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
