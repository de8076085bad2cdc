//! Answers: users and pages as JSON shows them.

use serde::Serialize;

use crate::model::merge::{self, Effective};
use crate::model::{Account, Evidence, Millis, Page, UserId};
use crate::presence::{Listing, User};

/// A user. E-mail, role and status are for the user himself and for administrators.
#[derive(Debug, Serialize)]
pub struct UserJson {
    id: UserId,
    username: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    email: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<&'static str>,
    is_active: bool,
    online_status: &'static str,
    last_seen: Option<Millis>,
    is_online: bool,
}

impl UserJson {
    /// All fields.
    pub fn whole(user: User) -> Self {
        let User { account, presence } = user;
        Self {
            id: account.id,
            username: account.username,
            email: Some(account.email),
            role: Some(account.role.as_str()),
            status: Some(account.status.as_str()),
            is_active: account.is_active,
            online_status: presence.status.as_str(),
            last_seen: presence.last_seen,
            is_online: presence.status.is_online(),
        }
    }

    /// What anybody signed in may see.
    pub fn public(user: User) -> Self {
        Self { email: None, role: None, status: None, ..Self::whole(user) }
    }

    /// All fields of an account about whose presence Redis has just said this.
    pub fn merged(account: Account, evidence: Evidence) -> Self {
        let presence = merge::effective(&account, evidence);
        Self::whole(User { account, presence })
    }
}

/// `{"user": …}`.
#[derive(Debug, Serialize)]
pub struct OneUser {
    user: UserJson,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    degraded: bool,
}

impl OneUser {
    /// A user, and whether SQL alone knew.
    pub const fn new(user: UserJson, degraded: bool) -> Self {
        Self { user, degraded }
    }
}

/// What `online-status/` says.
#[derive(Debug, Serialize)]
pub struct OnlineStatusJson {
    user_id: UserId,
    username: String,
    online_status: &'static str,
    last_seen: Option<Millis>,
    is_online: bool,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    degraded: bool,
}

impl OnlineStatusJson {
    /// A user's status, and whether SQL alone knew.
    pub fn new(user: User, degraded: bool) -> Self {
        let Effective { status, last_seen } = user.presence;
        Self {
            user_id: user.account.id,
            username: user.account.username,
            online_status: status.as_str(),
            last_seen,
            is_online: status.is_online(),
            degraded,
        }
    }
}

/// Where a page lies in its list.
#[derive(Debug, Serialize)]
pub struct Pagination {
    page: u32,
    per_page: u32,
    total: i64,
    total_pages: i64,
}

impl Pagination {
    /// Of a page, where so many items match on all pages.
    pub fn new(page: Page, total: i64) -> Self {
        Self { page: page.number, per_page: page.size, total, total_pages: page.count(total) }
    }
}

/// One page of users, under the name that its call gives them.
#[derive(Debug, Serialize)]
pub struct UserPage {
    #[serde(skip_serializing_if = "Option::is_none")]
    results: Option<Vec<UserJson>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    online_users: Option<Vec<UserJson>>,
    online_count: i64,
    pagination: Pagination,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    degraded: bool,
}

impl UserPage {
    /// `{"results": […], …}`.
    pub fn results(listing: Listing, page: Page, degraded: bool, show: fn(User) -> UserJson) -> Self {
        let (users, mut page) = Self::split(listing, page, degraded, show);
        page.results = Some(users);
        page
    }

    /// `{"online_users": […], …}`.
    pub fn online(listing: Listing, page: Page, degraded: bool) -> Self {
        let (users, mut page) = Self::split(listing, page, degraded, UserJson::whole);
        page.online_users = Some(users);
        page
    }

    fn split(
        listing: Listing,
        page: Page,
        degraded: bool,
        show: fn(User) -> UserJson,
    ) -> (Vec<UserJson>, Self) {
        let Listing { users, total, online_count } = listing;
        let pagination = Pagination::new(page, total);
        let users = users.into_iter().map(show).collect();
        (users, Self { results: None, online_users: None, online_count, pagination, degraded })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::model::{AccountStatus, OnlineStatus, Presence, Role};

    fn account() -> Account {
        Account {
            id: 7,
            username: "ada".into(),
            email: "ada@example.com".into(),
            role: Role::User,
            status: AccountStatus::Active,
            is_active: true,
            mirror: OnlineStatus::Offline,
            last_seen: None,
        }
    }

    fn user() -> User {
        let presence = Effective { status: OnlineStatus::Away, last_seen: Some(Millis(1_768_473_000_120)) };
        User { account: account(), presence }
    }

    #[test]
    fn a_user_has_the_fields_of_the_contract() {
        let whole = json!({
            "id": 7, "username": "ada", "email": "ada@example.com", "role": "user", "status": "active",
            "is_active": true, "online_status": "away", "last_seen": "2026-01-15T10:30:00.120Z", "is_online": true,
        });
        let answer = serde_json::to_value(OneUser::new(UserJson::whole(user()), false)).unwrap();
        assert_eq!(answer, json!({"user": whole}));
        let answer = serde_json::to_value(OneUser::new(UserJson::whole(user()), true)).unwrap();
        assert_eq!(answer, json!({"user": whole, "degraded": true}));
    }

    #[test]
    fn the_public_view_leaves_out_what_is_private() {
        let answer = serde_json::to_value(UserJson::public(user())).unwrap();
        let keys: Vec<_> = answer.as_object().unwrap().keys().cloned().collect();
        assert_eq!(keys, ["id", "is_active", "is_online", "last_seen", "online_status", "username"]);
    }

    #[test]
    fn somebody_never_seen_has_no_last_seen() {
        let answer = serde_json::to_value(UserJson::merged(account(), Evidence::Live(None))).unwrap();
        assert_eq!((&answer["last_seen"], &answer["is_online"]), (&json!(null), &json!(false)));
        let presence = Presence { status: OnlineStatus::Online, last_seen: Millis(0) };
        let answer =
            serde_json::to_value(UserJson::merged(account(), Evidence::Live(Some(presence)))).unwrap();
        assert_eq!(
            (&answer["last_seen"], &answer["is_online"]),
            (&json!("1970-01-01T00:00:00.000Z"), &json!(true))
        );
    }

    #[test]
    fn a_page_says_where_it_lies() {
        let listing = || Listing { users: vec![user()], total: 51, online_count: 9 };
        let page = Page { number: 2, size: 50 };
        let pagination = json!({"page": 2, "per_page": 50, "total": 51, "total_pages": 2});
        let answer =
            serde_json::to_value(UserPage::results(listing(), page, false, UserJson::public)).unwrap();
        assert_eq!((&answer["pagination"], &answer["online_count"]), (&pagination, &json!(9)));
        assert_eq!((&answer["results"][0]["id"], answer.as_object().unwrap().len()), (&json!(7), 3));
        let answer = serde_json::to_value(UserPage::online(listing(), page, true)).unwrap();
        assert_eq!((&answer["online_users"][0]["role"], &answer["degraded"]), (&json!("user"), &json!(true)));
    }

    #[test]
    fn an_online_status_has_the_fields_of_the_contract() {
        let answer = serde_json::to_value(OnlineStatusJson::new(user(), false)).unwrap();
        assert_eq!(
            answer,
            json!({
                "user_id": 7, "username": "ada", "online_status": "away",
                "last_seen": "2026-01-15T10:30:00.120Z", "is_online": true,
            })
        );
    }
}
