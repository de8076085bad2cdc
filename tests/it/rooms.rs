//! The rooms: holds every path in `src/` to the table at the top of `src/lib.rs`, and the crates for Redis, SQL and
//! HTTP to the one room that may know each.
//!
//! The sources are read as words, not compiled: comments and literals are dropped, `use` trees are opened, and
//! `super::` is followed to where it leads. What a macro puts together is not seen.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use crate::house::files;

/// Crates that one room owns.
const OWNERS: [(&str, &str); 9] = [
    ("fred", "live"),
    ("sqlx", "store"),
    ("axum", "http"),
    ("hyper", "http"),
    ("hyper_util", "http"),
    ("tokio_rustls", "http"),
    ("prometheus_client", "metrics"),
    ("jsonwebtoken", "identity"),
    ("reqwest", "identity"),
];

/// Files that are tests and nothing else may play a client of their own room with whatever crate.
const TESTS: &str = "tests.rs";

/// Each room with the rooms it may import.
type Table = BTreeMap<String, BTreeSet<String>>;

#[test]
fn every_import_keeps_to_the_table_of_rooms() {
    let table = table(&fs::read_to_string("src/lib.rs").unwrap());
    let sources = files("src", "rs");
    assert!(sources.len() > table.len(), "the sources are not where they are looked for");
    let found: Vec<String> = sources
        .iter()
        .flat_map(|path| violations(&table, path, &fs::read_to_string(path).unwrap()))
        .collect();
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn the_table_names_the_rooms_there_are() {
    let table = table(&fs::read_to_string("src/lib.rs").unwrap());
    let there: BTreeSet<String> =
        files("src", "rs").iter().filter_map(|path| module(path).first().cloned()).collect();
    assert_eq!(table.keys().cloned().collect::<BTreeSet<_>>(), there);
}

/// Reads the rows ``| [`room`] | what it owns | what it may import |`` of the documentation.
fn table(lib: &str) -> Table {
    let cells = |line: &str| -> Option<Vec<String>> {
        let row = line.strip_prefix("//! | [`")?;
        Some(row.split('|').map(|cell| cell.trim().to_owned()).collect())
    };
    let rows: Vec<Vec<String>> = lib.lines().filter_map(cells).collect();
    let name = |row: &[String]| row[0].trim_end_matches("`]").to_owned();
    let rooms: BTreeSet<String> = rows.iter().map(|row| name(row)).collect();
    let imports = |cell: &str| match cell {
        "nothing" => BTreeSet::new(),
        "all" => rooms.clone(),
        list => list.split(',').map(|room| room.trim().trim_matches('`').to_owned()).collect(),
    };
    let table: Table = rows.iter().map(|row| (name(row), imports(&row[2]))).collect();
    assert!(!table.is_empty(), "no table of rooms");
    for (room, may) in &table {
        assert!(may.is_subset(&rooms), "{room} may import what is no room: {may:?}");
    }
    table
}

/// What is wrong with the paths of one file, a line each.
fn violations(table: &Table, file: &str, source: &str) -> Vec<String> {
    let module = module(file);
    let mut found = BTreeSet::new();
    for Mention { inside, path } in mentions(source) {
        let here: Vec<String> = module.iter().cloned().chain(inside).collect();
        let shown = path.join("::");
        match (resolve(&here, &path), module.first()) {
            // `lib.rs` only declares the rooms.
            (Place::Here(_), None) => {}
            (Place::Here(place), Some(room)) => {
                let target = place.first().map_or("", String::as_str);
                if target != room && !table.get(room).is_some_and(|may| may.contains(target)) {
                    found.insert(format!("{file}: `{room}` may not import `{shown}`"));
                }
            }
            (Place::Elsewhere(name), room) => {
                let owner = OWNERS.iter().find(|(owned, _)| *owned == name).map(|(_, owner)| *owner);
                let is_test = file.ends_with(TESTS);
                if !is_test && owner.is_some_and(|owner| room.is_none_or(|room| room != owner)) {
                    found
                        .insert(format!("{file}: only `{}` may mention `{name}`", owner.unwrap_or_default()));
                }
                if name == "presenced" && path.get(1).is_none_or(|room| room != "app") {
                    found.insert(format!("{file}: the binary may only call `app`, not `{shown}`"));
                }
            }
        }
    }
    found.into_iter().collect()
}

/// The module of a file: `src/live/keys.rs` is `live::keys`, `src/lib.rs` and `src/main.rs` are the root.
fn module(file: &str) -> Vec<String> {
    let path = Path::new(file).strip_prefix("src").unwrap_or(Path::new(file)).with_extension("");
    let mut module: Vec<String> = path.iter().map(|part| part.to_string_lossy().into_owned()).collect();
    if module.last().is_some_and(|last| last == "mod") || module == ["lib"] || module == ["main"] {
        module.pop();
    }
    module
}

/// Where a path leads.
enum Place {
    /// In this crate, counted from the root.
    Here(Vec<String>),
    /// To another crate, or to a name in scope.
    Elsewhere(String),
}

fn resolve(here: &[String], path: &[String]) -> Place {
    let rest = |count: usize| path[count..].iter().cloned();
    match path[0].as_str() {
        "crate" => Place::Here(rest(1).collect()),
        "self" | "super" => {
            let own = usize::from(path[0] == "self");
            let ups = path[own..].iter().take_while(|word| *word == "super").count();
            Place::Here(
                here.iter().take(here.len().saturating_sub(ups)).cloned().chain(rest(own + ups)).collect(),
            )
        }
        name => Place::Elsewhere(name.to_owned()),
    }
}

/// A path of several words, or one that a `use` names.
struct Mention {
    /// The modules within the file around it.
    inside: Vec<String>,
    path: Vec<String>,
}

#[derive(Clone, Debug, PartialEq)]
enum Token {
    Word(String),
    /// `::`
    Step,
    Sign(char),
}

fn mentions(source: &str) -> Vec<Mention> {
    let tokens = tokens(source);
    let word = |at: usize| match tokens.get(at) {
        Some(Token::Word(word)) => Some(word.as_str()),
        _ => None,
    };
    let mut found = Vec::new();
    // A name for each open brace that is a module's.
    let mut braces: Vec<Option<String>> = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        let before = at.checked_sub(1).and_then(|before| tokens.get(before));
        match &tokens[at] {
            Token::Sign('{') => {
                let named = at >= 2 && word(at - 2) == Some("mod");
                braces.push(if named { word(at - 1).map(ToOwned::to_owned) } else { None });
            }
            Token::Sign('}') => {
                braces.pop();
            }
            Token::Word(first) => {
                let mut paths = Vec::new();
                let is_use = first == "use" && before != Some(&Token::Step);
                let after_crate = first == "crate" && before == Some(&Token::Word("extern".to_owned()));
                if is_use || after_crate {
                    let start = if tokens.get(at + 1) == Some(&Token::Step) { at + 2 } else { at + 1 };
                    at = tree(&tokens, start, &[], &mut paths);
                } else if tokens.get(at + 1) == Some(&Token::Step) {
                    at = tree(&tokens, at, &[], &mut paths);
                } else {
                    at += 1;
                }
                let inside: Vec<String> = braces.iter().flatten().cloned().collect();
                found.extend(paths.into_iter().map(|path| Mention { inside: inside.clone(), path }));
                continue;
            }
            _ => {}
        }
        at += 1;
    }
    found
}

/// Reads a path, or a tree of them with a common `start`, and returns where it ends.
fn tree(tokens: &[Token], mut at: usize, start: &[String], found: &mut Vec<Vec<String>>) -> usize {
    let mut path = start.to_vec();
    loop {
        match tokens.get(at) {
            Some(Token::Word(word)) => path.push(word.clone()),
            Some(Token::Sign('*')) => path.push("*".to_owned()),
            Some(Token::Sign('{')) => {
                at += 1;
                while at < tokens.len() && tokens[at] != Token::Sign('}') {
                    at = tree(tokens, at, &path, found);
                    // To the next branch, past an `as name`.
                    while at < tokens.len() && !matches!(tokens[at], Token::Sign(',' | '}')) {
                        at += 1;
                    }
                    at += usize::from(tokens.get(at) == Some(&Token::Sign(',')));
                }
                return at + 1;
            }
            // `Vec::<…>`: the path ended before, and this is looked at next.
            _ => break,
        }
        at += 1;
        if tokens.get(at) != Some(&Token::Step) {
            break;
        }
        at += 1;
    }
    if !path.is_empty() {
        found.push(path);
    }
    at
}

/// The words and signs of a source, without comments and literals.
fn tokens(source: &str) -> Vec<Token> {
    let text: Vec<char> = source.chars().collect();
    let at = |index: usize| text.get(index).copied().unwrap_or('\0');
    let is_word = |sign: char| sign.is_alphanumeric() || sign == '_';
    let mut tokens = Vec::new();
    let mut index = 0;
    while index < text.len() {
        match (at(index), at(index + 1)) {
            ('/', '/') => index = find(&text, index, "\n"),
            ('/', '*') => {
                let mut depth = 0;
                loop {
                    match (at(index), at(index + 1)) {
                        ('/', '*') => depth += 1,
                        ('*', '/') => depth -= 1,
                        _ => {
                            index += 1;
                            if index < text.len() {
                                continue;
                            }
                        }
                    }
                    index += 2;
                    if depth == 0 || index >= text.len() {
                        break;
                    }
                }
            }
            ('"', _) => index = quoted(&text, index, '"'),
            ('\'', '\\') => index = quoted(&text, index, '\''),
            ('\'', _) => index += if at(index + 2) == '\'' { 3 } else { 1 },
            (':', ':') => {
                tokens.push(Token::Step);
                index += 2;
            }
            (sign, _) if is_word(sign) => {
                let end = (index..text.len()).find(|&end| !is_word(text[end])).unwrap_or(text.len());
                let word: String = text[index..end].iter().collect();
                let hashes = text[end..].iter().take_while(|sign| **sign == '#').count();
                index = end;
                if matches!(word.as_str(), "r" | "br" | "cr") && at(end + hashes) == '"' {
                    index = find(&text, end + hashes + 1, &format!("\"{}", "#".repeat(hashes)));
                } else if word == "r" && hashes == 1 {
                    // A raw name, `r#type`: the next word is it.
                    index += 1;
                } else {
                    tokens.push(Token::Word(word));
                }
            }
            (sign, _) => {
                if !sign.is_whitespace() {
                    tokens.push(Token::Sign(sign));
                }
                index += 1;
            }
        }
    }
    tokens
}

/// The index after the next `end`.
fn find(text: &[char], from: usize, end: &str) -> usize {
    let end: Vec<char> = end.chars().collect();
    (from..text.len()).find(|&at| text[at..].starts_with(&end)).map_or(text.len(), |at| at + end.len())
}

/// The index after the literal that begins here.
fn quoted(text: &[char], start: usize, quote: char) -> usize {
    let mut at = start + 1;
    while at < text.len() && text[at] != quote {
        at += if text[at] == '\\' { 2 } else { 1 };
    }
    at + 1
}

mod the_checker {
    use super::{table, violations};

    const LIB: &str = "//! | room | owns | may import |\n//! |---|---|---|\n\
        //! | [`model`] | plain | nothing |\n//! | [`live`] | Redis | `model` |\n//! | [`store`] | SQL | `model` |\n\
        //! | [`http`] | routes | `live`, `model` |\n//! | [`app`] | all | all |\n";

    /// How many things are wrong with a file.
    fn count(file: &str, source: &str) -> usize {
        violations(&table(LIB), file, source).len()
    }

    #[test]
    fn reads_the_table() {
        let table = table(LIB);
        assert_eq!(table.len(), 5);
        assert!(table["model"].is_empty());
        assert_eq!(table["http"].iter().collect::<Vec<_>>(), ["live", "model"]);
        assert_eq!(table["app"].len(), 5);
    }

    #[test]
    fn lets_pass_what_the_table_allows() {
        assert_eq!(
            count("src/live/keys.rs", "use crate::model::UserId; use super::Error; use fred::prelude::*;"),
            0
        );
        assert_eq!(
            count("src/live/mod.rs", "mod tests { use super::*; use super::super::model::UserId; }"),
            0
        );
        assert_eq!(count("src/app/mod.rs", "use crate::{http, live::{keys, self}, store::*};"), 0);
        assert_eq!(
            count("src/model/a/b.rs", "pub(crate) use super::super::c; pub(in crate::model) fn f() {}"),
            0
        );
        assert_eq!(count("src/main.rs", "fn main() { presenced::app::run() }"), 0);
        assert_eq!(count("src/lib.rs", "pub mod live; pub use crate::live::Keys;"), 0);
    }

    #[test]
    fn finds_a_plain_import() {
        assert_eq!(count("src/live/keys.rs", "use crate::store::Store;"), 1);
        assert_eq!(count("src/live.rs", "use crate::store::Store;"), 1);
        assert_eq!(count("src/model/mod.rs", "pub use crate::live;"), 1);
    }

    #[test]
    fn finds_a_path_without_an_import() {
        assert_eq!(count("src/live/keys.rs", "fn f(_: &dyn crate::store::Store) {}"), 1);
        assert_eq!(
            count("src/live/keys.rs", "fn f() -> Vec::<crate::store::Row> { crate :: http :: f() }"),
            2
        );
    }

    #[test]
    fn opens_trees() {
        assert_eq!(count("src/live/keys.rs", "use crate::{model, store as sql, http::{Api, self}};"), 3);
        assert_eq!(count("src/live/keys.rs", "use {crate::model::A, crate::{store::{B, C}}, std::fmt};"), 2);
    }

    #[test]
    fn finds_a_way_out_through_super() {
        assert_eq!(count("src/live/mod.rs", "use super::store::Store;"), 1);
        assert_eq!(count("src/live/keys.rs", "use super::super::{model, store};"), 1);
        assert_eq!(count("src/live/keys.rs", "mod tests { use super::super::super::store::Store; }"), 1);
        assert_eq!(count("src/live/keys.rs", "fn f() { self::super::super::store::f() }"), 1);
    }

    #[test]
    fn finds_the_whole_crate() {
        assert_eq!(count("src/live/keys.rs", "use crate::*;"), 1);
        assert_eq!(count("src/live/keys.rs", "use crate as all;"), 1);
        assert_eq!(count("src/live/mod.rs", "use super::*;"), 1);
    }

    #[test]
    fn holds_crates_to_their_rooms() {
        assert_eq!(
            count(
                "src/http/mod.rs",
                "use axum::Router; fn f() { hyper::body::f(); fred::f(); sqlx::query(\"\") }"
            ),
            2
        );
        assert_eq!(count("src/live/keys.rs", "use ::axum; use {hyper_util as h, sqlx::{Pool}};"), 3);
        assert_eq!(count("src/app/mod.rs", "extern crate fred; #[derive(sqlx::FromRow)] struct A;"), 2);
        assert_eq!(count("src/main.rs", "use fred::prelude::*;"), 1);
    }

    #[test]
    fn lets_the_binary_call_app_alone() {
        assert_eq!(count("src/main.rs", "use presenced::{app, live::Keys};"), 1);
        assert_eq!(count("src/main.rs", "use presenced as all;"), 1);
    }

    #[test]
    fn reads_no_comments_and_literals() {
        let quiet = r##"
            //! crate::store::Store
            /* use crate::store; /* sqlx::f */ use crate::http; */
            fn f<'a>(_: &'a str) -> [char; 3] { ['"', '\'', '{'] }
            const A: &str = "crate::store \" sqlx::query";
            const B: &str = r#"crate::store " sqlx::query"#;
        "##;
        assert_eq!(count("src/live/keys.rs", quiet), 0);
        assert_eq!(count("src/live/keys.rs", &format!("{quiet} use crate::store;")), 1);
    }
}
