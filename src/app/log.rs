//! The log: one line an event on standard error, in which no text from outside can do harm.
//!
//! Messages and fields reach the log through `EscapedFields` alone, so that no call site can forget to escape a name, a
//! path or an error's text. The same holds for what dependencies log, and for panics.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::fmt::{self, Debug, Write as _};
use std::io::IsTerminal;

use tracing::field::{Field, Visit};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::field::RecordFields;
use tracing_subscriber::fmt::{FormatFields, format::Writer};

use crate::model::{Escaped, EscapingWriter};

/// What is logged where `PRESENCE_LOG` is not set.
const DEFAULT: &str = "info,fred=error";

/// Begins to log, as `PRESENCE_LOG` asks for; panics are logged too.
///
/// # Errors
/// What is wrong with `PRESENCE_LOG`.
pub fn init() -> Result<(), String> {
    let wanted = std::env::var("PRESENCE_LOG").unwrap_or_else(|_| DEFAULT.to_string());
    let filter = EnvFilter::try_new(&wanted).map_err(|error| {
        format!("PRESENCE_LOG must be a filter such as info, debug or presenced=debug: {error}")
    })?;
    let coloured = std::io::stderr().is_terminal();
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    log.with_target(false).with_ansi(coloured).fmt_fields(EscapedFields).init();
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map_or_else(|| "an unknown place".to_owned(), ToString::to_string);
        let text = Escaped(panic.payload_as_str().unwrap_or("no text"));
        eprintln!("presenced: a thread panicked at {place}: {text}");
        let trace = Backtrace::capture();
        if trace.status() == BacktraceStatus::Captured {
            eprintln!("{trace}");
        }
    }));
    Ok(())
}

/// Writes the fields of an event or a span: the message, then `name=value`, every value escaped.
#[derive(Debug, Clone, Copy)]
struct EscapedFields;

impl<'writer> FormatFields<'writer> for EscapedFields {
    fn format_fields<R: RecordFields>(&self, writer: Writer<'writer>, fields: R) -> fmt::Result {
        let mut line = Line { writer, begun: false, outcome: Ok(()) };
        fields.record(&mut line);
        line.outcome
    }
}

/// The fields written so far.
struct Line<'writer> {
    writer: Writer<'writer>,
    begun: bool,
    outcome: fmt::Result,
}

impl Line<'_> {
    fn write(&mut self, name: &str, value: &dyn Debug) -> fmt::Result {
        if std::mem::replace(&mut self.begun, true) {
            self.writer.write_char(' ')?;
        }
        if name != "message" {
            let (dim, plain) =
                if self.writer.has_ansi_escapes() { ("\u{1b}[2m", "\u{1b}[0m") } else { ("", "") };
            write!(self.writer, "{dim}{name}={plain}")?;
        }
        write!(EscapingWriter(&mut self.writer), "{value:?}")
    }
}

impl Visit for Line<'_> {
    fn record_str(&mut self, field: &Field, value: &str) {
        // A text in quotes, so that it cannot pass for several fields.
        if field.name() == "message" {
            self.record_debug(field, &format_args!("{value}"));
        } else {
            self.record_debug(field, &value);
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        // Metadata of the `log` crate is part of the event already.
        if self.outcome.is_ok() && !field.name().starts_with("log.") {
            self.outcome = self.write(field.name().trim_start_matches("r#"), value);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::{Arc, Mutex};

    use tracing_subscriber::fmt::MakeWriter;

    use super::*;

    /// A log that a test reads.
    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Written {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl MakeWriter<'_> for Written {
        type Writer = Self;
        fn make_writer(&self) -> Self {
            self.clone()
        }
    }

    fn logged(event: impl FnOnce()) -> String {
        let written = Written::default();
        let log = tracing_subscriber::fmt().with_writer(written.clone()).with_target(false).without_time();
        tracing::subscriber::with_default(log.with_ansi(false).fmt_fields(EscapedFields).finish(), event);
        let bytes = written.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn a_line_holds_its_message_and_its_fields() {
        let line = logged(
            || tracing::info!(user = 7, name = "ada", error = %"no way", ?DEFAULT, "it went {}", "well"),
        );
        assert_eq!(line, " INFO it went well user=7 name=\"ada\" error=no way DEFAULT=\"info,fred=error\"\n");
    }

    /// Whose `Debug` escapes nothing.
    struct Unquoted(&'static str);

    impl Debug for Unquoted {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(self.0)
        }
    }

    #[test]
    fn no_way_of_logging_lets_a_character_through_that_could_forge_a_line() {
        let harm = "\u{1b}[2J\r\n INFO forged\u{202e}";
        let error = io::Error::other(harm);
        let lines = logged(|| {
            tracing::warn!("a message with {harm}");
            tracing::warn!(text = harm, shown = %harm, debug = ?harm, "fields");
            tracing::warn!(unquoted = ?Unquoted(harm), %error, "texts of errors");
            tracing::warn!(error = &error as &dyn std::error::Error, "an error as it is");
            tracing::warn_span!("a span", path = %harm).in_scope(|| tracing::warn!("inside of a span"));
        });
        assert_eq!(lines.lines().count(), 5, "{lines}");
        assert!(lines.chars().all(|sign| sign == '\n' || Escaped(sign).to_string() == sign.to_string()));
        assert!(!lines.contains('\u{1b}') && lines.matches("forged").count() == 8, "{lines}");
    }
}
