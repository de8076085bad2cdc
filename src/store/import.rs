//! Accounts that come in by the hundred thousand: what is asked, what is told, and how an account that is there already is
//! told from one that is in the way. The part that both databases share, without a statement.

use std::collections::HashMap;
use std::fmt;

use super::PasswordHash;
use crate::model::login_name::{NameKey, are_equal};
use crate::model::{AccountStatus, Millis, Role, UserId};

/// Rows in one statement.
pub(super) const CHUNK: usize = 2_000;

/// An account to bring in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImportRow {
    /// Its id, where it is to keep one.
    pub id: Option<UserId>,
    /// Its name.
    pub username: String,
    /// Its e-mail address.
    pub email: String,
    /// The hash of its password, as it is.
    pub password_hash: PasswordHash,
    /// What it may do.
    pub role: Role,
    /// Its standing.
    pub status: AccountStatus,
    /// The second switch of the account rule.
    pub is_active: bool,
    /// When it was made; now, where nothing is said.
    pub created_at: Option<Millis>,
}

/// What became of a row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Imported {
    /// The account is new; its id, where that is known (a dry run gives none out).
    Added(Option<UserId>),
    /// The account is there already, with this id; nothing of it was changed. Whether its password is the same.
    Unchanged(UserId, bool),
    /// Other accounts are in the way.
    Refused(Vec<Clash>),
}

/// An account that is in the way of a row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Clash {
    /// Which of the row's fields.
    pub field: &'static str,
    /// What it is of that account.
    pub is_its: &'static str,
    /// That account.
    pub of: UserId,
}

/// Reads on from "row 5: ".
impl fmt::Display for Clash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { field, is_its, of } = self;
        let what = if field == is_its { "that" } else { *is_its };
        write!(f, "{field} is {what} of account {of} already: give the row another, or leave it out")
    }
}

/// An account that shares something with a row: the row's index, what of it, what of the account, and the account.
pub(super) type Met = (i64, String, UserId, String, String, String);

/// The kinds of meeting: the word in [`Met`], the row's field, and what that is of the account.
const KINDS: [(&str, &str, &str); 5] = [
    ("id", "id", "id"),
    ("username", "username", "username"),
    ("email", "email", "email"),
    ("name_as_address", "username", "email"),
    ("address_as_name", "email", "username"),
];

/// What becomes of the rows of a chunk, given every account that they meet.
pub(super) fn judge(rows: &[ImportRow], met: &[Met]) -> Vec<Imported> {
    let mut verdicts = vec![Imported::Added(None); rows.len()];
    for (index, kind, id, username, email, hash) in met {
        let Some(row) = usize::try_from(*index).ok().and_then(|index| rows.get(index)) else { continue };
        let verdict = &mut verdicts[usize::try_from(*index).unwrap_or_default()];
        let has_names = are_equal(&row.username, username) && are_equal(&row.email, email);
        if row.id.is_none_or(|own| own == *id) && has_names {
            *verdict = Imported::Unchanged(*id, row.password_hash.0 == *hash);
            continue;
        }
        let Some((_, field, is_its)) = KINDS.iter().find(|(word, ..)| word == kind) else { continue };
        let clash = Clash { field, is_its, of: *id };
        match verdict {
            Imported::Unchanged(..) => {}
            Imported::Refused(clashes) => clashes.push(clash),
            Imported::Added(_) => *verdict = Imported::Refused(vec![clash]),
        }
    }
    verdicts
}

/// Whether all rows may come in.
pub(super) fn all_may(verdicts: &[Imported]) -> bool {
    !verdicts.iter().any(|verdict| matches!(verdict, Imported::Refused(_)))
}

/// The rows that are new, by index: first those that bring an id, so that no id which is given out is one of theirs.
pub(super) fn new_rows(rows: &[ImportRow], verdicts: &[Imported]) -> (Vec<usize>, Vec<usize>) {
    let new = (0..rows.len()).filter(|index| matches!(verdicts[*index], Imported::Added(_)));
    new.partition(|index| rows[*index].id.is_some())
}

/// The keys of a row's username and e-mail address.
pub(super) fn row_keys(row: &ImportRow) -> (Option<String>, Option<String>) {
    let key = |name: &str| NameKey::of(name).map(|key| key.as_str().to_owned());
    (key(&row.username), key(&row.email))
}

/// The rows that were added, with the ids that were given: id, username, e-mail address.
pub(super) fn named_rows<'a>(
    rows: &'a [ImportRow],
    indices: &[usize],
    given: &[(UserId, String)],
) -> Vec<(UserId, &'a str, &'a str)> {
    let by_name: HashMap<&str, &ImportRow> =
        indices.iter().map(|index| (rows[*index].username.as_str(), &rows[*index])).collect();
    let named = given.iter().filter_map(|(id, username)| {
        let row = by_name.get(username.as_str())?;
        Some((*id, row.username.as_str(), row.email.as_str()))
    });
    named.collect()
}

/// Notes the ids that were given, by name.
pub(super) fn note_ids(
    verdicts: &mut [Imported],
    rows: &[ImportRow],
    indices: &[usize],
    given: Vec<(UserId, String)>,
) {
    let given: HashMap<String, UserId> = given.into_iter().map(|(id, username)| (username, id)).collect();
    for index in indices {
        verdicts[*index] = Imported::Added(given.get(&rows[*index].username).copied());
    }
}
