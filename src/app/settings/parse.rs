//! How the values of settings are read: each parser's refusal says what the value may be.

use std::net::{SocketAddr, ToSocketAddrs};
use std::str::FromStr;
use std::time::Duration;

use super::sessions::MaxAge;
use super::{Secret, SecretList};

type Read<T> = Result<T, String>;

/// Reads `90s`, `15m`, `7d`, `1h 30m`, or plain seconds, within bounds.
fn span(text: &str, least: &str, most: &str) -> Read<Duration> {
    let read = |text: &str| match u64::from_str(text) {
        Ok(seconds) => Ok(Duration::from_secs(seconds)),
        Err(_) => humantime::parse_duration(text),
    };
    let (Ok(low), Ok(high)) = (read(least), read(most)) else {
        return Err("its bounds cannot be read".into());
    };
    match read(text) {
        Ok(span) if (low..=high).contains(&span) => Ok(span),
        _ => Err(format!("must be a time from {least} to {most}, such as 90s, 15m or 1h")),
    }
}

pub(super) fn ttl(text: &str) -> Read<Duration> {
    span(text, "1s", "1h")
}

pub(super) fn access_ttl(text: &str) -> Read<Duration> {
    span(text, "1s", "1d")
}

pub(super) fn refresh_ttl(text: &str) -> Read<Duration> {
    span(text, "1s", "365d")
}

pub(super) fn grace(text: &str) -> Read<Duration> {
    span(text, "0s", "5m")
}

pub(super) fn session_max_age(text: &str) -> Read<MaxAge> {
    if text == "off" {
        return Ok(MaxAge(None));
    }
    span(text, "1s", "3650d").map(|age| MaxAge(Some(age))).map_err(|error| format!("{error}, or off"))
}

pub(super) fn jwks_refresh(text: &str) -> Read<Duration> {
    span(text, "1s", "1d")
}

pub(super) fn shutdown_timeout(text: &str) -> Read<Duration> {
    span(text, "1s", "5m")
}

pub(super) fn flush(text: &str) -> Read<Duration> {
    match span(text, "0s", "1h") {
        Ok(span) if span.is_zero() || span >= Duration::from_secs(1) => Ok(span),
        _ => Err("must be 0 to turn it off, or a time from 1s to 1h".into()),
    }
}

/// clap would print a refused value; a secret's parser never fails, and the settings' `check` says what is wrong.
#[allow(clippy::unnecessary_wraps)]
pub(super) fn secret(text: &str) -> Read<Secret> {
    Ok(Secret::of_setting(text, None))
}

/// As [`secret`], for several.
#[allow(clippy::unnecessary_wraps)]
pub(super) fn secrets(text: &str) -> Read<SecretList> {
    Ok(SecretList::of_setting(text, None))
}

/// Reads what key names begin with: nothing that a pattern, a cluster's hash tag or the key names themselves give a meaning.
pub(super) fn prefix(text: &str) -> Read<String> {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    if (1..=64).contains(&text.len()) && text.bytes().all(is_plain) {
        return Ok(text.to_string());
    }
    Err("must be 1 to 64 letters, digits, '.', '_' or '-', such as presence or staging".into())
}

/// Reads `127.0.0.1:8000` or `localhost:8000`.
pub(super) fn address(text: &str) -> Read<SocketAddr> {
    let found = text.to_socket_addrs().ok().and_then(|mut found| found.next());
    found.ok_or_else(|| "must be an address and a port, such as 127.0.0.1:8000".to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_with_a_unit_or_as_seconds() {
        assert_eq!(ttl("120s"), Ok(Duration::from_mins(2)));
        assert_eq!(ttl("2"), Ok(Duration::from_secs(2)));
        assert_eq!(refresh_ttl("7d"), Ok(Duration::from_hours(168)));
        assert_eq!(flush("0"), Ok(Duration::ZERO));
        assert_eq!(session_max_age("off"), Ok(MaxAge(None)));
        assert_eq!(session_max_age("30d"), Ok(MaxAge(Some(Duration::from_hours(720)))));
    }

    #[test]
    fn a_prefix_holds_nothing_that_key_names_give_a_meaning() {
        assert_eq!(prefix("staging-2.eu_west"), Ok("staging-2.eu_west".into()));
        for text in ["", "a:b", "{a}", "a b", "a*", "ä", &"x".repeat(65)] {
            assert!(prefix(text).unwrap_err().contains("1 to 64"), "{text}");
        }
    }

    #[test]
    fn times_out_of_bounds_are_refused_with_the_bounds() {
        for text in ["0s", "999ms", "61m", "", "soon", "-1"] {
            assert!(ttl(text).unwrap_err().contains("from 1s to 1h"), "{text}");
        }
        assert!(flush("10ms").is_err());
        assert!(session_max_age("0").unwrap_err().contains("from 1s to 3650d"));
    }
}
