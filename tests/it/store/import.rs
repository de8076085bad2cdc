//! Bringing accounts in: all or none, what is there stays, and ids are never given twice.

use std::time::{Duration, Instant};

use presenced::model::{AccountStatus, Millis, Role};
use presenced::store::{ImportRow, Imported, PasswordHash};

use super::{Db, on_both};

on_both!(
    accounts_come_in_as_they_are,
    one_row_in_the_way_keeps_all_out_and_says_of_whom,
    a_repeated_import_changes_nothing,
    a_dry_run_changes_nothing_and_says_the_same,
    ids_that_are_given_out_later_are_none_that_were_brought_along,
    a_hundred_thousand_accounts_come_in_within_seconds,
);

fn row(name: &str) -> ImportRow {
    ImportRow {
        id: None,
        username: name.into(),
        email: format!("{name}@example.com"),
        password_hash: PasswordHash(format!("hash of {name}")),
        role: Role::User,
        status: AccountStatus::Active,
        is_active: true,
        created_at: None,
    }
}

async fn accounts_come_in_as_they_are(db: Db) {
    let made = Millis(1_706_702_400_500);
    let ada = ImportRow {
        id: Some(70),
        role: Role::Admin,
        status: AccountStatus::Suspended,
        is_active: false,
        created_at: Some(made),
        ..row("Ada 'O\"Hara\" \\ 愛")
    };
    let outcome = db.store.import_accounts(&[row("bob"), ada.clone()], false).await.unwrap();
    assert_eq!(outcome, [Imported::Added(Some(71)), Imported::Added(Some(70))]);
    let found = db.store.credentials(&ada.username).await.unwrap().unwrap();
    assert_eq!(found.password_hash, ada.password_hash);
    let account = found.account;
    assert_eq!((account.id, &account.email, account.role), (70, &ada.email, Role::Admin));
    assert_eq!((account.status, account.is_active), (AccountStatus::Suspended, false));
    assert_eq!(db.store.blocked_after(0, 10).await.unwrap(), [70]);
    let created = db.texts("SELECT CAST(created_at AS text) FROM users ORDER BY id").await;
    assert!(created[0].starts_with("2024-01-31") && created[0].contains(":00.5"), "{created:?}");
    assert!(!created[1].starts_with("2024"), "{created:?}");
}

async fn one_row_in_the_way_keeps_all_out_and_says_of_whom(db: Db) {
    let ada = db.user("ada").await;
    let rows = [
        row("new"),
        ImportRow { id: Some(ada), ..row("eve") },
        ImportRow { email: "eve2@example.com".into(), ..row("ADA") },
        ImportRow { email: "ADA@example.com".into(), ..row("eve3") },
        row("ada@example.com"),
        ImportRow { email: "ada".into(), ..row("eve4") },
        ImportRow { id: Some(ada), email: "eve5@example.com".into(), ..row("ada") },
    ];
    let outcome = db.store.import_accounts(&rows, false).await.unwrap();
    assert_eq!(outcome[0], Imported::Added(None));
    let said: Vec<Vec<String>> = outcome[1..]
        .iter()
        .map(|outcome| match outcome {
            Imported::Refused(clashes) => {
                assert!(clashes.iter().all(|clash| clash.of == ada));
                clashes.iter().map(|clash| format!("{} {}", clash.field, clash.is_its)).collect()
            }
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(
        said[..5],
        [["id id"], ["username username"], ["email email"], ["username email"], ["email username"]]
    );
    assert_eq!(said[5].len(), 2);
    assert_eq!(db.texts("SELECT username FROM users").await, ["ada"]);
}

async fn a_repeated_import_changes_nothing(db: Db) {
    let rows = [ImportRow { id: Some(7), ..row("ada") }, row("bob")];
    db.store.import_accounts(&rows, false).await.unwrap();
    let before = db.texts("SELECT username || password_hash || updated_at FROM users ORDER BY id").await;
    let expected = [Imported::Unchanged(7, true), Imported::Unchanged(8, true)];
    assert_eq!(db.store.import_accounts(&rows, false).await.unwrap(), expected);
    // With a third that is new, after one of them signed in and had his hash replaced.
    db.sql("UPDATE users SET password_hash = 'ours' WHERE id = 7").await;
    let more = [rows[0].clone(), rows[1].clone(), row("eve")];
    let outcome = db.store.import_accounts(&more, false).await.unwrap();
    assert_eq!(outcome, [Imported::Unchanged(7, false), expected[1].clone(), Imported::Added(Some(9))]);
    let after = db.texts("SELECT username || password_hash || updated_at FROM users ORDER BY id").await;
    assert_eq!(after[1], before[1]);
    assert!(after[0].contains("ours"), "{after:?}");
}

async fn a_dry_run_changes_nothing_and_says_the_same(db: Db) {
    db.user("ada").await;
    let rows = [row("bob"), ImportRow { email: "x@y".into(), ..row("ada") }];
    let dry = db.store.import_accounts(&rows, true).await.unwrap();
    assert_eq!(dry, db.store.import_accounts(&rows, false).await.unwrap());
    assert_eq!(db.store.import_accounts(&rows[..1], true).await.unwrap(), [Imported::Added(None)]);
    assert_eq!(db.texts("SELECT username FROM users").await, ["ada"]);
}

async fn ids_that_are_given_out_later_are_none_that_were_brought_along(db: Db) {
    let first = db.user("first").await;
    let rows =
        [row("a"), ImportRow { id: Some(first + 1), ..row("b") }, ImportRow { id: Some(500), ..row("c") }];
    db.store.import_accounts(&rows, false).await.unwrap();
    assert_eq!(db.user("second").await, 502);
    // Small ids afterwards take nothing back.
    db.store.import_accounts(&[ImportRow { id: Some(300), ..row("d") }], false).await.unwrap();
    assert_eq!(db.user("third").await, 503);
}

async fn a_hundred_thousand_accounts_come_in_within_seconds(db: Db) {
    let rows: Vec<ImportRow> =
        (1..=100_000).map(|id| ImportRow { id: Some(id), ..row(&format!("user{id}")) }).collect();
    for expected in [Imported::Added(Some(100_000)), Imported::Unchanged(100_000, true)] {
        let began = Instant::now();
        let outcome = db.store.import_accounts(&rows, false).await.unwrap();
        println!("{:?} in {:?}", expected, began.elapsed());
        assert_eq!(outcome.last(), Some(&expected));
        assert!(began.elapsed() < Duration::from_mins(1), "{:?}", began.elapsed());
    }
    assert_eq!(db.texts("SELECT CAST(count(*) AS text) FROM users").await, ["100000"]);
}
