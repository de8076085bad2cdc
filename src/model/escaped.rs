//! Text from outside, made safe for a log or a terminal.
//!
//! Names, user agents, paths and words found in Redis or SQL are chosen by others. Written as they are they could end a
//! log line and forge the next one, colour or erase a terminal (ANSI escapes), or turn the direction of the text around
//! them (UAX #9).

use std::fmt::{self, Display, Write};

/// Shows what it holds with every character escaped that could change how the text around it is read: `\n`, `\r`, `\t`,
/// and `\u{…}` for other control characters, bidirectional marks, line separators and invisible characters.
///
/// What it shows contains none of these, so escaping twice changes nothing.
#[derive(Debug, Clone, Copy)]
pub struct Escaped<T>(pub T);

/// A writer that escapes as [`Escaped`] does before it hands text on.
#[derive(Debug)]
pub struct EscapingWriter<W>(pub W);

impl<T: Display> Display for Escaped<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(EscapingWriter(f), "{}", self.0)
    }
}

impl<W: Write> Write for EscapingWriter<W> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let mut rest = text;
        // Nearly all text is plain, and is handed on in one piece.
        while let Some((at, sign)) = rest.char_indices().find(|(_, sign)| is_harmful(*sign)) {
            self.0.write_str(&rest[..at])?;
            match sign {
                '\n' => self.0.write_str("\\n")?,
                '\r' => self.0.write_str("\\r")?,
                '\t' => self.0.write_str("\\t")?,
                _ => write!(self.0, "\\u{{{:x}}}", u32::from(sign))?,
            }
            rest = &rest[at + sign.len_utf8()..];
        }
        self.0.write_str(rest)
    }
}

/// Control characters (C0, DEL, C1), the separators of lines and paragraphs, and the format characters of Unicode that
/// are invisible or change the direction of text. Joiners (U+200C, U+200D) are among them: they belong into names of
/// some scripts, and are still readable when escaped.
const fn is_harmful(sign: char) -> bool {
    matches!(
        sign,
        '\0'..='\u{1f}'
            | '\u{7f}'..='\u{9f}'
            | '\u{ad}'
            | '\u{34f}'
            | '\u{61c}'
            | '\u{115f}'..='\u{1160}'
            | '\u{17b4}'..='\u{17b5}'
            | '\u{180b}'..='\u{180f}'
            | '\u{200b}'..='\u{200f}'
            | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}'
            | '\u{3164}'
            | '\u{fe00}'..='\u{fe0f}'
            | '\u{feff}'
            | '\u{ffa0}'
            | '\u{fff0}'..='\u{fffb}'
            | '\u{1bca0}'..='\u{1bca3}'
            | '\u{1d173}'..='\u{1d17a}'
            | '\u{e0000}'..='\u{e0fff}'
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_could_change_the_text_around_it_is_escaped() {
        for (text, shown) in [
            ("ada", "ada"),
            ("", ""),
            ("a\nb\r\nc\td", r"a\nb\r\nc\td"),
            ("\u{1b}[2J\u{1b}]0;x\u{7}", r"\u{1b}[2J\u{1b}]0;x\u{7}"),
            ("\0\u{7f}\u{85}\u{9b}31m", r"\u{0}\u{7f}\u{85}\u{9b}31m"),
            ("\u{202e}nimda\u{2066}", r"\u{202e}nimda\u{2066}"),
            ("a\u{2028}b\u{2029}", r"a\u{2028}b\u{2029}"),
            ("\u{200b}\u{feff}\u{e0041}", r"\u{200b}\u{feff}\u{e0041}"),
            ("Ünïcode 😀 مرحبا \\ \" '", "Ünïcode 😀 مرحبا \\ \" '"),
        ] {
            assert_eq!(Escaped(text).to_string(), shown);
        }
    }

    #[test]
    fn escaping_twice_changes_nothing_and_no_control_character_passes() {
        for sign in ('\0'..=char::MAX).filter(|sign| sign.is_control() || is_harmful(*sign)) {
            let once = Escaped(sign).to_string();
            assert!(once.chars().all(|shown| shown.is_ascii() && !shown.is_ascii_control()), "{once:?}");
            assert_eq!(Escaped(&once).to_string(), once);
        }
    }
}
