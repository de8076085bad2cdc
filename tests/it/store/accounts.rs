//! Accounts: making, finding, listing, changing, deleting.

use presenced::model::{AccountStatus, Millis, OnlineStatus, Page, Role, UserId};
use presenced::store::{
    AccountFilter, AccountPatch, EmailSearch, NewAccount, PasswordHash, PresenceFilter, StoreError,
};

use super::{Db, new_account, on_both, transition};

on_both!(
    a_new_account_is_offline_and_was_never_seen,
    names_and_addresses_are_unique_whatever_their_case,
    an_account_is_found_by_name_or_address_whatever_the_case,
    text_with_a_nul_finds_nothing_and_is_not_kept,
    a_search_takes_percent_and_underscore_as_they_are,
    a_search_looks_into_addresses_only_where_asked,
    lists_are_ordered_by_id_and_pages_past_the_end_are_empty,
    a_list_by_standing_counts_all_pages,
    corrections_outweigh_the_mirror_and_the_rule_outweighs_both,
    thousands_of_corrections_are_no_burden,
    a_mirror_that_is_too_old_counts_as_offline,
    a_patch_changes_what_it_names,
    a_patch_of_nobody_changes_nothing,
    a_deleted_account_takes_sessions_and_history_along,
    ids_are_never_given_twice,
    many_accounts_are_read_at_once,
);

async fn a_new_account_is_offline_and_was_never_seen(db: Db) {
    assert!(db.store.administrator().await.unwrap().is_none());
    let account =
        db.store.create_account(&NewAccount { role: Role::Admin, ..new_account("Ada") }, None).await.unwrap();
    assert_eq!((account.username.as_str(), account.email.as_str()), ("Ada", "Ada@example.com"));
    assert_eq!((account.role, account.status, account.is_active), (Role::Admin, AccountStatus::Active, true));
    assert_eq!((account.mirror, account.last_seen), (OnlineStatus::Offline, None));
    assert_eq!(db.store.account(account.id).await.unwrap(), Some(account.clone()));
    assert_eq!(db.store.administrator().await.unwrap(), Some(account));
}

async fn names_and_addresses_are_unique_whatever_their_case(db: Db) {
    let ada = db.user("ada").await;
    let bob = db.user("bob").await;
    let taken = |error: StoreError| match error {
        StoreError::Taken { field } => field,
        other => panic!("{other}"),
    };
    let name = NewAccount { email: "else@example.com".into(), ..new_account("ADA") };
    assert_eq!(taken(db.store.create_account(&name, None).await.unwrap_err()), "username");
    let address = NewAccount { email: "ADA@Example.com".into(), ..new_account("else") };
    assert_eq!(taken(db.store.create_account(&address, None).await.unwrap_err()), "email");
    let patch = AccountPatch { email: Some("Ada@example.com".into()), ..AccountPatch::default() };
    assert_eq!(taken(db.store.update_account(bob, &patch, None).await.unwrap_err()), "email");
    // One's own in another spelling is no clash, and a refusal leaves the store in working order.
    assert_eq!(db.store.update_account(ada, &patch, None).await.unwrap().unwrap().email, "Ada@example.com");
}

async fn an_account_is_found_by_name_or_address_whatever_the_case(db: Db) {
    let ada = db.user("Ada").await;
    for login in ["Ada", "ada", "ADA", "ada@example.com", "ADA@EXAMPLE.COM"] {
        let found = db.store.credentials(login).await.unwrap().unwrap();
        assert_eq!((found.account.id, found.password_hash.0.as_str()), (ada, "hash of Ada"));
    }
    for login in ["", "ad", "ada%", "a_a", "nobody"] {
        assert!(db.store.credentials(login).await.unwrap().is_none(), "{login}");
    }
}

async fn text_with_a_nul_finds_nothing_and_is_not_kept(db: Db) {
    let ada = db.user("ada").await;
    assert!(db.store.credentials("ada\0").await.unwrap().is_none());
    let filter = AccountFilter {
        search: Some("a\0".into()),
        search_email: EmailSearch::Yes,
        ..AccountFilter::default()
    };
    let page = Page { number: 1, size: 10 };
    assert_eq!(db.store.list_accounts(&filter, page.into(), &[]).await.unwrap().total, 0);
    let refused = db.store.create_account(&new_account("b\0b"), None).await.unwrap_err();
    assert!(matches!(refused, StoreError::Unfit { field: "username" }), "{refused}");
    let patch = AccountPatch { email: Some("\0".into()), ..AccountPatch::default() };
    let refused = db.store.update_account(ada, &patch, None).await.unwrap_err();
    assert!(matches!(refused, StoreError::Unfit { field: "email" }), "{refused}");
}

async fn names(db: &Db, filter: &AccountFilter) -> Vec<String> {
    let list = db.store.list_accounts(filter, Page { number: 1, size: 100 }.into(), &[]).await.unwrap();
    assert_eq!(usize::try_from(list.total).unwrap(), list.accounts.len());
    list.accounts.into_iter().map(|account| account.username).collect()
}

async fn a_search_takes_percent_and_underscore_as_they_are(db: Db) {
    for name in ["a_b", "axb", "100%", "1000", r"back\slash", "UPPER", "it's"] {
        db.user(name).await;
    }
    let search = |text: &str| AccountFilter { search: Some(text.into()), ..AccountFilter::default() };
    assert_eq!(names(&db, &search("A_B")).await, ["a_b"]);
    assert_eq!(names(&db, &search("_")).await, ["a_b"]);
    assert_eq!(names(&db, &search("0%")).await, ["100%"]);
    assert_eq!(names(&db, &search(r"\")).await, [r"back\slash"]);
    assert_eq!(names(&db, &search("pPe")).await, ["UPPER"]);
    assert_eq!(names(&db, &search("'")).await, ["it's"]);
    assert_eq!(names(&db, &search("")).await.len(), 7);
}

async fn a_search_looks_into_addresses_only_where_asked(db: Db) {
    db.store
        .create_account(&NewAccount { email: "x@Corp.example".into(), ..new_account("ada") }, None)
        .await
        .unwrap();
    db.user("corporal").await;
    let mut filter = AccountFilter { search: Some("corp".into()), ..AccountFilter::default() };
    assert_eq!(names(&db, &filter).await, ["corporal"]);
    filter.search_email = EmailSearch::Yes;
    assert_eq!(names(&db, &filter).await, ["ada", "corporal"]);
    let root = db.administrator().await;
    for (who, found) in
        [(root, vec!["ada", "corporal"]), (root - 1, vec!["corporal"]), (999, vec!["corporal"])]
    {
        filter.search_email = EmailSearch::IfAdmin(who);
        assert_eq!(names(&db, &filter).await, found, "{who}");
    }
}

async fn lists_are_ordered_by_id_and_pages_past_the_end_are_empty(db: Db) {
    for name in ["c", "a", "b"] {
        db.user(name).await;
    }
    let filter = AccountFilter::default();
    let page = |number, size| db.store.list_accounts(&filter, Page { number, size }.into(), &[]);
    let names = |list: &presenced::store::AccountList| {
        list.accounts.iter().map(|account| account.username.clone()).collect::<Vec<_>>()
    };
    let (one, two) = (page(1, 2).await.unwrap(), page(2, 2).await.unwrap());
    assert_eq!((names(&one), names(&two)), (vec!["c".into(), "a".into()], vec!["b".into()]));
    for number in [3, u32::MAX] {
        let past = page(number, 1000).await.unwrap();
        assert_eq!((past.accounts.len(), past.total), (0, 3));
    }
}

async fn a_list_by_standing_counts_all_pages(db: Db) {
    for (index, status) in
        [AccountStatus::Banned, AccountStatus::Active, AccountStatus::Banned].into_iter().enumerate()
    {
        db.user_with(&format!("user{index}"), status).await;
    }
    let filter = AccountFilter { status: Some(AccountStatus::Banned), ..AccountFilter::default() };
    let list = db.store.list_accounts(&filter, Page { number: 1, size: 1 }.into(), &[]).await.unwrap();
    assert_eq!((list.accounts.len(), list.total, list.accounts[0].username.as_str()), (1, 2, "user0"));
}

fn presence(is: OnlineStatus, corrections: &[(UserId, OnlineStatus)], since: Option<i64>) -> AccountFilter {
    let corrections = corrections.to_vec();
    let presence = PresenceFilter { is, corrections, mirror_counts_since: since.map(Millis) };
    AccountFilter { presence: Some(presence), ..AccountFilter::default() }
}

async fn corrections_outweigh_the_mirror_and_the_rule_outweighs_both(db: Db) {
    use OnlineStatus::{Away, Offline, Online};
    let (online, away, off) = (db.user("online").await, db.user("away").await, db.user("off").await);
    let banned = db.user("banned").await;
    let batch =
        [transition(1_000, online, Online), transition(1_001, away, Away), transition(1_002, banned, Online)];
    db.record(0, &batch).await.unwrap();
    db.sql(&format!("UPDATE users SET status = 'banned' WHERE id = {banned}")).await;

    assert_eq!(names(&db, &presence(Online, &[], None)).await, ["online"]);
    assert_eq!(names(&db, &presence(Away, &[], None)).await, ["away"]);
    assert_eq!(names(&db, &presence(Offline, &[], None)).await, ["off", "banned"]);
    let corrections = [(online, Offline), (off, Online), (banned, Online), (9_999, Online)];
    assert_eq!(names(&db, &presence(Online, &corrections, None)).await, ["off"]);
    assert_eq!(names(&db, &presence(Away, &corrections, None)).await, ["away"]);
    assert_eq!(names(&db, &presence(Offline, &corrections, None)).await, ["online", "banned"]);
    let both = AccountFilter { search: Some("O".into()), ..presence(Offline, &corrections, None) };
    assert_eq!(names(&db, &both).await, ["online"]);
}

/// The store's own bound is the measure: a comparison of each account with each correction takes longer. Past the first few
/// runs a statement may have one plan for all values.
async fn thousands_of_corrections_are_no_burden(db: Db) {
    db.users(20_000).await;
    let corrections: Vec<_> = (5_001..105_001).map(|id| (id, OnlineStatus::Online)).collect();
    let filter = presence(OnlineStatus::Online, &corrections, Some(1_000));
    for _ in 0..8 {
        let page = Page { number: 2, size: 1_000 };
        let list = db.store.list_accounts(&filter, page.into(), &[]).await.unwrap();
        assert_eq!((list.total, list.accounts.len(), list.accounts[0].id), (15_000, 1_000, 6_001));
    }
    let few = presence(OnlineStatus::Online, &corrections[..3], Some(1_000));
    let page = Page { number: 1, size: 10 };
    assert_eq!(db.store.list_accounts(&few, page.into(), &[]).await.unwrap().total, 3);
}

async fn a_mirror_that_is_too_old_counts_as_offline(db: Db) {
    use OnlineStatus::{Offline, Online};
    let (old, fresh) = (db.user("old").await, db.user("fresh").await);
    db.record(0, &[transition(1_000, old, Online), transition(2_000, fresh, Online)]).await.unwrap();
    db.user("never").await;
    assert_eq!(names(&db, &presence(Online, &[], Some(2_000))).await, ["fresh"]);
    assert_eq!(names(&db, &presence(Offline, &[], Some(2_000))).await, ["old", "never"]);
    // What Redis said is no mirror.
    assert_eq!(names(&db, &presence(Online, &[(old, Online)], Some(2_001))).await, ["old"]);
}

async fn a_patch_changes_what_it_names(db: Db) {
    let ada = db.user("ada").await;
    let patch = AccountPatch {
        email: Some("new@example.com".into()),
        role: Some(Role::Admin),
        status: Some(AccountStatus::Suspended),
        is_active: Some(false),
        password_hash: Some(PasswordHash("new hash".into())),
    };
    let account = db.store.update_account(ada, &patch, None).await.unwrap().unwrap();
    assert_eq!((account.email.as_str(), account.role), ("new@example.com", Role::Admin));
    assert_eq!((account.status, account.is_active), (AccountStatus::Suspended, false));
    assert_eq!(db.store.credentials("ada").await.unwrap().unwrap().password_hash.0, "new hash");
    let same = db.store.update_account(ada, &AccountPatch::default(), None).await.unwrap();
    assert_eq!(same, Some(account));
}

async fn a_patch_of_nobody_changes_nothing(db: Db) {
    let patch = AccountPatch { is_active: Some(false), ..AccountPatch::default() };
    for id in [0, -1, 77, i64::MAX] {
        assert_eq!(db.store.update_account(id, &patch, None).await.unwrap(), None);
        assert_eq!(db.store.account(id).await.unwrap(), None);
        assert!(!db.store.delete_account(id, None).await.unwrap());
    }
}

async fn a_deleted_account_takes_sessions_and_history_along(db: Db) {
    let (ada, bob) = (db.user("ada").await, db.user("bob").await);
    let batch = [transition(1_000, ada, OnlineStatus::Online), transition(1_001, bob, OnlineStatus::Online)];
    db.record(0, &batch).await.unwrap();
    db.store.create_session(&super::sessions::session(ada, "a", 1_000)).await.unwrap();
    db.store.create_session(&super::sessions::session(bob, "b", 1_000)).await.unwrap();
    assert!(db.store.delete_account(ada, None).await.unwrap());
    assert!(!db.store.delete_account(ada, None).await.unwrap());
    assert_eq!(db.store.account(ada).await.unwrap(), None);
    assert_eq!(db.history(ada).await.len(), 0);
    assert_eq!(db.history(bob).await.len(), 1);
    assert_eq!(db.texts("SELECT sid FROM login_sessions").await, ["b"]);
    assert_eq!(db.texts("SELECT sid FROM refresh_tokens").await, ["b"]);
    // The same name may come again, and comes as somebody else.
    assert_ne!(db.user("ada").await, ada);
}

async fn ids_are_never_given_twice(db: Db) {
    let first = db.user("first").await;
    db.store.delete_account(first, None).await.unwrap();
    assert!(db.user("second").await > first);
}

async fn many_accounts_are_read_at_once(db: Db) {
    let (ada, bob) = (db.user("ada").await, db.user("bob").await);
    let mut found: Vec<_> = db
        .store
        .accounts(&[bob, 4_242, ada, ada])
        .await
        .unwrap()
        .into_iter()
        .map(|account| account.id)
        .collect();
    found.sort_unstable();
    assert_eq!(found, [ada, bob]);
    assert!(db.store.accounts(&[]).await.unwrap().is_empty());
}
