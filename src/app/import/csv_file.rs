//! Accounts in a CSV file: RFC 4180, UTF-8, the first line names the columns.

use std::fs::File;
use std::io::BufReader;

use csv::{ErrorKind, ReaderBuilder, StringRecord};

use super::{Contents, Named, column};
use crate::identity::{Candidate, Column};

pub(super) fn read(file: BufReader<File>) -> Result<Contents, String> {
    let mut reader = ReaderBuilder::new().from_reader(file);
    let header = reader.headers().map_err(|error| format!("cannot be read as CSV: {error}"))?.clone();
    let mut contents = Contents::default();
    let (mut columns, mut unknown) = (Vec::new(), Vec::new());
    for name in header.iter().map(str::trim) {
        match column(name) {
            Named::Column(column) if columns.contains(&Some(column)) => {
                unknown.push(format!("the column '{name}' is there twice: leave one out"));
            }
            Named::Column(column) => columns.push(Some(column)),
            Named::Ignored => {
                contents.note(format!("the column '{name}' is ignored"));
                columns.push(None);
            }
            Named::Unknown(complaint) => unknown.push(complaint),
        }
    }
    if !unknown.is_empty() {
        return Err(format!("cannot be imported: {}", unknown.join("; ")));
    }
    if !columns.contains(&Some(Column::Username)) {
        return Err("must have a first line that names the columns, 'username' among them".into());
    }

    let mut record = StringRecord::new();
    loop {
        match reader.read_record(&mut record) {
            Ok(false) => return Ok(contents),
            Ok(true) => {
                let line = record.position().map_or(0, csv::Position::line);
                let mut candidate = Candidate::new(format!("line {line}"));
                for (column, text) in columns.iter().zip(&record) {
                    if let Some(column) = column {
                        candidate.set(*column, text.to_owned());
                    }
                }
                contents.add(candidate)?;
            }
            Err(error) => {
                let line = error.position().map_or(0, csv::Position::line);
                let mut candidate = Candidate::new(format!("line {line}"));
                match error.kind() {
                    ErrorKind::UnequalLengths { expected_len, len, .. } => candidate.complain(format!(
                        "there are {len} fields and not {expected_len}: are quotes missing around a comma?"
                    )),
                    ErrorKind::Utf8 { .. } => {
                        candidate.complain("it is not UTF-8: save the file as UTF-8".into());
                    }
                    _ => return Err(format!("cannot be read as CSV: {error}")),
                }
                contents.add(candidate)?;
            }
        }
    }
}
