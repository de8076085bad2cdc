//! Accounts in a JSON file: a list of objects, or what `manage.py dumpdata auth.user` writes.

use std::fmt;
use std::fs::File;
use std::io::BufReader;

use serde::Deserializer as _;
use serde::de::{self, SeqAccess, Visitor};
use serde_json::{Map, Value};

use super::{Contents, Named, column};
use crate::identity::Candidate;

/// One after the other, so that the file is never in memory as a whole.
pub(super) fn read(file: BufReader<File>) -> Result<Contents, String> {
    struct Rows;
    impl<'de> Visitor<'de> for Rows {
        type Value = Contents;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a list of accounts")
        }
        fn visit_seq<A: SeqAccess<'de>>(self, mut rows: A) -> Result<Contents, A::Error> {
            let mut contents = Contents::default();
            let mut number = 0;
            while let Some(row) = rows.next_element::<Value>()? {
                number += 1;
                take(&mut contents, format!("item {number}"), row).map_err(de::Error::custom)?;
            }
            Ok(contents)
        }
    }
    let mut reader = serde_json::Deserializer::from_reader(file);
    let contents = reader.deserialize_seq(Rows).and_then(|contents| reader.end().map(|()| contents));
    contents.map_err(|error| format!("cannot be imported: {error}"))
}

fn take(contents: &mut Contents, place: String, row: Value) -> Result<(), String> {
    let mut candidate = Candidate::new(place);
    let Value::Object(mut row) = row else {
        candidate.complain("it must be an object with the fields of one account".into());
        return contents.add(candidate);
    };
    if let (Some(Value::String(model)), Some(Value::Object(_))) = (row.get("model"), row.get("fields")) {
        // Other models come along where more than the users was dumped.
        if !model.rsplit('.').next().is_some_and(|name| name.eq_ignore_ascii_case("user")) {
            contents.note(format!("objects of the model '{model}' are ignored"));
            return Ok(());
        }
        let id = row.remove("pk");
        row = match row.remove("fields") {
            Some(Value::Object(fields)) => fields,
            _ => Map::new(),
        };
        if let Some(id) = id {
            row.insert("id".into(), id);
        }
    }
    for (name, value) in row {
        match column(&name) {
            Named::Column(column) => match text(value) {
                Some(text) => candidate.set(column, text),
                None => candidate.complain(format!("{name} must be a text, a number, true, false or null")),
            },
            Named::Ignored => contents.note(format!("the field '{name}' is ignored")),
            Named::Unknown(complaint) => candidate.complain(complaint),
        }
    }
    contents.add(candidate)
}

fn text(value: Value) -> Option<String> {
    match value {
        Value::Null => Some(String::new()),
        Value::String(text) => Some(text),
        Value::Bool(_) | Value::Number(_) => Some(value.to_string()),
        Value::Array(_) | Value::Object(_) => None,
    }
}
