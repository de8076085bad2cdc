//! What may stand in an account's fields.
//!
//! Pure: collects every complaint by field, so that a client sees them all at once. Uniqueness is SQL's to say.

mod common;
mod precis;

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use self::precis::Objection;
use crate::model::account::UnknownWord;
use crate::model::login_name;

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

    /// Checks a new username by RFC 8265, and returns the spelling that is kept. It may look like an e-mail address only
    /// where it is the account's own: a login name must not be another person's address.
    pub(super) fn username(&mut self, username: &str, email: &str) -> String {
        let kept = precis::enforce(username).unwrap_or_else(|objection| {
            self.add("username", objection.to_string());
            username.to_owned()
        });
        if kept.contains("  ") {
            self.add("username", "must not contain two spaces in a row");
        }
        self.username_of_any_product(&kept, email);
        kept
    }

    /// Checks the username of an account that an existing product has: it stays as it is, so the profile of RFC 8265 does
    /// not bind it. Invisible characters are refused: with one a name looks like another.
    pub(super) fn existing_username(&mut self, username: &str, email: &str) {
        if let Some(invisible) = precis::first_invisible(username) {
            self.add("username", Objection::CodePoint(invisible).to_string());
        }
        self.username_of_any_product(username, email);
    }

    fn username_of_any_product(&mut self, username: &str, email: &str) {
        let length = username.chars().count();
        if length == 0 || length > MAX_USERNAME {
            self.add("username", format!("must be 1 to {MAX_USERNAME} characters long"));
        }
        if username.trim() != username {
            self.add("username", "must not begin or end with white space");
        }
        if login_name::fold(username).contains('@') && !login_name::are_equal(username, email) {
            self.add("username", "must not contain '@' unless it is the account's own e-mail address");
        }
    }

    /// Plausible, no more: only a letter could tell whether the address exists.
    pub(super) fn email(&mut self, email: &str) {
        let is_whole = |email: &str| {
            email.split_once('@').is_some_and(|(local, domain)| {
                !local.is_empty() && !domain.is_empty() && !domain.contains('@')
            })
        };
        // In its folded form too: some characters are compatible with '@'.
        if !is_whole(email) || !is_whole(&login_name::fold(email)) {
            self.add("email", "must be an e-mail address: a name, one '@' and a domain");
        }
        if email.chars().any(|c| precis::is_invisible(c) || c.is_whitespace()) {
            self.add("email", "must not contain spaces, control characters or invisible characters");
        }
        if email.len() > MAX_EMAIL || login_name::NameKey::of(email).is_none() && !email.is_empty() {
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
        if login_name::are_equal(password, username) || login_name::are_equal(password, email) {
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

impl fmt::Display for Objection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A character that is not displayed, or turns the text around it, is named by its number alone.
        let name = |c: char| {
            let number = format!("U+{:04X}", u32::from(c));
            if precis::is_invisible(c) || c.is_whitespace() { number } else { format!("'{c}' ({number})") }
        };
        match self {
            Self::CodePoint(c) if precis::is_invisible(*c) => {
                write!(f, "must not contain the invisible character {}", name(*c))
            }
            Self::CodePoint(c) => write!(
                f,
                "must not contain {}: letters, digits, the signs on a US keyboard and single spaces are allowed",
                name(*c)
            ),
            Self::OutOfContext(c) => write!(f, "must not contain {} in this place", name(*c)),
            Self::Direction => {
                f.write_str("must not mix letters that are read from right to left with others in one word")
            }
        }
    }
}

/// Whether a login name could be anybody's; what could not is never shown to SQL, which would choke on a NUL.
pub(super) fn could_be_login(login: &str) -> bool {
    !login.is_empty() && login.len() <= 4 * MAX_USERNAME && !login.chars().any(char::is_control)
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
            assert_eq!(complaints(|e| assert_eq!(e.username(good, email), good)), 0, "{good:?}");
            assert_eq!(complaints(|e| e.existing_username(good, email)), 0, "{good:?}");
        }
        let too_long = "u".repeat(151);
        for bad in ["", " ada", "a\0b", "a\nb", "bob@example.com", "@", "a\u{200b}b", too_long.as_str()] {
            assert_eq!(complaints(|e| drop(e.username(bad, email))), 1, "{bad:?}");
            assert_eq!(complaints(|e| e.existing_username(bad, email)), 1, "{bad:?}");
        }
        for bad in ["ada\u{a0}", "bob\u{fe6b}example.com", "bob＠example.com", "🦀", "a  b"] {
            assert_ne!(complaints(|e| drop(e.username(bad, email))), 0, "{bad:?}");
        }
        assert_eq!(complaints(|e| assert_eq!(e.username("Ａda", email), "Ada")), 0, "width does not count");
        for good in ["🦀 crab", "O’Brien", "Ⅳ"] {
            assert_eq!(complaints(|e| e.existing_username(good, email)), 0, "{good:?}");
        }
    }

    #[test]
    fn e_mails() {
        for good in ["a@b", "ada+x@example.com", "ü@exämple.com"] {
            assert_eq!(complaints(|e| e.email(good)), 0, "{good:?}");
        }
        let too_long = format!("{}@example.com", "x".repeat(243));
        for bad in [
            "",
            "ada",
            "@",
            "a@",
            "@b",
            "a@b@c",
            "a b@c",
            "a@b\0",
            "a@b\n",
            "a\u{200b}@b",
            "a＠b@c",
            too_long.as_str(),
        ] {
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
