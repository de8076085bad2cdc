//! Login names: what both databases share, without a statement.
//!
//! `login_names` holds the key of each account's username and e-mail address ([`crate::model::login_name`]); at most one
//! row of each key *holds* it, so a login name means one account. Triggers keep the keys of ASCII names, which the database
//! can compute; the accounts of all others are marked in `login_names_missing`, and the service computes their keys.

use std::collections::BTreeMap;
use std::fmt;

use super::rows::CredentialsRow;
use super::{Credentials, Result};
use crate::model::UserId;
use crate::model::login_name::{KeyOf, NameKey, is_plain, keys};

/// Accounts whose keys are completed in one transaction.
pub const NAMES_AT_ONCE: u32 = 500;
/// Marked accounts that a login looks at: as many as plain SQL may add before the service has completed them.
pub(super) const MARKED_LOOKED_AT: i64 = 100;

/// An account of which another has the same login name, so that it cannot sign in by it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NameClash {
    /// The account.
    pub user: UserId,
    /// Its username and e-mail address.
    pub names: (String, String),
    /// Whether the shared name is the username; else it is the e-mail address alone.
    pub of_username: bool,
    /// The account that a login by the name means; `None` where that has gone meanwhile.
    pub holder: Option<Holder>,
}

/// The account that holds a login name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// The account.
    pub user: UserId,
    /// Its username and e-mail address.
    pub names: (String, String),
    /// Whether the shared name is the username; else it is the e-mail address alone.
    pub of_username: bool,
}

/// The kind of a name and its text, escaped: it comes from outside and goes to a terminal.
struct Shown<'a>(bool, &'a (String, String));

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(of_username, (username, email)) = self;
        match of_username {
            true => write!(f, "username '{}'", username.escape_debug()),
            false => write!(f, "e-mail address '{}'", email.escape_debug()),
        }
    }
}

impl fmt::Display for NameClash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "account {} has the {}, ", self.user, Shown(self.of_username, &self.names))?;
        match &self.holder {
            Some(holder) => write!(
                f,
                "which is the same login name as the {} of account {}: a login by it means account {}",
                Shown(holder.of_username, &holder.names),
                holder.user,
                holder.user
            ),
            None => f.write_str("which another account had when it was compared"),
        }
    }
}

/// What SQL holds of an account's login names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamesInSql {
    /// The account.
    pub user: UserId,
    /// Its username.
    pub username: String,
    /// Its e-mail address.
    pub email: String,
    /// Its keys, in their order.
    pub keys: Vec<(String, bool, bool)>,
    /// Whether it is marked: its keys are still to be computed.
    pub is_marked: bool,
}

impl NamesInSql {
    /// Whether the keys are those of the names, or soon will be.
    pub fn are_right(&self) -> bool {
        let mut right: Vec<_> = keys(&self.username, &self.email)
            .into_iter()
            .map(|KeyOf { key, of_username, of_email }| (key.as_str().to_owned(), of_username, of_email))
            .collect();
        right.sort_unstable();
        self.is_marked || right == self.keys
    }
}

/// A row of the list of accounts with their keys: account, username, e-mail address, marked, key, whose key.
pub(super) type NameRow = (UserId, String, String, bool, Option<String>, bool, bool);

/// The rows of each account put together.
pub(super) fn by_account(rows: Vec<NameRow>) -> Vec<NamesInSql> {
    let mut accounts: BTreeMap<UserId, NamesInSql> = BTreeMap::new();
    for (user, username, email, is_marked, key, of_username, of_email) in rows {
        let account = accounts.entry(user).or_insert_with(|| NamesInSql {
            user,
            username,
            email,
            keys: Vec::new(),
            is_marked,
        });
        account.keys.extend(key.map(|key| (key, of_username, of_email)));
    }
    let mut accounts: Vec<_> = accounts.into_values().collect();
    for account in &mut accounts {
        account.keys.sort_unstable();
    }
    accounts
}

/// A row of the list of clashes: the account, its names, whose key; the same of the holder.
pub(super) type ClashRow =
    (UserId, String, String, bool, Option<UserId>, Option<String>, Option<String>, Option<bool>);

/// The clash that a row tells.
pub(super) fn clash(row: ClashRow) -> NameClash {
    let (user, username, email, of_username, holder, held_username, held_email, held_as_username) = row;
    let holder = holder.map(|user| Holder {
        user,
        names: (held_username.unwrap_or_default(), held_email.unwrap_or_default()),
        of_username: held_as_username.unwrap_or_default(),
    });
    NameClash { user, names: (username, email), of_username, holder }
}

/// An account that may be the one of a login.
#[derive(sqlx::FromRow)]
pub(super) struct Candidate {
    /// 0: it holds the key. 1: it has the key, and no account holds it. 2: its keys are not known yet.
    rank: i32,
    #[sqlx(flatten)]
    row: CredentialsRow,
}

/// The account that a login means: the holder of the key; else the oldest that has it.
pub(super) fn choose(candidates: Vec<Candidate>, key: &NameKey) -> Result<Option<Credentials>> {
    let mut found = Vec::with_capacity(1);
    for Candidate { rank, row } in candidates {
        let credentials = Credentials::try_from(row)?;
        let account = &credentials.account;
        let has_it = || keys(&account.username, &account.email).iter().any(|own| own.key == *key);
        if rank < 2 || has_it() {
            found.push((rank, account.id, credentials));
        }
    }
    Ok(found.into_iter().min_by_key(|(rank, id, _)| (*rank, *id)).map(|(.., credentials)| credentials))
}

/// Keys to write: a list each of accounts, keys, whether of the username, whether of the e-mail address; in the order of
/// keys, in which two transactions that want the same keys do not wait for each other in a circle.
#[derive(Debug, Default)]
pub(super) struct KeyRows {
    pub(super) users: Vec<UserId>,
    pub(super) keys: Vec<String>,
    pub(super) of_username: Vec<bool>,
    pub(super) of_email: Vec<bool>,
    /// Whether the account is from before the keys, and takes them from a younger one.
    pub(super) is_older: Vec<bool>,
}

impl KeyRows {
    /// All keys of these accounts.
    pub(super) fn all<'a>(accounts: impl IntoIterator<Item = (UserId, &'a str, &'a str, bool)>) -> Self {
        Self::collect(accounts.into_iter().flat_map(|(user, username, email, is_older)| {
            keys(username, email).into_iter().map(move |key| (key, user, is_older))
        }))
    }

    /// The keys of these accounts that the triggers could not compute.
    pub(super) fn not_plain<'a>(accounts: impl IntoIterator<Item = (UserId, &'a str, &'a str)>) -> Self {
        Self::collect(accounts.into_iter().flat_map(|(user, username, email)| {
            let plain = (is_plain(username), is_plain(email));
            keys(username, email).into_iter().filter_map(move |mut own| {
                own.of_username &= !plain.0;
                own.of_email &= !plain.1;
                (own.of_username || own.of_email).then_some((own, user, false))
            })
        }))
    }

    fn collect(rows: impl Iterator<Item = (KeyOf, UserId, bool)>) -> Self {
        let mut rows: Vec<_> = rows.collect();
        rows.sort_unstable();
        let mut collected = Self::default();
        for (KeyOf { key, of_username, of_email }, user, is_older) in rows {
            collected.users.push(user);
            collected.keys.push(key.as_str().to_owned());
            collected.of_username.push(of_username);
            collected.of_email.push(of_email);
            collected.is_older.push(is_older);
        }
        collected
    }

    pub(super) fn is_empty(&self) -> bool {
        self.users.is_empty()
    }
}

/// Which field of an account is taken, given the keys among its own that other accounts hold; `None` where none is.
pub(super) fn taken_field(username: &str, email: &str, held: &[String]) -> Option<&'static str> {
    let is_held =
        |name: &str| NameKey::of(name).is_some_and(|key| held.iter().any(|held| held == key.as_str()));
    if is_held(username) {
        Some("username")
    } else if is_held(email) {
        Some("email")
    } else {
        None
    }
}
