//! Login names: the one rule by which usernames and e-mail addresses are equal.
//!
//! Both kinds share one space of keys, so that a login name never means two accounts. The key of a text is its
//! `NFKC_Casefold` (The Unicode Standard, section 3.13, D146): full case folding, compatibility normalisation, and without
//! code points that are ignorable by default. Two texts that RFC 8265's `UsernameCaseMapped` profile calls equal have
//! the same key. A database computes the key of a pure ASCII text by `lower()` in byte order; every other key is computed
//! here, so the result depends on no database and no locale.

use icu_casemap::CaseMapper;
use icu_normalizer::{ComposingNormalizerBorrowed, DecomposingNormalizerBorrowed};
use icu_properties::CodePointSetData;
use icu_properties::props::DefaultIgnorableCodePoint;

/// The longest key, bytes. Longer ones are no login names: an index of PostgreSQL takes 2,704 bytes, and the longest name
/// that can be registered has a key of some 900.
pub const MAX_KEY: usize = 1_024;

/// What two equal login names have in common. Never empty.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NameKey(String);

impl NameKey {
    /// The key of a username, an e-mail address or a typed login. `None` where nothing visible is left of the text, where
    /// the key would be longer than [`MAX_KEY`], or where it holds a NUL, which PostgreSQL cannot keep: no account can be
    /// signed in to by such a text.
    pub fn of(text: &str) -> Option<Self> {
        let key = fold(text);
        (!key.is_empty() && key.len() <= MAX_KEY && !key.contains('\0')).then_some(Self(key))
    }

    /// The key as SQL keeps it.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Which names of an account have a key: one row of the table `login_names`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct KeyOf {
    /// The key.
    pub key: NameKey,
    /// Whether it is the key of the username.
    pub of_username: bool,
    /// Whether it is the key of the e-mail address.
    pub of_email: bool,
}

/// The keys of an account: two, or one where username and e-mail address are equal; fewer where a name has none.
pub fn keys(username: &str, email: &str) -> Vec<KeyOf> {
    let (username, email) = (NameKey::of(username), NameKey::of(email));
    if username.is_some() && username == email {
        return username.map(|key| KeyOf { key, of_username: true, of_email: true }).into_iter().collect();
    }
    let username = username.map(|key| KeyOf { key, of_username: true, of_email: false });
    let email = email.map(|key| KeyOf { key, of_username: false, of_email: true });
    username.into_iter().chain(email).collect()
}

/// Whether a database can compute the key itself: by `lower()`, whose result for ASCII depends on no locale where the
/// collation is `C`.
pub const fn is_plain(text: &str) -> bool {
    text.is_ascii()
}

/// Whether two login names are equal.
pub fn are_equal(one: &str, other: &str) -> bool {
    fold(one) == fold(other)
}

/// `NFKC_Casefold` of the text. Idempotent; also what a search compares.
pub fn fold(text: &str) -> String {
    if is_plain(text) {
        return text.to_ascii_lowercase();
    }
    let (decompose, compose) =
        (DecomposingNormalizerBorrowed::new_nfd(), ComposingNormalizerBorrowed::new_nfkc());
    let mut folded = visible(&decompose.normalize(text));
    // Folding can undo normalisation and the other way round; two or three passes reach the fixed point.
    loop {
        let cased = CaseMapper::new().fold_string(&folded).into_owned();
        let next = visible(&compose.normalize(&cased));
        if next == folded {
            return folded;
        }
        folded = next;
    }
}

/// The text without code points that are ignorable by default: they have no shape of their own.
fn visible(text: &str) -> String {
    text.chars().filter(|c| !is_ignorable(*c)).collect()
}

/// Whether the code point is ignorable by default (`Default_Ignorable_Code_Point`): it is not displayed.
pub fn is_ignorable(c: char) -> bool {
    CodePointSetData::new::<DefaultIgnorableCodePoint>().contains(c)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn equal_names_have_one_key_however_they_are_written() {
        for (one, other) in [
            ("ada", "ADA"),
            ("\u{212a}im@outloo\u{212a}.com", "kim@outlook.com"),
            ("straße", "STRASSE"),
            ("ẞ", "ss"),
            ("ΣΊΣΥΦΟΣ", "σίσυφος"),
            ("Ａｄａ", "ada"),
            ("ｶﾞ", "ガ"),
            ("e\u{301}", "É"),
            ("ﬁn", "FIN"),
            ("\u{17f}am", "SAM"),
            ("ad\u{200b}a\u{ad}\u{feff}", "ada"),
            ("\u{202e}ada", "ada"),
            ("a\u{ff20}b", "a@b"),
            ("İ", "i\u{307}"),
            ("ΐ", "\u{3b9}\u{308}\u{301}"),
            ("ᏸ", "Ᏸ"),
        ] {
            assert!(are_equal(one, other), "{one} {other}: {} {}", fold(one), fold(other));
        }
        for (one, other) in [("ada", "adá"), ("i", "ı"), ("i", "İ"), ("a b", "ab"), ("а", "a"), ("0", "o")]
        {
            assert!(!are_equal(one, other), "{one} {other}");
        }
    }

    #[test]
    fn a_text_that_nobody_can_sign_in_by_has_no_key() {
        for text in ["", "\u{200b}\u{ad}", "\u{3164}", "a\0b"] {
            assert_eq!(NameKey::of(text), None, "{text:?}");
        }
        assert!(NameKey::of(&"a".repeat(MAX_KEY)).is_some());
        assert_eq!(NameKey::of(&"a".repeat(MAX_KEY + 1)), None);
        let widest = "\u{390}".repeat(150);
        assert!(NameKey::of(&widest).is_some_and(|key| key.as_str().len() < MAX_KEY));
    }

    #[test]
    fn an_account_whose_names_are_equal_has_one_key() {
        let [one] = &keys("Kim@x", "\u{212a}im@x")[..] else { panic!() };
        assert_eq!((one.key.as_str(), one.of_username, one.of_email), ("kim@x", true, true));
        let two = keys("Ada", "ada@example.com");
        assert!(two[0].of_username && !two[0].of_email && two[1].of_email && !two[1].of_username);
        assert_eq!(keys("\u{200b}", "").len(), 0);
    }

    #[test]
    fn the_key_of_every_character_is_its_own_key() {
        for c in (0..=0x10_ffff_u32).filter_map(char::from_u32) {
            for text in [c.to_string(), format!("a{c}\u{301}")] {
                let key = fold(&text);
                assert_eq!(fold(&key), key, "{c:?}");
            }
        }
    }

    proptest! {
        #[test]
        fn a_key_is_its_own_key_and_case_never_counts(text in "\\PC{0,20}") {
            let key = fold(&text);
            prop_assert_eq!(&fold(&key), &key);
            prop_assert_eq!(&fold(&text.to_lowercase()), &fold(&key.to_lowercase()));
            prop_assert_eq!(if text.is_ascii() { text.to_ascii_lowercase() } else { key.clone() }, key);
        }
    }
}
