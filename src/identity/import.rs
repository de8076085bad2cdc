//! Accounts of an existing product, brought in with their password hashes.
//!
//! Decides what may come in. Equality of names is that of all accounts ([`crate::model::login_name`]). A username may hold
//! more than a new one: it stays as the product has it, without invisible characters, and may hold an '@', which Django
//! allows and which is harmless as long as the name is nobody else's e-mail address. A file is looked at as a whole, so that every complaint
//! about every row is heard at once.

use std::collections::HashMap;
use std::fmt;

use chrono::{DateTime, NaiveDateTime};

use super::password::{Passwords, Unreadable};
use super::{FieldErrors, Identity, Result};
use crate::model::login_name::NameKey;
use crate::model::{AccountStatus, Millis, Role, UserId};
use crate::store::{ImportRow, Imported, PasswordHash};

/// The largest id that is taken: JSON's numbers are exact so far, and the next accounts need ids behind it.
const MAX_ID: UserId = (1 << 53) - 1;

/// What is kept for an account without a password: Django's mark of one that nobody knows.
const UNUSABLE: &str = "!";

/// What a row may say of an account.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Column {
    /// Its id.
    Id,
    /// Its name.
    Username,
    /// Its e-mail address.
    Email,
    /// The hash of its password, as Django stores it.
    Password,
    /// `user` or `admin`.
    Role,
    /// A word of [`AccountStatus`].
    Status,
    /// Whether it may be present at all.
    IsActive,
    /// Django's: makes an administrator.
    IsStaff,
    /// Django's: makes an administrator.
    IsSuperuser,
    /// When it was made.
    DateJoined,
}

impl Column {
    /// All of them, by the names that files give them.
    pub const NAMED: [(&'static str, Self); 10] = [
        ("id", Self::Id),
        ("username", Self::Username),
        ("email", Self::Email),
        ("password", Self::Password),
        ("role", Self::Role),
        ("status", Self::Status),
        ("is_active", Self::IsActive),
        ("is_staff", Self::IsStaff),
        ("is_superuser", Self::IsSuperuser),
        ("date_joined", Self::DateJoined),
    ];
}

/// A row as the file has it.
#[derive(Clone)]
pub struct Candidate {
    /// Where it stands, for the report.
    pub place: String,
    fields: [Option<String>; Column::NAMED.len()],
    complaints: Vec<String>,
}

impl fmt::Debug for Candidate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Candidate").field("place", &self.place).finish_non_exhaustive()
    }
}

impl Candidate {
    /// A row that says nothing yet.
    pub fn new(place: String) -> Self {
        Self { place, fields: Default::default(), complaints: Vec::new() }
    }

    /// Notes what the row says. An empty text says nothing.
    pub fn set(&mut self, column: Column, text: String) {
        self.fields[column as usize] = Some(text).filter(|text| !text.is_empty());
    }

    /// Notes what is wrong with the row before anything of it is looked at.
    pub fn complain(&mut self, about: String) {
        self.complaints.push(about);
    }

    fn take(&mut self, column: Column) -> Option<String> {
        self.fields[column as usize].take()
    }

    /// The row as an account, and what is wrong with it.
    fn read(mut self) -> (ImportRow, Vec<String>) {
        let mut errors = FieldErrors::default();
        let username = self.take(Column::Username).unwrap_or_default();
        let email = self.take(Column::Email).unwrap_or_default();
        // Whose the address is, if it is one, the whole file and the database must say.
        errors.existing_username(&username, if username.contains('@') { &username } else { &email });
        errors.email(&email);
        let id = self.take(Column::Id).and_then(|text| {
            let id = text.parse::<UserId>().ok().filter(|id| (1..=MAX_ID).contains(id));
            if id.is_none() {
                errors.add("id", format!("must be a whole number from 1 to {MAX_ID}"));
            }
            id
        });
        let password_hash = PasswordHash(self.take(Column::Password).unwrap_or_else(|| UNUSABLE.to_owned()));
        match Passwords::can_read(&password_hash) {
            Ok(()) | Err(Unreadable::Unusable) => {}
            Err(reason) => errors.add(
                "password",
                format!(
                    "cannot be used, for {reason}: leave it empty, and set a new one for the account later"
                ),
            ),
        }
        let mut switch = |column, name: &str| {
            let text = self.fields[column as usize].take()?;
            let read = match text.to_lowercase().as_str() {
                "true" | "t" | "1" | "yes" => Some(true),
                "false" | "f" | "0" | "no" => Some(false),
                _ => None,
            };
            if read.is_none() {
                errors.add(name, "must be true or false");
            }
            read
        };
        let is_active = switch(Column::IsActive, "is_active").unwrap_or(true);
        let is_staff = switch(Column::IsStaff, "is_staff").unwrap_or(false);
        let is_superuser = switch(Column::IsSuperuser, "is_superuser").unwrap_or(false);
        let role = match self.take(Column::Role) {
            Some(word) => errors.word("role", &word),
            None => Some(if is_staff || is_superuser { Role::Admin } else { Role::User }),
        };
        let status = match self.take(Column::Status) {
            Some(word) => errors.word("status", &word),
            None => Some(AccountStatus::Active),
        };
        let created_at = self.take(Column::DateJoined).and_then(|text| {
            let at = instant(&text);
            if at.is_none() {
                errors.add("date_joined", "must be a time such as 2024-01-31T12:00:00Z, or empty");
            }
            at
        });
        let mut complaints = self.complaints;
        // What cannot be read as a row at all lacks everything, which need not be said of each field.
        if complaints.is_empty() {
            let texts = |(field, texts): (String, Vec<String>)| {
                texts.into_iter().map(move |text| format!("{field} {text}"))
            };
            complaints.extend(errors.0.into_iter().flat_map(texts));
        }
        let row = ImportRow {
            id,
            username,
            email,
            password_hash,
            role: role.unwrap_or(Role::User),
            status: status.unwrap_or(AccountStatus::Active),
            is_active,
            created_at,
        };
        (row, complaints)
    }
}

/// RFC 3339, or as Django and PostgreSQL write it; UTC where no zone is given.
fn instant(text: &str) -> Option<Millis> {
    let zoned = ["%Y-%m-%d %H:%M:%S%.f%:z", "%Y-%m-%d %H:%M:%S%.f%#z", "%Y-%m-%dT%H:%M:%S%.f%#z"];
    let plain = ["%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%dT%H:%M:%S%.f"];
    let zoned = zoned.iter().find_map(|form| DateTime::parse_from_str(text, form).ok());
    let zoned = zoned.or_else(|| DateTime::parse_from_rfc3339(text).ok()).map(|at| at.to_utc());
    let plain = || plain.iter().find_map(|form| NaiveDateTime::parse_from_str(text, form).ok());
    zoned.or_else(|| plain().map(|at| at.and_utc())).map(Millis::from_utc)
}

/// What became of one row of an import, in words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fate {
    /// It came in, or would in earnest.
    Added(String),
    /// It was there already.
    Unchanged(String),
    /// It may not come in: every reason, with what to do.
    Refused(Vec<String>),
}

impl Identity {
    /// Brings accounts in: all, or none where one is refused, or where it is a dry run. What became of each, with its place,
    /// in order. Nobody's password is changed.
    ///
    /// # Errors
    /// [`super::IdentityError::Taken`] where somebody added one of them meanwhile, [`super::IdentityError::Store`].
    pub async fn import(&self, candidates: Vec<Candidate>, dry_run: bool) -> Result<Vec<(String, Fate)>> {
        let places: Vec<String> = candidates.iter().map(|candidate| candidate.place.clone()).collect();
        let (rows, mut complaints): (Vec<ImportRow>, Vec<Vec<String>>) =
            candidates.into_iter().map(Candidate::read).unzip();
        clashes_within(&rows, &places, &mut complaints);

        let refused_here = complaints.iter().any(|complaints| !complaints.is_empty());
        // A clash is found by the keys, and accounts that plain SQL has added may still lack theirs.
        self.complete_login_names().await?;
        // What is refused here is asked about all the same, so that everything is said at once.
        let verdicts = self.inner.store.import_accounts(&rows, dry_run || refused_here).await?;
        let fates = rows.iter().zip(verdicts).zip(complaints).map(|((row, verdict), mut complaints)| {
            let name = &row.username;
            match verdict {
                Imported::Refused(clashes) => complaints.extend(clashes.iter().map(ToString::to_string)),
                Imported::Added(id) if complaints.is_empty() => {
                    let id = id.or(row.id).map_or_else(String::new, |id| format!(" as account {id}"));
                    return Fate::Added(format!("{name}{id}"));
                }
                Imported::Unchanged(id, same_password) if complaints.is_empty() => {
                    let kept = if same_password { "" } else { ", with another password, which stays" };
                    return Fate::Unchanged(format!("{name} is there already as account {id}{kept}"));
                }
                Imported::Added(_) | Imported::Unchanged(..) => {}
            }
            Fate::Refused(complaints)
        });
        Ok(places.into_iter().zip(fates).collect())
    }
}

/// Complains where two rows of the file want the same.
fn clashes_within(rows: &[ImportRow], places: &[String], complaints: &mut [Vec<String>]) {
    let mut ids: HashMap<UserId, usize> = HashMap::new();
    let mut names: HashMap<NameKey, usize> = HashMap::with_capacity(rows.len());
    let mut addresses: HashMap<NameKey, usize> = HashMap::with_capacity(rows.len());
    let mut complain = |index: usize, what: &str, other: usize| {
        complaints[index].push(format!(
            "{what} of {}: give each a value of its own, or leave one of the rows out",
            places[other]
        ));
    };
    for (index, row) in rows.iter().enumerate() {
        if let Some(other) = row.id.and_then(|id| ids.insert(id, index)) {
            complain(index, "id is that", other);
        }
        if let Some(other) = NameKey::of(&row.username).and_then(|key| names.insert(key, index)) {
            complain(index, "username is that", other);
        }
        if let Some(other) = NameKey::of(&row.email).and_then(|key| addresses.insert(key, index)) {
            complain(index, "email is that", other);
        }
    }
    for (index, row) in rows.iter().enumerate() {
        let key = NameKey::of(&row.username);
        if let Some(other) = key.and_then(|key| addresses.get(&key)).filter(|other| **other != index) {
            complain(index, "username is the e-mail address", *other);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::stage::identity;
    use super::*;

    fn candidate(place: &str, fields: &[(Column, &str)]) -> Candidate {
        let mut candidate = Candidate::new(place.into());
        for (column, text) in fields {
            candidate.set(*column, (*text).to_owned());
        }
        candidate
    }

    fn named(name: &str) -> Candidate {
        let email = format!("{name}@example.com");
        candidate(name, &[(Column::Username, name), (Column::Email, &email)])
    }

    #[test]
    fn times_are_read_as_django_and_postgresql_write_them() {
        let at = Some(Millis(1_706_702_400_500));
        for text in [
            "2024-01-31T12:00:00.5Z",
            "2024-01-31T13:00:00.500+01:00",
            "2024-01-31 12:00:00.500000+00",
            "2024-01-31 12:00:00.500000+00:00",
            "2024-01-31 12:00:00.500",
        ] {
            assert_eq!(instant(text), at, "{text}");
        }
        assert_eq!(instant("yesterday"), None);
    }

    #[tokio::test]
    async fn every_complaint_about_every_row_is_heard_at_once_and_nothing_comes_in() {
        let identity = identity().await;
        let bad = candidate(
            "line 3",
            &[
                (Column::Id, "0"),
                (Column::Username, "bob "),
                (Column::Email, "bob"),
                (Column::Password, "md5$salt$hash"),
                (Column::Role, "king"),
                (Column::Status, "gone"),
                (Column::IsActive, "maybe"),
                (Column::DateJoined, "yesterday"),
            ],
        );
        let fates = identity.import(vec![named("ada"), bad, named("ADA")], false).await.unwrap();
        assert!(matches!(&fates[0].1, Fate::Added(name) if name == "ada"), "{fates:?}");
        let Fate::Refused(complaints) = &fates[1].1 else { panic!("{fates:?}") };
        assert_eq!(complaints.len(), 8, "{complaints:?}");
        assert!(!format!("{complaints:?}").contains("salt"), "no hash is shown: {complaints:?}");
        let Fate::Refused(complaints) = &fates[2].1 else { panic!("{fates:?}") };
        assert_eq!(complaints.len(), 2, "{complaints:?}");
        assert!(complaints[0].starts_with("username is that of ada"), "{complaints:?}");
        assert_eq!(identity.account(1).await.unwrap(), None);
    }

    #[tokio::test]
    async fn a_name_that_looks_like_an_address_comes_in_unless_it_is_another_s() {
        let identity = identity().await;
        let own =
            |name: &str, email: &str| candidate(name, &[(Column::Username, name), (Column::Email, email)]);
        let rows = || vec![own("ada@work", "ada@home"), own("bob", "bob@home")];
        assert!(
            identity
                .import(rows(), false)
                .await
                .unwrap()
                .iter()
                .all(|(_, fate)| matches!(fate, Fate::Added(_)))
        );
        let again = identity.import(rows(), false).await.unwrap();
        assert!(again.iter().all(|(_, fate)| matches!(fate, Fate::Unchanged(_))), "{again:?}");
        for (rows, must_say) in [
            (
                vec![own("eve@home", "eve@work"), own("eva", "EVE@home")],
                "username is the e-mail address of eva",
            ),
            (vec![own("Bob@home", "eve@work")], "username is email of account 2 already"),
            (vec![own("bob@h\u{2092}me", "eve@work")], "username is email of account 2 already"),
            (vec![own("eve", "ADA@work")], "email is username of account 1 already"),
        ] {
            let fates = identity.import(rows, false).await.unwrap();
            let Fate::Refused(complaints) = &fates[0].1 else { panic!("{fates:?}") };
            assert!(complaints[0].starts_with(must_say), "{complaints:?}");
        }
    }
}
