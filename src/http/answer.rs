//! Answers: users and pages as JSON shows them.

use serde::{Serialize, Serializer};

use super::cursor::Cursor;
use crate::model::merge::{self, Effective};
use crate::model::{Account, Evidence, Millis, Page, Place, UserId};
use crate::presence::{Listing, Reading, User};

/// How much of a user is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum View {
    /// What anybody signed in may see: without e-mail, role and status.
    Public,
    /// All fields: for the user himself and for administrators.
    Whole,
}

/// A user. E-mail, role and status are for the user himself and for administrators.
#[derive(Debug)]
pub struct UserJson {
    user: User,
    view: View,
}

/// The fields, as they go out.
#[derive(Serialize)]
struct UserFields<'a> {
    id: UserId,
    username: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    email: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<&'static str>,
    is_active: bool,
    online_status: &'static str,
    last_seen: Option<Millis>,
    is_online: bool,
}

impl<'a> UserFields<'a> {
    fn of(User { account, presence }: &'a User, view: View) -> Self {
        let private = view == View::Whole;
        Self {
            id: account.id,
            username: &account.username,
            email: private.then_some(account.email.as_str()),
            role: private.then_some(account.role.as_str()),
            status: private.then_some(account.status.as_str()),
            is_active: account.is_active,
            online_status: presence.status.as_str(),
            last_seen: presence.last_seen,
            is_online: presence.status.is_online(),
        }
    }
}

impl Serialize for UserJson {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        UserFields::of(&self.user, self.view).serialize(serializer)
    }
}

impl UserJson {
    /// All fields.
    pub const fn whole(user: User) -> Self {
        Self { user, view: View::Whole }
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

/// Where a part of a list of users lies.
#[derive(Debug, Serialize)]
struct ListPagination {
    /// `null` behind a cursor: its page has no number.
    page: Option<u32>,
    per_page: u32,
    total: i64,
    total_pages: i64,
    next_cursor: Option<String>,
}

/// What a list of users is called in its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ListName {
    /// `{"results": […], …}`
    Results,
    /// `{"online_users": […], …}`
    OnlineUsers,
}

/// One part of a list of users; written straight from what the list was read into.
#[derive(Serialize)]
pub struct UserPage<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    results: Option<Users<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    online_users: Option<Users<'a>>,
    online_count: i64,
    pagination: ListPagination,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    degraded: bool,
}

#[derive(Clone, Copy)]
struct Users<'a> {
    users: &'a [User],
    view: View,
}

impl Serialize for Users<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.users.iter().map(|user| UserFields::of(user, self.view)))
    }
}

impl<'a> UserPage<'a> {
    /// The part of a list that was asked for.
    pub fn new<C: Cursor>(
        name: ListName,
        reading: &'a Reading<Listing<C>>,
        place: &Place<C>,
        view: View,
    ) -> Self {
        let Reading { value: Listing { users, total, online_count, next, .. }, degraded } = reading;
        let (number, page) = match place {
            Place::Page(page) => (Some(page.number), *page),
            Place::After(_, size) => (None, Page { number: 1, size: *size }),
        };
        let pagination = ListPagination {
            page: number,
            per_page: page.size,
            total: *total,
            total_pages: page.count(*total),
            next_cursor: next.as_ref().map(Cursor::write),
        };
        let users = Some(Users { users, view });
        let (results, online_users) = match name {
            ListName::Results => (users, None),
            ListName::OnlineUsers => (None, users),
        };
        Self { results, online_users, online_count: *online_count, pagination, degraded: *degraded }
    }

    /// Its JSON.
    ///
    /// # Errors
    /// None that is known: all of it is numbers and text.
    pub fn to_bytes(&self) -> serde_json::Result<Vec<u8>> {
        /// Bytes that a user takes, names and addresses of some length included.
        const A_USER: usize = 256;
        let users = self.results.or(self.online_users).map_or(0, |users| users.users.len());
        let mut bytes = Vec::with_capacity((users + 1) * A_USER);
        serde_json::to_writer(&mut bytes, self)?;
        Ok(bytes)
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
        let answer = serde_json::to_value(UserJson { user: user(), view: View::Public }).unwrap();
        let keys: Vec<_> = answer.as_object().unwrap().keys().cloned().collect();
        assert_eq!(keys, ["id", "is_active", "is_online", "last_seen", "online_status", "username"]);
    }

    #[test]
    fn somebody_never_seen_has_no_last_seen() {
        let answer = serde_json::to_value(UserJson::merged(account(), Evidence::NEVER_PRESENT)).unwrap();
        assert_eq!((&answer["last_seen"], &answer["is_online"]), (&json!(null), &json!(false)));
        let presence = Presence { status: OnlineStatus::Online, last_seen: Some(Millis(0)) };
        let answer = serde_json::to_value(UserJson::merged(
            account(),
            Evidence::Live { now: Millis(0), presence: Some(presence) },
        ))
        .unwrap();
        assert_eq!(
            (&answer["last_seen"], &answer["is_online"]),
            (&json!("1970-01-01T00:00:00.000Z"), &json!(true))
        );
    }

    #[test]
    fn a_page_says_where_it_lies() {
        let listing =
            |next| Listing { users: vec![user()], total: 51, online_count: 9, next, askers: vec![] };
        let place = Page { number: 2, size: 50 }.into();
        let reading = Reading { value: listing(None::<UserId>), degraded: false };
        let page = UserPage::new(ListName::Results, &reading, &place, View::Public);
        let answer: serde_json::Value = serde_json::from_slice(&page.to_bytes().unwrap()).unwrap();
        let pagination =
            json!({"page": 2, "per_page": 50, "total": 51, "total_pages": 2, "next_cursor": null});
        assert_eq!((&answer["pagination"], &answer["online_count"]), (&pagination, &json!(9)));
        assert_eq!((&answer["results"][0]["id"], answer.as_object().unwrap().len()), (&json!(7), 3));
        assert!(answer["results"][0].get("role").is_none());
        let reading = Reading { value: listing(Some(7)), degraded: true };
        let page = UserPage::new(ListName::OnlineUsers, &reading, &Place::After(3, 20), View::Whole);
        let answer = serde_json::to_value(page).unwrap();
        let cursor = 7.write();
        let pagination =
            json!({"page": null, "per_page": 20, "total": 51, "total_pages": 3, "next_cursor": cursor});
        assert_eq!(answer["pagination"], pagination);
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
