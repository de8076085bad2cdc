//! The trail of what administrators did: who changed what of whom, from what to what.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::account::{UnknownWord, pick};
use super::{Account, Millis, UserId};

/// An administrator at work.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Actor {
    /// The administrator's account.
    pub user: UserId,
    /// Its username at that time.
    pub username: String,
    /// The address from which the request came, as text.
    pub address: String,
}

/// What an administrator did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Made an account.
    CreateUser,
    /// Changed an account.
    UpdateUser,
    /// Deleted an account.
    DeleteUser,
    /// Set somebody's online status.
    SetOnlineStatus,
    /// Ended one or all of somebody's sessions.
    EndSessions,
}

impl Action {
    /// Every action, in the order in which error messages list them.
    pub const ALL: [Self; 5] =
        [Self::CreateUser, Self::UpdateUser, Self::DeleteUser, Self::SetOnlineStatus, Self::EndSessions];

    /// The word in SQL and JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::CreateUser => "create_user",
            Self::UpdateUser => "update_user",
            Self::DeleteUser => "delete_user",
            Self::SetOnlineStatus => "set_online_status",
            Self::EndSessions => "end_sessions",
        }
    }
}

impl FromStr for Action {
    type Err = UnknownWord;
    fn from_str(word: &str) -> Result<Self, UnknownWord> {
        pick(word, &Self::ALL, Self::as_str)
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One field that changed. A password has neither: that it changed is all that is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// Its name in the contract.
    pub field: String,
    /// What it was; `None` where there was nothing, or nobody may know.
    pub from: Option<String>,
    /// What it is.
    pub to: Option<String>,
}

impl Change {
    /// A change of a field.
    pub fn new(field: &str, from: Option<&str>, to: Option<&str>) -> Self {
        Self { field: field.to_owned(), from: from.map(str::to_owned), to: to.map(str::to_owned) }
    }
}

/// An entry to add to the trail.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Deed {
    /// What was done.
    pub action: Action,
    /// To whose account.
    pub user: UserId,
    /// Its username at that time.
    pub username: String,
    /// What changed by it; may be nothing.
    pub changes: Vec<Change>,
}

/// An entry of the trail.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrailEntry {
    /// Its number; grows.
    pub id: i64,
    /// When, by the database's clock.
    pub at: Millis,
    /// By whom.
    pub actor: Actor,
    /// What.
    pub deed: Deed,
}

impl Deed {
    /// An account made, changed or deleted: whichever of the two states there is says which.
    pub fn of_account(before: Option<&Account>, after: Option<&Account>, new_password: bool) -> Self {
        let action = match (before, after) {
            (None, _) => Action::CreateUser,
            (Some(_), Some(_)) => Action::UpdateUser,
            (Some(_), None) => Action::DeleteUser,
        };
        let (user, username) =
            after.or(before).map_or((0, String::new()), |account| (account.id, account.username.clone()));
        let mut changes: Vec<Change> = FIELDS
            .into_iter()
            .filter_map(|(name, read)| {
                let (from, to) = (before.map(read), after.map(read));
                (from != to).then(|| Change::new(name, from.as_deref(), to.as_deref()))
            })
            .collect();
        if new_password {
            changes.push(Change::new("password", None, None));
        }
        Self { action, user, username, changes }
    }
}

type Read = fn(&Account) -> String;

/// What of an account an administrator can set.
const FIELDS: [(&str, Read); 4] = [
    ("email", |account| account.email.clone()),
    ("role", |account| account.role.as_str().to_owned()),
    ("status", |account| account.status.as_str().to_owned()),
    ("is_active", |account| account.is_active.to_string()),
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{AccountStatus, OnlineStatus, Role};

    fn ada() -> Account {
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

    #[test]
    fn a_deed_says_what_changed_and_nothing_else() {
        let suspended = Account { status: AccountStatus::Suspended, is_active: false, ..ada() };
        let deed = Deed::of_account(Some(&ada()), Some(&suspended), true);
        assert_eq!((deed.action, deed.user, deed.username.as_str()), (Action::UpdateUser, 7, "ada"));
        let expected = [
            Change::new("status", Some("active"), Some("suspended")),
            Change::new("is_active", Some("true"), Some("false")),
            Change::new("password", None, None),
        ];
        assert_eq!(deed.changes, expected);
        assert_eq!(Deed::of_account(Some(&ada()), Some(&ada()), false).changes, []);
    }

    #[test]
    fn an_account_begins_and_ends_with_all_its_fields() {
        let made = Deed::of_account(None, Some(&ada()), false);
        assert_eq!((made.action, made.changes.len()), (Action::CreateUser, 4));
        assert_eq!(made.changes[0], Change::new("email", None, Some("ada@example.com")));
        let gone = Deed::of_account(Some(&ada()), None, false);
        assert_eq!((gone.action, gone.username.as_str()), (Action::DeleteUser, "ada"));
        assert_eq!(gone.changes[1], Change::new("role", Some("user"), None));
    }

    #[test]
    fn the_words_are_read_as_they_are_written() {
        for action in Action::ALL {
            assert_eq!(action.to_string().parse(), Ok(action));
        }
        assert!("CREATE_USER".parse::<Action>().is_err());
    }
}
