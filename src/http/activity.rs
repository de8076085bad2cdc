//! The request header `X-Presence-Activity`: a way to read without counting as present.
//!
//! Every authenticated request is an activity of its user. A monitoring account, or a probe that only reads, sends
//! `X-Presence-Activity: none`, and is checked like any other caller, but its presence stays as it is.

use axum::http::{HeaderMap, HeaderName};

use super::problem::Problem;
use crate::identity::FieldErrors;
use crate::presence::Activity;

/// As HTTP/2 has it, and `http` compares it.
static NAME: HeaderName = HeaderName::from_static("x-presence-activity");
/// As people write it.
const SHOWN: &str = "X-Presence-Activity";

/// What the headers of a request say of its activity.
///
/// # Errors
/// 400 that names the header where its value is not `none`, or where it is given twice.
pub fn activity(headers: &HeaderMap) -> Result<Activity, Problem> {
    let mut values = headers.get_all(&NAME).iter();
    match (values.next(), values.next()) {
        (None, _) => Ok(Activity::Counts),
        (Some(value), None) if value.as_bytes().trim_ascii().eq_ignore_ascii_case(b"none") => {
            Ok(Activity::DoesNotCount)
        }
        _ => Err(refused("must be 'none', once, or left out")),
    }
}

/// Refuses the header where a request is nothing but an activity.
///
/// # Errors
/// 400 that names the header.
pub fn must_count(headers: &HeaderMap) -> Result<(), Problem> {
    if headers.contains_key(&NAME) {
        return Err(refused(
            "cannot be given with a heartbeat, which is an activity by its nature: leave it out",
        ));
    }
    Ok(())
}

fn refused(complaint: &str) -> Problem {
    Problem::bad_request(FieldErrors::one(SHOWN, complaint))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(values: &[&str]) -> Result<Activity, u16> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(&NAME, value.parse().unwrap());
        }
        assert_eq!(must_count(&headers).is_ok(), values.is_empty());
        activity(&headers).map_err(|problem| problem.status().as_u16())
    }

    #[test]
    fn only_none_is_taken() {
        assert_eq!(of(&[]), Ok(Activity::Counts));
        for none in ["none", " none ", "NONE"] {
            assert_eq!(of(&[none]), Ok(Activity::DoesNotCount), "{none:?}");
        }
        for other in [&[""][..], &["no"], &["true"], &["none, none"], &["none", "none"], &["none", "x"]] {
            assert_eq!(of(other), Err(400), "{other:?}");
        }
    }
}
