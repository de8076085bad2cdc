//! What may stand in an account's fields.
//!
//! Pure: collects every complaint by field, so that a client sees them all at once. Uniqueness is SQL's to say.

mod common;

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use crate::model::account::UnknownWord;

/// The longest username, characters.
pub const MAX_USERNAME: usize = 150;
/// The longest e-mail address, bytes (RFC 5321 leaves a path 254).
pub const MAX_EMAIL: usize = 254;
/// The shortest password, characters.
pub const MIN_PASSWORD: usize = 8;
/// The longest password, characters.
pub const MAX_PASSWORD: usize = 128;

/// Complaints by field: each text reads on from the field's name.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct FieldErrors(pub BTreeMap<String, Vec<String>>);

impl FieldErrors {
    /// One complaint.
    pub fn one(field: impl Into<String>, text: impl Into<String>) -> Self {
        let mut errors = Self::default();
        errors.add(field, text);
        errors
    }

    /// Adds a complaint.
    pub fn add(&mut self, field: impl Into<String>, text: impl Into<String>) {
        self.0.entry(field.into()).or_default().push(text.into());
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Reads a word of a closed list; a complaint lists the words.
    pub(super) fn word<T: FromStr<Err = UnknownWord>>(&mut self, field: &str, word: &str) -> Option<T> {
        word.parse().map_err(|unknown: UnknownWord| self.add(field, unknown.to_string())).ok()
    }

    /// A username stands alone as a login name, so it may look like an e-mail address only where it is the account's
    /// own: otherwise one could be somebody else's.
    pub(super) fn username(&mut self, username: &str, email: &str) {
        let length = username.chars().count();
        if length == 0 || length > MAX_USERNAME {
            self.add("username", format!("must be 1 to {MAX_USERNAME} characters long"));
        }
        if username.chars().any(char::is_control) {
            self.add("username", "must not contain control characters");
        }
        if username.chars().any(turns_direction) {
            self.add("username", "must not contain marks that turn the direction of text");
        }
        if username.trim() != username {
            self.add("username", "must not begin or end with white space");
        }
        if username.contains('@') && !same(username, email) {
            self.add("username", "must not contain '@' unless it is the account's own e-mail address");
        }
    }

    /// Plausible, no more: whether it exists only a letter could tell.
    pub(super) fn email(&mut self, email: &str) {
        let whole = email
            .split_once('@')
            .is_some_and(|(local, domain)| !local.is_empty() && !domain.is_empty() && !domain.contains('@'));
        if !whole {
            self.add("email", "must be an e-mail address: a name, one '@' and a domain");
        }
        if email.chars().any(|c| c.is_control() || c.is_whitespace()) {
            self.add("email", "must not contain spaces or control characters");
        }
        if email.len() > MAX_EMAIL {
            self.add("email", format!("must be at most {MAX_EMAIL} bytes long"));
        }
    }

    /// Long enough to be worth a hash, and nothing that is guessed first: what everybody can read off the account, a number,
    /// or a password that many have. Django refuses the same.
    pub(super) fn password(&mut self, password: &str, username: &str, email: &str) {
        let length = password.chars().count();
        if !(MIN_PASSWORD..=MAX_PASSWORD).contains(&length) {
            self.add("password", format!("must be {MIN_PASSWORD} to {MAX_PASSWORD} characters long"));
        }
        if same(password, username) || same(password, email) {
            self.add("password", "must be neither the username nor the e-mail address");
        }
        if !password.is_empty() && password.chars().all(char::is_numeric) {
            self.add("password", "must not be a number alone: add a word or two");
        } else if common::is_common(password) {
            self.add(
                "password",
                "is one that many people use and that is guessed first: choose another, such as a few words",
            );
        }
    }

    /// The complaints as an error, if there are any.
    pub(super) fn check(self) -> super::Result<()> {
        if self.is_empty() { Ok(()) } else { Err(super::IdentityError::Invalid(self)) }
    }
}

impl fmt::Display for FieldErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (field, texts)) in self.0.iter().enumerate() {
            let separator = if index == 0 { "" } else { "; " };
            write!(f, "{separator}{field} {}", texts.join(", "))?;
        }
        Ok(())
    }
}

/// The marks and overrides of the bidirectional algorithm (UAX #9): invisible, and with them a name looks like another in
/// any list that it stands in. Names in scripts that run from right to left need none of them.
const fn turns_direction(c: char) -> bool {
    matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Whether a login name could be anybody's; what could not is never shown to SQL, which would choke on a NUL.
pub(super) fn could_be_login(login: &str) -> bool {
    !login.is_empty() && login.len() <= 4 * MAX_USERNAME && !login.chars().any(char::is_control)
}

/// Equal whatever the case, as SQL's unique indexes have it.
fn same(one: &str, other: &str) -> bool {
    one.to_lowercase() == other.to_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn complaints(check: impl FnOnce(&mut FieldErrors)) -> usize {
        let mut errors = FieldErrors::default();
        check(&mut errors);
        errors.0.values().map(Vec::len).sum()
    }

    #[test]
    fn usernames() {
        let email = "ada@example.com";
        let longest = "ü".repeat(150);
        for good in ["a", "ada", "Ada Lovelace", "ada@example.com", "ADA@example.com", "愛", longest.as_str()]
        {
            assert_eq!(complaints(|e| e.username(good, email)), 0, "{good:?}");
        }
        let too_long = "u".repeat(151);
        for bad in ["", " ada", "ada\u{a0}", "a\0b", "a\nb", "bob@example.com", "@", too_long.as_str()] {
            assert_eq!(complaints(|e| e.username(bad, email)), 1, "{bad:?}");
        }
    }

    #[test]
    fn e_mails() {
        for good in ["a@b", "ada+x@example.com", "ü@exämple.com"] {
            assert_eq!(complaints(|e| e.email(good)), 0, "{good:?}");
        }
        let too_long = format!("{}@example.com", "x".repeat(243));
        for bad in ["", "ada", "@", "a@", "@b", "a@b@c", "a b@c", "a@b\0", "a@b\n", too_long.as_str()] {
            assert_ne!(complaints(|e| e.email(bad)), 0, "{bad:?}");
        }
    }

    #[test]
    fn passwords() {
        let longest = "é".repeat(128);
        for good in ["1234 abcd", "ada's password", longest.as_str(), "with \0 and spaces "] {
            assert_eq!(complaints(|e| e.password(good, "adalovelace", "ada@example.com")), 0, "{good:?}");
        }
        let too_long = "x".repeat(129);
        let common = ["12345678", "8675309187", "٠١٢٣٤٥٦٧", "password", "PassWord1", " trustno1 "];
        for bad in
            ["", "a bit 7", too_long.as_str(), "AdaLovelace", "ada@EXAMPLE.com"].into_iter().chain(common)
        {
            assert_eq!(complaints(|e| e.password(bad, "adalovelace", "ada@example.com")), 1, "{bad:?}");
        }
    }
}
