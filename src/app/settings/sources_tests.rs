//! Secrets from files, by flags; what variables do is tested with the real binary.

use clap::{Parser, Subcommand};

use super::super::parse;
use super::*;

#[derive(Parser, Debug)]
struct Line {
    #[command(subcommand)]
    command: Option<Go>,

    /// Where it is
    #[arg(long, env = "NO_SUCH_VARIABLE_PLACE", global = true, value_parser = parse::secret)]
    place: Option<Secret>,

    /// What opens it
    #[arg(long, env = "NO_SUCH_VARIABLE_KEYS", global = true, value_parser = parse::secrets)]
    keys: Option<SecretList>,

    /// How long
    #[arg(long, env = "NO_SUCH_VARIABLE_TIME", default_value = "1s", value_parser = parse::ttl)]
    time: std::time::Duration,
}

#[derive(Subcommand, Debug)]
enum Go {
    There,
}

struct Folder(tempfile::TempDir);

impl Folder {
    fn file(&self, content: &str) -> String {
        let path = self.0.path().join("secret");
        std::fs::write(&path, content).unwrap();
        path.to_str().unwrap().to_owned()
    }
}

fn folder() -> Folder {
    Folder(tempfile::tempdir().unwrap())
}

fn line(words: &[&str]) -> std::result::Result<Line, String> {
    let words = std::iter::once(&"line").chain(words).map(OsString::from);
    read(words).map_err(|error| error.to_string())
}

#[test]
fn a_secret_is_read_from_a_flag_or_from_a_file_and_knows_which() {
    let folder = folder();
    let file = folder.file("hunter2\r\n");
    let by_flag = line(&["--place", "hunter2\n"]).unwrap().place.unwrap();
    assert_eq!((by_flag.reveal(), by_flag.named("?")), ("hunter2", "--place"));
    for words in [&["--place-file", &file][..], &["there", "--place-file", &file]] {
        let by_file = line(words).unwrap().place.unwrap();
        assert_eq!((by_file.reveal(), by_file.named("?")), ("hunter2", &*format!("--place-file ({file})")));
    }
    let none = line(&[]).unwrap();
    assert!(none.place.is_none() && none.keys.is_none(), "{none:?}");
}

#[test]
fn a_list_of_secrets_is_read_from_a_file_too() {
    let folder = folder();
    let file = folder.file("one\ntwo,three\n");
    let keys = line(&["--keys-file", &file]).unwrap().keys.unwrap();
    assert_eq!(keys.iter().map(Secret::reveal).collect::<Vec<_>>(), ["one", "two", "three"]);
    assert_eq!(keys.named("?"), format!("--keys-file ({file})"));
    let keys = line(&["--keys", "one,two"]).unwrap().keys.unwrap();
    assert_eq!(keys.iter().count(), 2);
}

#[test]
fn a_secret_that_is_set_twice_or_whose_file_holds_none_is_refused_by_name_and_not_shown() {
    let folder = folder();
    let good = folder.file("hunter2");
    let twice = line(&["--place", "hunter3", "--place-file", &good]).unwrap_err();
    assert!(twice.contains("--place and --place-file are both set"), "{twice}");
    assert!(!twice.contains("hunter"), "{twice}");
    let none = line(&["--place-file", "/nowhere/at/all"]).unwrap_err();
    assert!(none.contains("--place-file names the file /nowhere/at/all, which cannot be read"), "{none}");
    let empty = line(&["--place-file", &folder.file("\n")]).unwrap_err();
    assert!(empty.contains("which is empty"), "{empty}");
    for words in [&["--place="][..], &["--place-file="], &["--keys", "\n"]] {
        let empty = line(words).unwrap_err();
        assert!(empty.contains(" is empty: leave it out"), "{words:?}: {empty}");
    }
}

#[test]
fn help_names_the_file_of_each_secret_and_how_it_is_read() {
    let help = line(&["--help"]).unwrap_err();
    for text in [
        "Where it is [or in a file: NO_SUCH_VARIABLE_PLACE_FILE]",
        "What opens it [or in a file: NO_SUCH_VARIABLE_KEYS_FILE]",
        "Line ends at the end of a secret are not part of it",
    ] {
        assert!(help.contains(text), "{text}: {help}");
    }
    assert!(!help.contains("TIME_FILE"), "{help}");
}

#[test]
fn a_refused_flag_is_not_said_to_come_from_a_variable() {
    let error = line(&["--time", "soon"]).unwrap_err();
    assert!(error.contains("--time") && error.contains("from 1s to 1h"), "{error}");
    assert!(!error.contains("comes from"), "{error}");
}
