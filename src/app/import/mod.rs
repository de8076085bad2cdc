//! `presenced import-users`: the accounts of an existing product, with their password hashes.

mod csv_file;
mod json_file;

use std::fs::File;
use std::io::{BufReader, Write as _};
use std::path::Path;
use std::process::ExitCode;

use anyhow::Context as _;

use super::backing;
use super::cli::ImportUsers;
use super::settings::{Secret, Settings};
use crate::identity::{Candidate, Column, Fate, Identity, Limits};
use crate::model::Escaped;

/// The most rows of one file: all of them are in memory, some hundreds of bytes each, so that every complaint is heard
/// before anything is written.
const MOST_ROWS: usize = 1_000_000;

/// Columns of Django's that presenced has no use for.
const IGNORED: [&str; 6] =
    ["first_name", "last_name", "last_login", "groups", "user_permissions", "last_seen"];

/// What a file holds.
#[derive(Debug, Default)]
struct Contents {
    candidates: Vec<Candidate>,
    /// What was left aside, for the operator to know.
    notes: Vec<String>,
}

impl Contents {
    fn add(&mut self, candidate: Candidate) -> Result<(), String> {
        if self.candidates.len() >= MOST_ROWS {
            return Err(format!("holds more than {MOST_ROWS} rows: split it"));
        }
        self.candidates.push(candidate);
        Ok(())
    }

    fn note(&mut self, note: String) {
        if !self.notes.contains(&note) {
            self.notes.push(note);
        }
    }
}

/// What a name in the file stands for.
enum Named {
    Column(Column),
    Ignored,
    Unknown(String),
}

fn column(name: &str) -> Named {
    if let Some((_, column)) = Column::NAMED.iter().find(|(known, _)| *known == name) {
        return Named::Column(*column);
    }
    if IGNORED.contains(&name) {
        return Named::Ignored;
    }
    let known: Vec<&str> = Column::NAMED.iter().map(|(known, _)| *known).collect();
    Named::Unknown(format!(
        "'{name}' is no column: rename it to one of {}, or leave it out",
        known.join(", ")
    ))
}

/// Reads the file, imports it and prints the report. Exit code 1 where a row was refused.
pub(super) async fn import_users(settings: &Settings, how: ImportUsers) -> anyhow::Result<ExitCode> {
    let Contents { candidates, notes } = read(&how.file)?;
    let store = backing::store_now(settings).await?;
    // No token is signed here.
    let secret = Secret::new(backing::random_text()?);
    let identity = Identity::new(store, &settings.tokens.identity(&secret)?, Limits::off());
    let fates = identity.import(candidates, how.dry_run).await.context(
        "nothing was imported; where somebody has added one of these accounts meanwhile, try again",
    )?;

    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    for note in notes {
        writeln!(out, "note: {}", Escaped(note))?;
    }
    let (mut added, mut unchanged, mut refused) = (0, 0, 0);
    for (place, fate) in &fates {
        match fate {
            Fate::Added(what) => {
                added += 1;
                writeln!(out, "{}: new: {}", Escaped(place), Escaped(what))?;
            }
            Fate::Unchanged(what) => {
                unchanged += 1;
                writeln!(out, "{}: unchanged: {}", Escaped(place), Escaped(what))?;
            }
            Fate::Refused(complaints) => {
                refused += 1;
                for complaint in complaints {
                    writeln!(out, "{}: refused: {}", Escaped(place), Escaped(complaint))?;
                }
            }
        }
    }
    let counts = format!("{added} new, {unchanged} unchanged, {refused} refused");
    match (refused, how.dry_run) {
        (0, false) => writeln!(out, "imported: {counts}")?,
        (0, true) => writeln!(out, "nothing was imported, for it is a dry run: {counts}")?,
        _ => writeln!(out, "nothing was imported: {counts}; correct those and import the whole file again")?,
    }
    out.flush()?;
    Ok(if refused == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn read(path: &Path) -> anyhow::Result<Contents> {
    let shown = path.display();
    let reads = match path.extension().and_then(|extension| extension.to_str()) {
        Some("csv") => csv_file::read,
        Some("json") => json_file::read,
        _ => anyhow::bail!("{shown} must end in .csv or .json"),
    };
    let file = File::open(path).with_context(|| format!("cannot read {shown}"))?;
    reads(BufReader::new(file)).map_err(|reason| anyhow::anyhow!("{shown} {reason}"))
}
