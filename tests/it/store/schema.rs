//! Migrations, the schema that operators see, and what a store counts.

use presenced::model::{AccountStatus, Millis, SessionId};
use presenced::store::{Options, StoreError, open};

use super::{Db, new_account, on_both};

on_both!(
    a_second_migration_changes_nothing,
    plain_inserts_need_three_columns,
    words_that_nobody_knows_are_refused,
    a_store_that_nobody_asks_sends_nothing,
    operators_read_presence_from_users,
);

async fn a_second_migration_changes_nothing(db: Db) {
    assert!(db.store.migrate().await.unwrap().is_empty());
    assert!(db.another().await.migrate().await.unwrap().is_empty());
    db.store.ping().await.unwrap();
}

async fn two_at_once_migrate_once(db: Db) {
    let other = db.another().await;
    let (one, two) = tokio::join!(db.store.migrate(), other.migrate());
    let mut applied = one.unwrap();
    applied.extend(two.unwrap());
    assert_eq!(
        applied,
        [
            "0001 schema",
            "0002 doors",
            "0003 counts",
            "0004 history",
            "0005 sessions",
            "0006 login names",
            "0007 installation"
        ]
    );
    assert!(db.store.administrator().await.unwrap().is_none());
}

#[tokio::test]
async fn two_that_migrate_at_once_do_it_once_on_sqlite() {
    two_at_once_migrate_once(Db::empty_sqlite().await).await;
}

#[tokio::test]
async fn two_that_migrate_at_once_do_it_once_on_postgres() {
    two_at_once_migrate_once(Db::empty_postgres().await).await;
}

/// Ends of sessions from before they were told by Redis's clock: the late ones are told once more, the old ones never.
async fn ends_of_the_version_before_are_told_once_more(db: Db) {
    db.migrate_below(5).await;
    db.sql("INSERT INTO users (username, email, password_hash) VALUES ('ada', 'ada@example.com', 'x')").await;
    let at = |ms: i64| Millis(Millis::from_utc(chrono::Utc::now()).0 + ms).to_string();
    let hour = 3_600_000;
    for (sid, ended_at) in [
        ("alive", "NULL".to_owned()),
        ("late", format!("'{}'", at(-hour))),
        ("ahead", format!("'{}'", at(hour))),
        ("old", format!("'{}'", at(-72 * hour))),
    ] {
        db.sql(&format!(
            "INSERT INTO login_sessions (sid, user_id, created_at, last_used_at, ended_at) \
             SELECT '{sid}', id, '2026-01-15T10:30:00.000Z', '2026-01-15T10:30:00.000Z', {ended_at} FROM users"
        ))
        .await;
    }
    db.store.migrate().await.unwrap();
    let page = db.store.untold_ends(0).await.unwrap();
    assert_eq!(page.ends.iter().map(|end| end.sid.as_str()).collect::<Vec<_>>(), ["ahead", "late"]);
    let told: Vec<_> = page.ends.into_iter().map(|end| (end.sid, Millis(5_000))).collect();
    db.store.ends_told(&told).await.unwrap();
    let again = db.store.sessions_ended_since(Millis(0)).await.unwrap();
    let mut again: Vec<_> = again.into_iter().map(|(_, sid)| sid.to_string()).collect();
    again.sort();
    assert_eq!(again, ["ahead", "late"]);
    let user = page_user(&db).await;
    assert!(db.store.session_has_ended(user, &SessionId::parse("old").unwrap()).await.unwrap());
    assert!(!db.store.session_has_ended(user, &SessionId::parse("alive").unwrap()).await.unwrap());
}

async fn page_user(db: &Db) -> i64 {
    db.store.credentials("ada").await.unwrap().unwrap().account.id
}

#[tokio::test]
async fn ends_of_the_version_before_are_told_once_more_on_sqlite() {
    ends_of_the_version_before_are_told_once_more(Db::empty_sqlite().await).await;
}

#[tokio::test]
async fn ends_of_the_version_before_are_told_once_more_on_postgres() {
    ends_of_the_version_before_are_told_once_more(Db::empty_postgres().await).await;
}

async fn plain_inserts_need_three_columns(db: Db) {
    db.sql("INSERT INTO users (username, email, password_hash) VALUES ('ada', 'ada@example.com', 'x')").await;
    let account = db.store.credentials("ada").await.unwrap().unwrap().account;
    assert_eq!(
        (account.status, account.is_active, account.may_be_present()),
        (AccountStatus::Active, true, true)
    );
    assert_eq!(
        (account.mirror.as_str(), account.last_seen, account.role.as_str()),
        ("offline", None, "user")
    );
}

async fn words_that_nobody_knows_are_refused(db: Db) {
    db.user("ada").await;
    for change in ["status = 'gone'", "role = 'root'", "online_status = 'busy'", "may_be_present = false"] {
        assert!(db.try_sql(&format!("UPDATE users SET {change}")).await.is_err(), "{change}");
    }
}

async fn a_store_that_nobody_asks_sends_nothing(db: Db) {
    let before = db.store.statements();
    // The first wait sets the watch up, the second one waits.
    for _ in 0..2 {
        db.store.wait_for_account_change(std::time::Duration::from_millis(300)).await.unwrap();
    }
    assert_eq!(db.store.statements(), before);
    db.store.ping().await.unwrap();
    assert_eq!(db.store.statements(), before + 1);
}

async fn operators_read_presence_from_users(db: Db) {
    let ada = db.store.create_account(&new_account("ada"), None).await.unwrap().id;
    let batch = [super::transition(1_768_473_000_120, ada, presenced::model::OnlineStatus::Away)];
    db.record(0, &batch).await.unwrap();
    let seen = if db.url.starts_with("sqlite") {
        "last_seen"
    } else {
        "to_char(last_seen AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.MS\"Z\"')"
    };
    let rows =
        db.texts(&format!("SELECT username || ' ' || online_status || ' ' || {seen} FROM users")).await;
    assert_eq!(rows, ["ada away 2026-01-15T10:30:00.120Z"]);
}

#[tokio::test]
async fn a_url_of_another_kind_is_refused_with_its_name() {
    for url in ["mysql://localhost/x", "users.db", "", "postgres://:bad:port/x", "sqlite::memory:"] {
        let refused = open(url, &Options::default()).await.err();
        assert!(matches!(refused, Some(StoreError::Url(_))), "{url}: {refused:?}");
    }
}

#[tokio::test]
async fn an_absent_postgres_is_opened_and_shows_at_the_first_statement() {
    let store = open("postgres://nobody:secret@127.0.0.1:1/none", &Options::default()).await.unwrap();
    let began = std::time::Instant::now();
    let error = store.ping().await.unwrap_err();
    assert!(error.is_unavailable(), "{error}");
    assert!(!format!("{error:?}").contains("secret"));
    assert!(began.elapsed() < std::time::Duration::from_secs(3));
    assert!(store.migrate().await.unwrap_err().is_unavailable());
}

#[tokio::test]
async fn the_files_of_sqlite_are_their_owners_alone_whatever_the_umask_and_are_found_by_path() {
    use std::os::unix::fs::PermissionsExt;
    let folder = crate::support::tether::folder("private");
    let path = folder.path().join("of its own%2F/what?.db");
    let store = presenced::store::open_file(&path, &Options::default()).await.unwrap();
    store.migrate().await.unwrap();
    for suffix in ["", "-wal", "-shm"] {
        let file = format!("{}{suffix}", path.display());
        let mode = std::fs::metadata(&file).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{file}");
    }
    assert_eq!(std::fs::metadata(path.parent().unwrap()).unwrap().permissions().mode() & 0o777, 0o700);
    let url = format!("sqlite://{}", path.display().to_string().replace('%', "%25").replace('?', "%3F"));
    assert_eq!(presenced::store::file_of(&url).unwrap(), Some(path));
    assert_eq!(presenced::store::file_of("postgres://h/db").unwrap(), None);
}
