//! Settings that nobody may see.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

/// The largest file that a secret is read from, bytes.
const MAX_FILE: u64 = 64 * 1024;

/// A text that no log, error or `--help` shows.
#[derive(Clone)]
pub struct Secret {
    text: String,
    /// The variable, flag or file that it was set by.
    origin: Option<Arc<str>>,
}

/// Several secrets of one setting, in the order in which they were given.
#[derive(Clone, Default)]
pub struct SecretList {
    secrets: Vec<Secret>,
    origin: Option<Arc<str>>,
}

impl Secret {
    /// Wraps a text.
    pub const fn new(text: String) -> Self {
        Self { text, origin: None }
    }

    /// Wraps the value of a setting: line ends at its end, which editors and `echo` leave behind, are no part of it.
    pub(super) fn of_setting(text: &str, origin: Option<Arc<str>>) -> Self {
        Self { text: without_line_ends(text).to_owned(), origin }
    }

    /// The text itself.
    pub fn reveal(&self) -> &str {
        &self.text
    }

    /// The variable, flag or file that this was set by, for messages; `setting` where that is not known.
    pub(in crate::app) fn named<'a>(&'a self, setting: &'a str) -> &'a str {
        self.origin.as_deref().unwrap_or(setting)
    }
}

impl SecretList {
    /// Reads the value of a setting: secrets apart by commas or line ends, empty ones left out.
    pub(super) fn of_setting(text: &str, origin: Option<Arc<str>>) -> Self {
        let texts = text.split([',', '\n']).map(|text| text.trim_end_matches('\r'));
        let secrets =
            texts.filter(|text| !text.is_empty()).map(|text| Secret::of_setting(text, origin.clone()));
        Self { secrets: secrets.collect(), origin }
    }

    /// The secrets.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Secret> {
        self.secrets.iter()
    }

    /// Whether there is none.
    pub(super) fn is_empty(&self) -> bool {
        self.secrets.is_empty()
    }

    /// As [`Secret::named`].
    pub(super) fn named<'a>(&'a self, setting: &'a str) -> &'a str {
        self.origin.as_deref().unwrap_or(setting)
    }
}

/// Reads the file of a secret.
///
/// # Errors
/// Why it holds none, after the name of the file; nothing of its content.
pub(super) fn read_file(file: &Path) -> Result<String, String> {
    use std::io::Read;
    let mut bytes = Vec::new();
    let read = std::fs::File::open(file).and_then(|file| file.take(MAX_FILE + 1).read_to_end(&mut bytes));
    read.map_err(|error| format!("cannot be read: {error}"))?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(format!("holds more than {} KiB, which is no secret", MAX_FILE / 1024));
    }
    let text = String::from_utf8(bytes).map_err(|_| "is not UTF-8 text".to_owned())?;
    if without_line_ends(&text).is_empty() { Err("is empty".to_owned()) } else { Ok(text) }
}

pub(super) fn without_line_ends(text: &str) -> &str {
    text.trim_end_matches(['\r', '\n'])
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

impl fmt::Debug for SecretList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SecretList({} secrets)", self.secrets.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_not_shown() {
        assert_eq!(format!("{:?}", Secret::new("hunter2".into())), "Secret(…)");
        let list = SecretList::of_setting("hunter2,hunter3", None);
        assert_eq!(format!("{list:?}"), "SecretList(2 secrets)");
    }

    #[test]
    fn line_ends_behind_a_secret_are_no_part_of_it_and_spaces_are() {
        for text in ["one", "one\n", "one\r\n", "one\n\n", "one\r"] {
            assert_eq!(Secret::of_setting(text, None).reveal(), "one", "{text:?}");
        }
        assert_eq!(Secret::of_setting(" o\nne \n", None).reveal(), " o\nne ");
        for text in ["", "\n", "\r\n\r\n"] {
            assert_eq!(Secret::of_setting(text, None).reveal(), "", "{text:?}");
        }
    }

    #[test]
    fn several_secrets_are_apart_by_commas_or_lines() {
        for text in ["one,two", "one\ntwo\n", "one\r\ntwo\r\n", "\none,\n\ntwo,", "one,two\n"] {
            let list = SecretList::of_setting(text, None);
            let found: Vec<_> = list.iter().map(Secret::reveal).collect();
            assert_eq!(found, ["one", "two"], "{text:?}");
        }
        assert!(SecretList::of_setting("\n,\r\n", None).is_empty());
    }

    #[test]
    fn a_file_without_a_secret_is_refused_with_the_reason_and_nothing_of_its_content() {
        let folder = tempfile::tempdir().unwrap();
        let file = |content: &[u8]| {
            let path = folder.path().join("secret");
            std::fs::write(&path, content).unwrap();
            read_file(&path)
        };
        assert_eq!(file(b"hunter2\n"), Ok("hunter2\n".to_owned()));
        assert_eq!(file(b""), Err("is empty".to_owned()));
        assert_eq!(file(b"\r\n\n"), Err("is empty".to_owned()));
        assert_eq!(file(b"hunter2\xff"), Err("is not UTF-8 text".to_owned()));
        assert!(file(&vec![b'x'; 64 * 1024]).is_ok());
        assert!(file(&vec![b'x'; 64 * 1024 + 1]).unwrap_err().contains("64 KiB"));
        assert!(read_file(&folder.path().join("none")).unwrap_err().starts_with("cannot be read: "));
        assert!(read_file(folder.path()).unwrap_err().starts_with("cannot be read: "));
    }
}
