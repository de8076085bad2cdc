//! Instants as Redis tells them: whole milliseconds since the Unix epoch.

use std::fmt;

use chrono::{DateTime, Datelike, NaiveDate, SecondsFormat, Timelike, Utc};

/// The length of an instant as it is written.
const WRITTEN: usize = 24;

/// Milliseconds since 1970-01-01T00:00:00Z by Redis's clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Millis(pub i64);

impl Millis {
    /// This instant as a UTC date; the far end of time where it lies beyond what a date can hold.
    pub fn to_utc(self) -> DateTime<Utc> {
        DateTime::from_timestamp_millis(self.0).unwrap_or(DateTime::<Utc>::MAX_UTC)
    }

    /// The millisecond in which `at` lies.
    pub fn from_utc(at: DateTime<Utc>) -> Self {
        Self(at.timestamp_millis())
    }

    /// Reads `2026-01-15T10:30:00.123Z`, the one form in which instants are written here; `None` for any other text.
    pub fn parse(text: &str) -> Option<Self> {
        let bytes: &[u8; WRITTEN] = text.as_bytes().try_into().ok()?;
        let number = |range: std::ops::Range<usize>| {
            bytes[range]
                .iter()
                .try_fold(0, |sum, byte| byte.is_ascii_digit().then(|| sum * 10 + u32::from(byte - b'0')))
        };
        let signs = [(4, b'-'), (7, b'-'), (10, b'T'), (13, b':'), (16, b':'), (19, b'.'), (23, b'Z')];
        if signs.iter().any(|(at, sign)| bytes[*at] != *sign) {
            return None;
        }
        let year = i32::try_from(number(0..4)?).ok()?;
        let date = NaiveDate::from_ymd_opt(year, number(5..7)?, number(8..10)?)?;
        let time =
            date.and_hms_milli_opt(number(11..13)?, number(14..16)?, number(17..19)?, number(20..23)?)?;
        Some(Self(time.and_utc().timestamp_millis()))
    }

    /// This instant as it is written; `None` beyond the years of four digits. Lists write thousands a second.
    fn written(self) -> Option<[u8; WRITTEN]> {
        let at = DateTime::from_timestamp_millis(self.0)?;
        let year = u32::try_from(at.year()).ok().filter(|year| *year < 10_000)?;
        let mut text = *b"0000-00-00T00:00:00.000Z";
        let mut put = |range: std::ops::Range<usize>, mut number: u32| {
            for byte in text[range].iter_mut().rev() {
                *byte += (number % 10) as u8;
                number /= 10;
            }
        };
        put(0..4, year);
        put(5..7, at.month());
        put(8..10, at.day());
        put(11..13, at.hour());
        put(14..16, at.minute());
        put(17..19, at.second());
        put(20..23, at.timestamp_subsec_millis());
        Some(text)
    }

    /// This instant plus a span in milliseconds.
    #[must_use]
    pub const fn plus(self, span_ms: i64) -> Self {
        Self(self.0.saturating_add(span_ms))
    }
}

/// RFC 3339 in UTC with three decimals: `2026-01-15T10:30:00.123Z`.
impl fmt::Display for Millis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let written = self.written();
        match written.as_ref().and_then(|text| std::str::from_utf8(text).ok()) {
            Some(text) => f.write_str(text),
            None => f.write_str(&self.to_utc().to_rfc3339_opts(SecondsFormat::Millis, true)),
        }
    }
}

impl serde::Serialize for Millis {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn an_instant_is_written_as_rfc_3339_has_it_and_read_back(ms in -62_167_219_200_000i64..253_402_300_800_000) {
            let text = Millis(ms).to_string();
            prop_assert_eq!(&text, &Millis(ms).to_utc().to_rfc3339_opts(SecondsFormat::Millis, true));
            prop_assert_eq!(Millis::parse(&text), Some(Millis(ms)));
        }
    }

    #[test]
    fn what_is_written_otherwise_is_no_instant() {
        for text in [
            "",
            "2026-01-15T10:30:00Z",
            "2026-01-15T10:30:00.12Z",
            "2026-01-15 10:30:00.120Z",
            "2026-13-15T10:30:00.120Z",
            "2026-01-15T10:30:61.120Z",
            "2026-01-15T10:30:00.12+Z",
            "2026-02-30T10:30:00.120Z",
            "2026-01-15T10:30:00.é0Z",
        ] {
            assert_eq!(Millis::parse(text), None, "{text}");
        }
        for far in [i64::MIN, -62_167_219_200_001, 253_402_300_800_000, i64::MAX] {
            assert_eq!(
                Millis(far).to_string(),
                Millis(far).to_utc().to_rfc3339_opts(SecondsFormat::Millis, true)
            );
        }
    }

    #[test]
    fn an_instant_is_written_with_three_decimals_and_a_z() {
        assert_eq!(Millis(1_768_473_000_120).to_string(), "2026-01-15T10:30:00.120Z");
    }
}
