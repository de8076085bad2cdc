//! The trail of administrators, the last of them, and what ends with a block or a new password.

use presenced::model::{AccountStatus, Action, Actor, Change, Deed, Millis, Page, Role, SessionId};
use presenced::store::{AccountPatch, PasswordHash, SessionEnd, StoreError, TrailFilter};

use super::sessions::{alive, session};
use super::{Db, new_account, on_both};

on_both!(
    an_entry_comes_back_as_it_was_given,
    an_edit_and_its_entry_are_one,
    the_last_administrator_stays,
    a_stronger_hash_of_the_same_password_ends_nothing,
    sessions_end_with_the_right_to_be_present_and_with_the_password,
    a_blocked_account_begins_no_session,
    sessions_and_the_record_of_their_end_are_one,
    what_cannot_be_recorded_is_not_done,
    hashes_that_were_made_elsewhere_are_found_newest_first,
);

const ALL: Page = Page { number: 1, size: 1000 };

fn root() -> Actor {
    Actor { user: 5, username: "r'oot\u{202e}".into(), address: "2001:db8::1".into() }
}

async fn an_entry_comes_back_as_it_was_given(db: Db) {
    let changes =
        vec![Change::new("online_status", Some("o\"\\{}"), None), Change::new("password", None, None)];
    let deed = Deed { action: Action::SetOnlineStatus, user: 7, username: "*';--\n".into(), changes };
    db.store.add_to_trail(&root(), &deed).await.unwrap();
    let trail = db.store.trail(&TrailFilter::default(), ALL).await.unwrap();
    assert_eq!((trail.total, trail.entries.len()), (1, 1));
    let entry = &trail.entries[0];
    assert_eq!((&entry.actor, &entry.deed), (&root(), &deed));
    assert!((Millis::from_utc(chrono::Utc::now()).0 - entry.at.0).abs() < 60_000);
    for nobody in [
        TrailFilter { user: Some(8), ..TrailFilter::default() },
        TrailFilter { actor: Some(7), ..TrailFilter::default() },
        TrailFilter { action: Some(Action::DeleteUser), ..TrailFilter::default() },
    ] {
        assert_eq!(db.store.trail(&nobody, ALL).await.unwrap().total, 0);
    }
}

async fn an_edit_and_its_entry_are_one(db: Db) {
    let (ada, _) = (db.user("ada").await, db.user("bob").await);
    let patch = AccountPatch {
        status: Some(AccountStatus::Banned),
        email: Some("bob@example.com".into()),
        ..AccountPatch::default()
    };
    assert!(matches!(
        db.store.update_account(ada, &patch, Some(&root())).await,
        Err(StoreError::Taken { field: "email" })
    ));
    assert!(db.store.create_account(&new_account("ada"), Some(&root())).await.is_err());
    assert_eq!(db.store.account(ada).await.unwrap().unwrap().status, AccountStatus::Active);
    assert_eq!(db.store.trail(&TrailFilter::default(), ALL).await.unwrap().total, 0);
    // The connection is good for more.
    assert!(
        db.store.update_account(ada, &AccountPatch { email: None, ..patch }, Some(&root())).await.is_ok()
    );
    assert!(db.store.delete_account(ada, Some(&root())).await.unwrap());
    assert!(!db.store.delete_account(ada, Some(&root())).await.unwrap());
    let trail =
        db.store.trail(&TrailFilter { user: Some(ada), ..TrailFilter::default() }, ALL).await.unwrap();
    let actions: Vec<Action> = trail.entries.iter().map(|entry| entry.deed.action).collect();
    assert_eq!(actions, [Action::DeleteUser, Action::UpdateUser]);
}

async fn the_last_administrator_stays(db: Db) {
    let (root, banned) = (db.administrator().await, db.administrator().await);
    db.sql(&format!("UPDATE users SET status = 'banned' WHERE id = {banned}")).await;
    let nothing = AccountPatch::default;
    let last = [
        AccountPatch { role: Some(Role::User), ..nothing() },
        AccountPatch { status: Some(AccountStatus::Inactive), ..nothing() },
        AccountPatch { is_active: Some(false), ..nothing() },
    ];
    for patch in &last {
        let refused = db.store.update_account(root, patch, None).await;
        assert!(matches!(refused, Err(StoreError::LastAdministrator)), "{patch:?}");
    }
    assert!(matches!(db.store.delete_account(root, None).await, Err(StoreError::LastAdministrator)));
    db.store
        .update_account(root, &AccountPatch { status: Some(AccountStatus::Pending), ..nothing() }, None)
        .await
        .unwrap();
    db.sql(&format!("UPDATE users SET status = 'active' WHERE id = {banned}")).await;
    db.store.update_account(root, &last[0], None).await.unwrap();
    assert!(matches!(db.store.delete_account(banned, None).await, Err(StoreError::LastAdministrator)));
    db.sql("UPDATE users SET role = 'user'").await;
    assert!(db.store.delete_account(banned, None).await.unwrap(), "plain SQL does as it is told");
}

async fn a_stronger_hash_of_the_same_password_ends_nothing(db: Db) {
    let (ada, bob) = (db.user("ada").await, db.user("bob").await);
    db.store.create_session(&session(ada, "s", 1_000)).await.unwrap();
    let cursor = db.settled().await;
    let old = db.store.credentials("ada").await.unwrap().unwrap().password_hash;
    let (weak, strong) = (PasswordHash("weak".into()), PasswordHash("strong".into()));
    assert!(!db.store.replace_password_hash(ada, &weak, &strong).await.unwrap(), "not the one it has");
    assert!(!db.store.replace_password_hash(99, &old, &strong).await.unwrap());
    assert!(db.store.replace_password_hash(ada, &old, &strong).await.unwrap());
    assert_eq!(db.store.credentials("ada").await.unwrap().unwrap().password_hash, strong);
    assert!(db.store.credentials("bob").await.unwrap().unwrap().password_hash != strong, "{bob}");
    assert_eq!(alive(&*db.store, ada, 2_000).await.len(), 1);
    assert!(db.store.account_changes(&cursor).await.unwrap().users.is_empty());
}

async fn sessions_end_with_the_right_to_be_present_and_with_the_password(db: Db) {
    let (ada, bob) = (db.user("ada").await, db.user("bob").await);
    db.store.create_session(&session(bob, "bob's", 1_000)).await.unwrap();
    let ends = [
        "status = 'suspended'",
        "status = 'banned', is_active = false",
        "is_active = false",
        "password_hash = password_hash || 'x'",
    ];
    for (round, assignment) in ends.iter().enumerate() {
        let names = [format!("a{round}"), format!("b{round}")];
        for name in &names {
            assert!(db.store.create_session(&session(ada, name, 1_000)).await.unwrap().is_some());
        }
        for harmless in
            ["status = 'pending'", "role = 'admin'", "email = 'new@example.com'", "is_active = true"]
        {
            db.sql(&format!("UPDATE users SET {harmless} WHERE id = {ada}")).await;
        }
        assert_eq!(alive(&*db.store, ada, 2_000).await.len(), 2, "{assignment}");
        let cursor = db.settled().await;
        db.sql(&format!("UPDATE users SET {assignment} WHERE id = {ada}")).await;
        assert_eq!(alive(&*db.store, ada, 2_000).await.len(), 0, "{assignment}");
        assert_eq!(db.store.account_changes(&cursor).await.unwrap().users, [ada], "{assignment}");
        let untold = db.store.untold_ends_of(&[ada, bob]).await.unwrap();
        assert_eq!(untold.len(), 2 * (round + 1));
        assert!(untold.iter().all(|end| end.user == ada));
        assert!(names.iter().all(|name| untold.iter().any(|end| end.sid == *name)), "{untold:?}");
        db.sql(&format!("UPDATE users SET status = 'active', is_active = true WHERE id = {ada}")).await;
    }
    assert_eq!(alive(&*db.store, bob, 2_000).await.len(), 1);
    assert_eq!(db.texts("SELECT sid FROM refresh_tokens").await, ["bob's"], "their tokens are gone");
}

async fn a_blocked_account_begins_no_session(db: Db) {
    let ada = db.user_with("ada", AccountStatus::Suspended).await.id;
    assert_eq!(db.store.create_session(&session(ada, "s", 1_000)).await.unwrap(), None);
    assert!(db.texts("SELECT sid FROM login_sessions").await.is_empty());
}

async fn sessions_and_the_record_of_their_end_are_one(db: Db) {
    let ada = db.user("ada").await;
    for name in ["one", "two"] {
        db.store.create_session(&session(ada, name, 1_000)).await.unwrap();
    }
    let (by, now) = (root(), Millis(2_000));
    let end = async |name: Option<&str>| {
        let sid = name.map(|name| SessionId::parse(name).unwrap());
        let end = SessionEnd { user: ada, sid: sid.as_ref(), now, by: Some((&by, "ada")) };
        db.store.end_sessions(&end).await.unwrap().sids.len()
    };
    assert_eq!((end(Some("unknown")).await, end(Some("one")).await, end(Some("one")).await), (0, 1, 0));
    assert_eq!((end(None).await, end(None).await), (1, 0));
    let trail = db.store.trail(&TrailFilter::default(), ALL).await.unwrap();
    let told: Vec<_> = trail.entries.iter().rev().map(|entry| (&entry.actor, entry.deed.clone())).collect();
    let deed = |sids: &[&str]| Deed {
        action: Action::EndSessions,
        user: ada,
        username: "ada".into(),
        changes: sids.iter().map(|sid| Change::new("session", Some(sid), None)).collect(),
    };
    assert_eq!(told, [(&by, deed(&["one"])), (&by, deed(&["two"])), (&by, deed(&[]))]);
}

async fn what_cannot_be_recorded_is_not_done(db: Db) {
    db.administrator().await;
    let ada = db.user("ada").await;
    db.store.create_session(&session(ada, "s", 1_000)).await.unwrap();
    db.refuse_records().await;
    let by = root();
    let ban = AccountPatch { status: Some(AccountStatus::Banned), ..AccountPatch::default() };
    let end = SessionEnd { user: ada, sid: None, now: Millis(2_000), by: Some((&by, "ada")) };
    let deed = Deed { action: Action::SetOnlineStatus, user: ada, username: "ada".into(), changes: vec![] };
    let refused = [
        db.store.create_account(&new_account("bob"), Some(&by)).await.map(drop),
        db.store.update_account(ada, &ban, Some(&by)).await.map(drop),
        db.store.end_sessions(&end).await.map(drop),
        db.store.delete_account(ada, Some(&by)).await.map(drop),
        db.store.add_to_trail(&by, &deed).await,
    ];
    for outcome in refused {
        assert!(matches!(outcome, Err(StoreError::Unrecorded(_))), "{outcome:?}");
    }
    let account = db.store.account(ada).await.unwrap().unwrap();
    assert_eq!((account.status, alive(&*db.store, ada, 2_000).await.len()), (AccountStatus::Active, 1));
    assert!(db.store.credentials("bob").await.unwrap().is_none());
    // Whoever is no administrator is not recorded, and goes on.
    assert!(db.store.create_account(&new_account("eve"), None).await.is_ok());
}

async fn hashes_that_were_made_elsewhere_are_found_newest_first(db: Db) {
    let own = "$argon2id$v=19$m=19456,t=2,p=1$c2FsdA$aGFzaA";
    let hashes =
        [own, "pbkdf2_sha256$1000$salt$hash", "", "!unusable", "$argon2id$v=19$m=65536,t=3,p=4$c$h", own];
    for (number, hash) in hashes.iter().enumerate() {
        let id = db.user(&format!("user{number}")).await;
        db.sql(&format!("UPDATE users SET password_hash = '{hash}' WHERE id = {id}")).await;
    }
    let found = async |limit| {
        let found = db.store.foreign_hashes(limit).await.unwrap();
        found.into_iter().map(|hash| hash.0).collect::<Vec<_>>()
    };
    assert_eq!(found(10).await, [hashes[4], hashes[1]]);
    assert_eq!(found(1).await, [hashes[4]]);
}
