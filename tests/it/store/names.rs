//! Login names: one rule of equality, whoever writes them and whatever the locale of the database.

use super::leftovers::to_third_version;
use super::{Db, new_account};
use presenced::model::{Page, UserId};
use presenced::store::{AccountFilter, AccountPatch, EmailSearch, NewAccount, StoreError};

/// Makes each function a test on SQLite and on PostgreSQL in two locales, of which C knows no letters but ASCII's.
macro_rules! in_every_locale {
    ($($name:ident),+ $(,)?) => {
        mod sqlite {
            $(#[tokio::test] async fn $name() { super::$name($crate::store::Db::empty_sqlite().await).await; })+
        }
        mod postgres {
            $(#[tokio::test] async fn $name() { super::$name($crate::store::Db::empty_postgres().await).await; })+
        }
        mod postgres_c {
            $(#[tokio::test] async fn $name() { super::$name(super::in_c().await).await; })+
        }
    };
}

in_every_locale!(
    two_spellings_of_a_name_are_one_login_name,
    names_that_only_some_locales_take_for_equal_are_two,
    a_search_goes_by_the_same_rule,
    plain_sql_keeps_the_rule_as_far_as_the_database_can_fold,
    a_name_that_the_database_cannot_fold_signs_in_at_once_and_is_completed,
    of_two_that_plain_sql_makes_equal_the_first_keeps_the_name,
    a_renamed_account_gives_its_name_up_and_takes_the_new_one,
    a_save_that_changes_no_name_touches_no_key,
    accounts_from_before_the_keys_lose_nothing,
    keys_that_triggers_have_missed_are_found_and_computed,
    of_many_that_want_one_name_at_once_one_gets_it,
);

async fn in_c() -> Db {
    Db::empty_postgres_with("TEMPLATE template0 LOCALE 'C'").await
}

fn named(username: &str, email: &str) -> NewAccount {
    NewAccount { email: email.into(), ..new_account(username) }
}

pub(super) async fn add(db: &Db, username: &str, email: &str) -> Result<UserId, &'static str> {
    match db.store.create_account(&named(username, email), None).await {
        Ok(account) => Ok(account.id),
        Err(StoreError::Taken { field }) => Err(field),
        Err(error) => panic!("{username} {email}: {error}"),
    }
}

async fn readdress(db: &Db, user: UserId, email: &str) -> Result<(), &'static str> {
    let patch = AccountPatch { email: Some(email.into()), ..AccountPatch::default() };
    match db.store.update_account(user, &patch, None).await {
        Ok(account) => {
            assert_eq!(account.unwrap().email, email);
            Ok(())
        }
        Err(StoreError::Taken { field }) => Err(field),
        Err(error) => panic!("{email}: {error}"),
    }
}

pub(super) async fn found(db: &Db, login: &str) -> Option<UserId> {
    db.store.credentials(login).await.unwrap().map(|found| found.account.id)
}

pub(super) async fn insert(db: &Db, username: &str, email: &str) -> Result<(), sqlx::Error> {
    let insert =
        format!("INSERT INTO users (username, email, password_hash) VALUES ('{username}', '{email}', 'x')");
    db.try_sql(&insert).await
}

/// Every key: `user key`, with what it is of, and a star where the account holds it.
async fn all_keys(db: &Db) -> Vec<String> {
    let statement = "SELECT CAST(user_id AS text) || ' ' || name_key || ' ' \
                     || CASE WHEN of_username THEN 'n' ELSE '' END || CASE WHEN of_email THEN 'e' ELSE '' END \
                     || CASE WHEN holds THEN '*' ELSE '' END FROM login_names ORDER BY user_id, name_key";
    db.texts(statement).await
}

pub(super) async fn complete(db: &Db) -> u64 {
    let mut completed = 0;
    loop {
        match db.store.complete_login_names(2).await.unwrap() {
            0 => return completed,
            more => completed += more,
        }
    }
}

pub(super) async fn clashes(db: &Db) -> Vec<String> {
    db.store.login_name_clashes(0, 100).await.unwrap().iter().map(ToString::to_string).collect()
}

/// All keys are those of the names, and none waits.
pub(super) async fn all_right(db: &Db) {
    for names in db.store.login_names_after(0, 1_000).await.unwrap() {
        assert!(names.are_right() && !names.is_marked, "{names:?}");
    }
}

pub(super) async fn two_spellings_of_a_name_are_one_login_name(db: Db) {
    db.store.migrate().await.unwrap();
    let ada = add(&db, "Ada", "ada@example.com").await.unwrap();
    let street = add(&db, "Straße", "ΣΊΣΥΦΟΣ@example.com").await.unwrap();
    let kim = add(&db, "kim", "kim@outlook.com").await.unwrap();
    for (username, email, field) in [
        ("ADA", "x@y", "username"),
        ("Ａda", "x@y", "username"),
        ("a\u{200b}da", "x@y", "username"),
        ("STRASSE", "x@y", "username"),
        ("stra\u{1e9e}e", "x@y", "username"),
        ("x", "σίσυφος@EXAMPLE.com", "email"),
        ("x", "ADA@example.com", "email"),
        ("x", "\u{212a}im@outloo\u{212a}.com", "email"),
        ("\u{212a}im", "x@y", "username"),
        // A username that is another account's e-mail address, and the other way round.
        ("kim@outlook.com", "x@y", "username"),
        ("kim@outlook.com", "\u{212a}im@outlook.com", "username"),
        ("KIM@OUTLOO\u{212a}.com", "x@y", "username"),
        ("x", "sTRASSE", "email"),
        ("x", "Ada", "email"),
    ] {
        assert_eq!(add(&db, username, email).await, Err(field), "{username} {email}");
    }
    for (login, user) in [
        ("ada", ada),
        ("ＡＤＡ", ada),
        ("ADA@EXAMPLE.COM", ada),
        ("strasse", street),
        ("STRAßE", street),
        ("σίσυφοσ@example.com", street),
        ("\u{212a}IM", kim),
        ("kim@outloo\u{212a}.com", kim),
    ] {
        assert_eq!(found(&db, login).await, Some(user), "{login}");
    }
    for login in ["", "\u{200b}", "stras", "ada\0", "nobody"] {
        assert_eq!(found(&db, login).await, None, "{login:?}");
    }
    for (user, email, outcome) in [
        (ada, "KIM@outlook.com", Err("email")),
        (ada, "\u{212a}im@outlook.com", Err("email")),
        (ada, "strasse", Err("email")),
        (ada, "Ада@example.com", Ok(())),
        (ada, "аДА@example.com", Ok(())),
        (ada, "ada@example.com", Ok(())),
        (kim, "АДА@example.com", Ok(())),
        (kim, "ADA@example.com", Err("email")),
    ] {
        assert_eq!(readdress(&db, user, email).await, outcome, "{user} {email}");
    }
    assert_eq!(found(&db, "ада@EXAMPLE.com").await, Some(kim));
    assert_eq!(found(&db, "kim@outlook.com").await, None, "given up");
    complete(&db).await;
    all_right(&db).await;
    assert_eq!(clashes(&db).await, [""; 0]);
}

pub(super) async fn names_that_only_some_locales_take_for_equal_are_two(db: Db) {
    db.store.migrate().await.unwrap();
    let names = ["ibrahim", "İbrahim", "ıbrahim", "din", "dın", "а", "a"];
    for (index, name) in names.iter().enumerate() {
        assert!(add(&db, name, &format!("{index}@example.com")).await.is_ok(), "{name}");
    }
    assert_eq!(found(&db, "IBRAHIM").await, found(&db, "ibrahim").await);
    assert_ne!(found(&db, "İBRAHIM").await, found(&db, "ibrahim").await);
    assert_eq!(add(&db, "DIN", "x@y").await, Err("username"));
}

pub(super) async fn a_search_goes_by_the_same_rule(db: Db) {
    db.store.migrate().await.unwrap();
    let street = add(&db, "Straße 100%_", "ÉVA@x.example").await.unwrap();
    let eva = add(&db, "Éva", "strasse@example.com").await.unwrap();
    add(&db, "other", "other@example.com").await.unwrap();
    let search = async |text: &str, search_email| {
        let filter = AccountFilter { search: Some(text.into()), search_email, ..AccountFilter::default() };
        let list = db.store.list_accounts(&filter, Page { number: 1, size: 10 }.into(), &[]).await.unwrap();
        assert_eq!(usize::try_from(list.total).unwrap(), list.accounts.len());
        list.accounts.into_iter().map(|account| account.id).collect::<Vec<_>>()
    };
    for (text, names, both) in [
        ("TRASS", vec![street], vec![street, eva]),
        ("traße", vec![street], vec![street, eva]),
        ("e\u{301}V", vec![eva], vec![street, eva]),
        ("0%_", vec![street], vec![street]),
        ("%", vec![street], vec![street]),
        ("ＯＴＨ", vec![eva + 1], vec![eva + 1]),
        ("example.com", vec![], vec![eva, eva + 1]),
    ] {
        assert_eq!(search(text, EmailSearch::No).await, names, "{text}");
        assert_eq!(search(text, EmailSearch::Yes).await, both, "{text}");
    }
}

async fn plain_sql_keeps_the_rule_as_far_as_the_database_can_fold(db: Db) {
    db.store.migrate().await.unwrap();
    let ada = add(&db, "ada", "ada@example.com").await.unwrap();
    add(&db, "Zoë", "zoë@example.com").await.unwrap();
    for (username, email) in [
        ("ADA", "x@y"),
        ("x", "ADA@example.com"),
        ("ADA@example.com", "x@y"),
        ("x", "Ada"),
        // Differs from a key by ASCII case alone.
        ("zOë", "x@y"),
        ("ZOë@example.com", "x@y"),
    ] {
        let refused = insert(&db, username, email).await.unwrap_err();
        assert!(
            refused.to_string().contains("users_") || refused.to_string().contains("login_name"),
            "{refused}"
        );
    }
    insert(&db, "bob", "bob@example.com").await.unwrap();
    for change in
        ["username = 'ADA'", "email = 'Ada@example.com'", "username = 'ADA@example.com'", "email = 'zoë'"]
    {
        let refused = db.try_sql(&format!("UPDATE users SET {change} WHERE username = 'bob'")).await;
        assert!(refused.is_err(), "{change}");
    }
    // What an ORM writes to get or create.
    db.sql(
        "INSERT INTO users (username, email, password_hash) VALUES ('Ada', 'x@y', 'x') ON CONFLICT DO NOTHING",
    )
    .await;
    assert_eq!(found(&db, "x@y").await, None);
    assert_eq!(found(&db, "ada").await, Some(ada));
    all_right(&db).await;
}

async fn a_name_that_the_database_cannot_fold_signs_in_at_once_and_is_completed(db: Db) {
    db.store.migrate().await.unwrap();
    insert(&db, "Ärger", "ärger@example.com").await.unwrap();
    let user = found(&db, "ÄRGER").await.unwrap();
    for login in ["ärger", "a\u{308}rger", "ÄRGER@example.com"] {
        assert_eq!(found(&db, login).await, Some(user), "{login}");
    }
    assert_eq!(complete(&db).await, 1);
    assert_eq!(all_keys(&db).await, [format!("{user} ärger n*"), format!("{user} ärger@example.com e*")]);
    assert_eq!(found(&db, "ÄRGER").await, Some(user));
    assert_eq!(add(&db, "ärger", "x@y").await, Err("username"));
    // Of very many those that are spelled so.
    let rows: Vec<String> = (0..150).map(|n| format!("('Ö{n}', 'ö{n}@example.com', 'x')")).collect();
    let many = format!("INSERT INTO users (username, email, password_hash) VALUES {}", rows.join(", "));
    db.sql(&many).await;
    assert!(found(&db, "Ö0").await.is_some() && found(&db, "ö0@EXAMPLE.com").await.is_some());
    assert_eq!(complete(&db).await, 150);
    assert!(found(&db, "ö0").await.is_some());
    all_right(&db).await;
    assert_eq!(db.store.mark_incomplete_login_names().await.unwrap(), 0);
}

async fn of_two_that_plain_sql_makes_equal_the_first_keeps_the_name(db: Db) {
    db.store.migrate().await.unwrap();
    let kim = add(&db, "someone", "kim@outlook.com").await.unwrap();
    insert(&db, "\u{212a}im@outlook.com", "stranger@example.com").await.unwrap();
    let stranger = found(&db, "stranger@example.com").await.unwrap();
    assert_eq!(found(&db, "kim@outlook.com").await, Some(kim), "before it is compared");
    complete(&db).await;
    for login in ["kim@outlook.com", "\u{212a}im@outlook.com"] {
        assert_eq!(found(&db, login).await, Some(kim), "{login}");
    }
    assert_eq!(found(&db, "stranger@example.com").await, Some(stranger), "by its other name");
    assert_eq!(
        clashes(&db).await,
        [format!(
            "account {stranger} has the username '\u{212a}im@outlook.com', which is the same login name as the e-mail address \
             'kim@outlook.com' of account {kim}: a login by it means account {kim}"
        )]
    );
    // An older account that takes a younger one's name by plain SQL does not get its logins either.
    db.sql(&format!("UPDATE users SET username = 'STRANGER\u{ff20}example.com' WHERE id = {kim}")).await;
    complete(&db).await;
    assert_eq!(found(&db, "stranger@example.com").await, Some(stranger));
    assert_eq!(clashes(&db).await.len(), 2);
    // What is given up goes to the other.
    db.sql(&format!("DELETE FROM users WHERE id = {kim}")).await;
    assert_eq!(found(&db, "kim@outlook.com").await, Some(stranger));
    assert_eq!(clashes(&db).await, [""; 0]);
    all_right(&db).await;
}

async fn a_renamed_account_gives_its_name_up_and_takes_the_new_one(db: Db) {
    db.store.migrate().await.unwrap();
    let ada = add(&db, "ada", "ada@example.com").await.unwrap();
    for (change, is, was) in [
        ("username = 'Lovelace'", "LOVELACE", "ada"),
        ("username = 'Ädele'", "ÄDELE", "lovelace"),
        ("username = 'äDELE'", "ädele", "lovelace"),
        ("email = 'Ö@example.com'", "ö@example.com", "ada@example.com"),
        ("username = 'both@x', email = 'BOTH@x'", "both@x", "ädele"),
        ("username = 'x', email = 'y'", "y", "both@x"),
        ("username = 'z'", "z", "x"),
        ("id = id + 1000, username = 'Ÿ'", "ÿ", "z"),
    ] {
        db.sql(&format!("UPDATE users SET {change} WHERE password_hash = 'hash of ada'")).await;
        assert!(found(&db, is).await.is_some(), "{change}: at once");
        complete(&db).await;
        assert!(found(&db, is).await.is_some(), "{change}");
        assert_eq!(found(&db, was).await, None, "{change}");
        all_right(&db).await;
    }
    assert_eq!(found(&db, "ÿ").await, Some(ada + 1000));
    add(&db, "ada", "ada@example.com").await.unwrap();
    db.sql("DELETE FROM users").await;
    assert_eq!(all_keys(&db).await, [""; 0]);
}

async fn a_save_that_changes_no_name_touches_no_key(db: Db) {
    db.store.migrate().await.unwrap();
    let user = add(&db, "Ärger", "ada@example.com").await.unwrap();
    let before = all_keys(&db).await;
    db.sql(&format!(
        "UPDATE users SET username = 'Ärger', email = 'ada@example.com', status = 'pending' WHERE id = {user}"
    ))
    .await;
    assert_eq!(complete(&db).await, 0);
    assert_eq!(all_keys(&db).await, before);
}

pub(super) async fn accounts_from_before_the_keys_lose_nothing(db: Db) {
    to_third_version(&db).await;
    let rows = [
        (1, "Ada", "ada@example.com"),
        (2, "same@example.com", "SAME@example.com"),
        // Of two ASCII names, and of one that only the service can fold, the older keeps it.
        (3, "bob", "kim@outlook.com"),
        (4, "KIM@outlook.com", "four@example.com"),
        (5, "Groß", "five@example.com"),
        (6, "GROSS", "six@example.com"),
        (7, "Straße", "seven@example.com"),
        (8, "STRASSE", "eight@example.com"),
        (9, "\u{200b}", "nine@example.com"),
    ];
    for (id, username, email) in rows {
        db.sql(&format!(
            "INSERT INTO users (id, username, email, password_hash) VALUES ({id}, '{username}', '{email}', 'x')"
        ))
        .await;
    }
    db.store.migrate().await.unwrap();
    for login in ["ada", "same@example.com", "Straße", "Groß", "kim@OUTLOOK.com"] {
        assert!(found(&db, login).await.is_some(), "{login} before it is completed");
    }
    assert_eq!(complete(&db).await, 3);
    for (login, user) in
        [("ADA", 1), ("same@example.com", 2), ("kim@outlook.com", 3), ("gross", 5), ("strasse", 7)]
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
    assert_eq!((found(&db, "own").await, found(&db, "gross").await), (Some(6), Some(5)));
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

async fn of_many_that_want_one_name_at_once_one_gets_it(db: Db) {
    db.store.migrate().await.unwrap();
    let other = db.another().await;
    let spellings = ["Straße", "STRASSE", "stra\u{1e9e}e", "strasse", "ＳTRASSE", "strass\u{200b}e"];
    let crowd = spellings.iter().enumerate().map(|(index, name)| {
        let store = if index % 2 == 0 { &db.store } else { &other };
        let new = named(name, &format!("{index}@example.com"));
        async move { store.create_account(&new, None).await }
    });
    let outcomes = futures_util::future::join_all(crowd).await;
    assert_eq!(outcomes.iter().filter(|outcome| outcome.is_ok()).count(), 1, "{outcomes:?}");
    for outcome in outcomes.into_iter().filter_map(Result::err) {
        assert!(matches!(outcome, StoreError::Taken { field: "username" }), "{outcome}");
    }
    // Two that complete beside renames: no name is left with a former key.
    for number in 0..40 {
        insert(&db, &format!("Ü{number}"), &format!("ü{number}@example.com")).await.unwrap();
    }
    let rename = async {
        for number in 0..40 {
            db.sql(&format!("UPDATE users SET username = 'Ø{number}' WHERE username = 'Ü{number}'")).await;
        }
    };
    let completing = async |store: &dyn presenced::store::Store| {
        for _ in 0..20 {
            store.complete_login_names(5).await.unwrap();
        }
    };
    tokio::join!(rename, completing(&*db.store), completing(&*other));
    complete(&db).await;
    all_right(&db).await;
    assert!(found(&db, "ø7").await.is_some() && found(&db, "ü7").await.is_none());
}
