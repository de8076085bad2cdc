//! The house rules that no linter knows: short files, and Lua scripts that say what they take and give.

use std::{fs, path::Path};

/// Files stay below this many lines; the aim is 400.
const MOST_LINES: usize = 450;

/// What the header of a script says, each at the start of a comment line.
const HEADER: [&str; 5] = ["KEYS", "ARGV", "Reply", "Appends", "Cost"];

/// All files below `folder` (from the root of the project) with this extension; none where there is no folder.
pub fn files(folder: &str, extension: &str) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten() {
        let path = entry.unwrap().path();
        let name = path.to_str().unwrap();
        if path.is_dir() {
            found.extend(files(name, extension));
        } else if path.extension().is_some_and(|found| found == extension) {
            found.push(name.to_owned());
        }
    }
    found.sort();
    found
}

#[test]
fn no_file_is_too_long() {
    let all = [("src", "rs"), ("tests", "rs"), ("benches", "rs"), ("lua", "lua")]
        .map(|(folder, extension)| files(folder, extension));
    let long: Vec<String> = all
        .concat()
        .into_iter()
        .filter_map(|file| {
            let lines = fs::read_to_string(&file).unwrap().lines().count();
            (lines > MOST_LINES).then(|| format!("{file}: {lines} lines, {MOST_LINES} at most"))
        })
        .collect();
    assert!(long.is_empty(), "{}", long.join("\n"));
}

#[test]
fn every_lua_script_says_what_it_takes_and_gives() {
    let wrong: Vec<String> =
        files("lua", "lua").iter().flat_map(|file| lacks(file, &fs::read_to_string(file).unwrap())).collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// What the header of a Lua file lacks, a line each. Files in `lua/lib` are no scripts: they only say what they are for.
fn lacks(file: &str, source: &str) -> Vec<String> {
    let header: Vec<&str> =
        source.lines().map_while(|line| line.strip_prefix("--")).map(str::trim_start).collect();
    let mut lacks = Vec::new();
    if header
        .first()
        .is_none_or(|purpose| purpose.is_empty() || HEADER.iter().any(|part| purpose.starts_with(part)))
    {
        lacks.push(format!("{file}: does not begin with its purpose"));
    }
    if Path::new(file).parent() != Some(Path::new("lua/lib")) {
        let missing = HEADER.iter().filter(|part| !header.iter().any(|line| line.starts_with(*part)));
        lacks.extend(missing.map(|part| format!("{file}: the header has no line `-- {part}`")));
    }
    lacks
}

#[test]
fn a_whole_header_lacks_nothing() {
    let whole = "-- Ends a session.\n--\n-- KEYS[1]  a key\n-- ARGV[1]  a word\n-- Reply: 1\n-- Appends nothing\n-- Cost: O(1)\n\nlocal a";
    assert!(lacks("lua/leave.lua", whole).is_empty());
    assert!(lacks("lua/lib/words.lua", "-- What several scripts share.\nlocal a").is_empty());
}

#[test]
fn a_header_that_lacks_something_is_found() {
    assert_eq!(lacks("lua/leave.lua", "local a").len(), 6);
    assert_eq!(lacks("lua/leave.lua", "-- Ends a session.\nlocal a -- KEYS").len(), 5);
    assert_eq!(lacks("lua/leave.lua", "-- KEYS\n-- ARGV\n-- Reply\n-- Appends\n-- Cost\n").len(), 1);
    assert_eq!(lacks("lua/lib/words.lua", "local a").len(), 1);
}
