//! How the values of settings are read: each parser's refusal says what the value may be.

use std::net::{SocketAddr, ToSocketAddrs};
use std::str::FromStr;
use std::time::Duration;

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
    }

    #[test]
    fn times_out_of_bounds_are_refused_with_the_bounds() {
        for text in ["0s", "999ms", "61m", "", "soon", "-1"] {
            assert!(ttl(text).unwrap_err().contains("from 1s to 1h"), "{text}");
        }
        assert!(flush("10ms").is_err());
    }
}
