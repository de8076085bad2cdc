//! Where the value of a setting comes from: a flag, a variable or, for each secret, a file.
//!
//! Every setting that is a [`Secret`] or a [`SecretList`] can be read from a file by that alone: beside `PRESENCE_X` and `--x`
//! there are `PRESENCE_X_FILE` and `--x-file`, made here from the setting's own names. A secret keeps the name that it was set
//! by, so that a message about it names what the operator wrote.

use std::any::TypeId;
use std::env;
use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;

use clap::builder::Resettable;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, Command, CommandFactory, FromArgMatches};

use super::secret::{Secret, SecretList, read_file, without_line_ends};

type Result<T> = std::result::Result<T, Box<clap::Error>>;

const ABOUT_SECRETS: &str = "A setting that is a secret (those with a …_FILE) can be read from a file: PRESENCE_JWT_SECRET_FILE=/run/secrets/jwt, \
     or --jwt-secret-file. Set either the value or the file. Line ends at the end of a secret are not part of it, whether \
     it comes from a file or not. Where its variable is empty it counts as not set.";

/// A setting that is a secret.
struct SecretArg {
    id: String,
    flag: String,
    variable: String,
    is_list: bool,
}

/// What a secret is set to.
enum Value {
    /// Nothing.
    Unset,
    /// What the flag or the variable holds; with its name.
    Given(Arc<str>),
    /// What a file holds; with the name of the setting and of the file.
    InFile(Arc<str>, String),
}

/// Reads these words and the environment, as `clap::Parser` does, with the secrets that are in files.
///
/// # Errors
/// What is wrong, and with which flag, variable or file; also the texts of `--help` and `--version`.
pub fn read<P: CommandFactory + FromArgMatches>(words: impl IntoIterator<Item = OsString>) -> Result<P> {
    let words: Vec<OsString> = words.into_iter().collect();
    let command = P::command();
    let secrets: Vec<SecretArg> = command.get_arguments().filter_map(SecretArg::of).collect();
    let mut command = with_files(command, &secrets);
    let parse = |command: &Command| {
        let matches = command.clone().try_get_matches_from(&words);
        matches.map_err(|error| Box::new(naming_the_variable(error, command, &words)))
    };
    let matches = parse(&command)?;
    for secret in &secrets {
        let value = secret.value(&matches).map_err(|why| {
            Box::new(clap::Error::raw(ErrorKind::ValueValidation, format!("{why}\n")).with_cmd(&command))
        })?;
        command = command.mut_arg(&secret.id, |arg| secret.set_to(value, arg));
    }
    let mut matches = parse(&command)?;
    P::from_arg_matches_mut(&mut matches).map_err(|error| Box::new(error.with_cmd(&command)))
}

/// The command with a flag for the file of each secret; the help of the secret names it.
fn with_files(command: Command, secrets: &[SecretArg]) -> Command {
    let is_secret = |arg: &Arg| secrets.iter().find(|secret| arg.get_id() == secret.id.as_str());
    let files = secrets.iter().map(|secret| {
        Arg::new(secret.file_id())
            .long(secret.file_flag())
            .env(secret.file_variable())
            .value_name("FILE")
            // An empty one counts as not set, and `PathBuf` has no such value.
            .value_parser(clap::value_parser!(OsString))
            .global(true)
            .hide(true)
    });
    command
        .mut_args(|arg| match is_secret(&arg) {
            Some(secret) => {
                let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
                arg.help(format!("{help} [or in a file: {}]", secret.file_variable()))
            }
            None => arg,
        })
        .args(files)
        .after_help(ABOUT_SECRETS)
}

impl SecretArg {
    fn of(arg: &Arg) -> Option<Self> {
        let kind = arg.get_value_parser().type_id();
        let is_list = kind == TypeId::of::<SecretList>();
        if !is_list && kind != TypeId::of::<Secret>() {
            return None;
        }
        Some(Self {
            id: arg.get_id().to_string(),
            flag: arg.get_long()?.to_owned(),
            variable: arg.get_env()?.to_str()?.to_owned(),
            is_list,
        })
    }

    fn file_id(&self) -> String {
        format!("{}_file", self.id)
    }

    fn file_flag(&self) -> String {
        format!("{}-file", self.flag)
    }

    fn file_variable(&self) -> String {
        format!("{}_FILE", self.variable)
    }

    /// What it is set to.
    fn value(&self, matches: &ArgMatches) -> std::result::Result<Value, String> {
        let given = set_by(matches, &self.id, &self.flag, &self.variable)?;
        let file = set_by(matches, &self.file_id(), &self.file_flag(), &self.file_variable())?;
        match (given, file) {
            (Some((one, _)), Some((other, _))) => {
                Err(format!("{one} and {other} are both set: leave one of them out"))
            }
            (Some((name, _)), None) => Ok(Value::Given(name.into())),
            (None, Some((name, path))) => {
                let path = PathBuf::from(path);
                let text = read_file(&path)
                    .map_err(|why| format!("{name} names the file {}, which {why}", path.display()))?;
                Ok(Value::InFile(format!("{name} ({})", path.display()).into(), text))
            }
            (None, None) => Ok(Value::Unset),
        }
    }

    /// The setting as it is to be read.
    fn set_to(&self, value: Value, arg: Arg) -> Arg {
        match value {
            Value::Unset => arg.env(Resettable::Reset),
            Value::Given(name) if self.is_list => arg.value_parser(move |text: &str| {
                Ok::<_, String>(SecretList::of_setting(text, Some(name.clone())))
            }),
            Value::Given(name) => arg.value_parser(move |text: &str| {
                Ok::<_, String>(Secret::of_setting(text, Some(name.clone())))
            }),
            // The default of an argument that is not given: only its parser knows what the file holds.
            Value::InFile(name, text) => {
                let arg = arg.env(Resettable::Reset).default_value("").hide_default_value(true);
                if self.is_list {
                    let list = SecretList::of_setting(&text, Some(name));
                    arg.value_parser(move |_: &str| Ok::<_, String>(list.clone()))
                } else {
                    let secret = Secret::of_setting(&text, Some(name));
                    arg.value_parser(move |_: &str| Ok::<_, String>(secret.clone()))
                }
            }
        }
    }
}

/// The flag or variable that an argument is set by, and its value. An empty variable sets nothing; an empty flag, which has been
/// typed, is refused.
fn set_by(
    matches: &ArgMatches,
    id: &str,
    flag: &str,
    variable: &str,
) -> std::result::Result<Option<(String, OsString)>, String> {
    let value = matches.get_raw(id).and_then(|mut values| values.next()).unwrap_or_default();
    let is_empty = value.to_str().is_some_and(|text| without_line_ends(text).is_empty());
    match matches.value_source(id) {
        Some(ValueSource::CommandLine) if is_empty => Err(format!("--{flag} is empty: leave it out")),
        Some(ValueSource::CommandLine) => Ok(Some((format!("--{flag}"), value.to_owned()))),
        Some(ValueSource::EnvVariable) if !is_empty => Ok(Some((variable.to_owned(), value.to_owned()))),
        _ => Ok(None),
    }
}

/// The same error, which names the variable too where the refused value came from one: clap names the flag alone.
fn naming_the_variable(mut error: clap::Error, command: &Command, words: &[OsString]) -> clap::Error {
    let Some(ContextValue::String(named)) = error.get(ContextKind::InvalidArg) else { return error };
    // `--flag <VALUE>`
    let flag = named.split(' ').next().unwrap_or_default();
    let is_typed = words.iter().any(|word| word.to_string_lossy().split('=').next() == Some(flag));
    let is_named = |arg: &&Arg| arg.get_long().is_some_and(|long| flag.strip_prefix("--") == Some(long));
    let variable = command.get_arguments().find(is_named).and_then(Arg::get_env);
    if let Some(variable) = variable.filter(|variable| !is_typed && env::var_os(variable).is_some()) {
        let tip = format!("the value comes from the variable {}", variable.to_string_lossy());
        error.insert(ContextKind::Suggested, ContextValue::StyledStrs(vec![tip.into()]));
    }
    error
}

#[cfg(test)]
#[path = "sources_tests.rs"]
mod tests;
