//! Errors as clients see them: RFC 9457 `application/problem+json`.
//!
//! Owns every mapping from a failure to a status and a text. `detail` is what existing clients show to people, so each
//! says what to do. A failure of this service or its dependencies is logged here, once, and its inside stays inside.

use std::time::Duration;

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use crate::identity::{FieldErrors, IdentityError, TokenError};
use crate::presence::PresenceError;

/// When to come again while a dependency is away.
const RETRY_UNAVAILABLE: Duration = Duration::from_secs(2);
/// When to come again while too many are waiting.
const RETRY_OVERLOADED: Duration = Duration::from_secs(1);

const LOG_IN: &str = "Log in to continue.";
const LOG_IN_AGAIN: &str = "Log in again.";

/// An error answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    status: StatusCode,
    detail: String,
    errors: FieldErrors,
    retry_after: Option<Duration>,
    challenge: &'static str,
    /// A stable word for programs.
    code: Option<&'static str>,
}

/// What a `401` asks for; RFC 6750 adds the error only where a token was given.
const CHALLENGE: &str = r#"Bearer realm="presenced""#;
const CHALLENGE_BAD_TOKEN: &str = r#"Bearer realm="presenced", error="invalid_token""#;

impl Problem {
    /// A problem of this status; `detail` says what to do.
    pub fn new(status: StatusCode, detail: impl Into<String>) -> Self {
        Self {
            status,
            detail: detail.into(),
            errors: FieldErrors::default(),
            retry_after: None,
            challenge: CHALLENGE,
            code: None,
        }
    }

    /// Its status.
    pub const fn status(&self) -> StatusCode {
        self.status
    }

    /// 400: a parameter or a word that is none of those allowed, named.
    pub fn bad_request(errors: FieldErrors) -> Self {
        Self::by_field(StatusCode::BAD_REQUEST, errors)
    }

    /// 422: a well-formed body whose fields are not what they must be.
    pub fn unprocessable(errors: FieldErrors) -> Self {
        Self::by_field(StatusCode::UNPROCESSABLE_ENTITY, errors)
    }

    /// 404: nothing by this path or id.
    pub fn not_found(what: &str) -> Self {
        Self::new(StatusCode::NOT_FOUND, format!("There is no such {what}."))
    }

    /// 401: no token.
    pub fn no_token() -> Self {
        Self::new(StatusCode::UNAUTHORIZED, format!("This needs an access token. {LOG_IN}"))
    }

    /// 401: a token whose account has been deleted.
    pub fn account_gone() -> Self {
        Self::bad_token(format!("The account of this token no longer exists. {LOG_IN}"))
    }

    /// 403: the administration is not for everybody.
    pub fn admins_only() -> Self {
        Self::new(StatusCode::FORBIDDEN, "Only administrators may do this.")
    }

    /// 403: a parameter that would show what only administrators may see.
    pub fn admins_only_parameter(name: &str) -> Self {
        Self {
            errors: FieldErrors::one(name, "is for administrators only"),
            ..Self::new(
                StatusCode::FORBIDDEN,
                format!("Only administrators may filter by '{name}'. Leave it out."),
            )
        }
    }

    /// 409: what would lock the caller out of the administration.
    pub fn own_account(what: &str) -> Self {
        let detail = format!("This is your own account: another administrator must {what}.");
        Self::new(StatusCode::CONFLICT, detail)
    }

    /// 409: a blocked account set to anything but offline.
    pub fn blocked_target() -> Self {
        let detail = "This account is blocked, so it can only be offline. Unblock it first.";
        Self::new(StatusCode::CONFLICT, detail)
    }

    /// 429: the caller has more under way at once than one user may.
    pub fn too_many_at_once() -> Self {
        Self::overloaded(StatusCode::TOO_MANY_REQUESTS)
    }

    /// 500. What went wrong has been logged where this is made.
    pub fn internal() -> Self {
        let detail = "Something went wrong on our side. Try again later.";
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, detail)
    }

    fn bad_token(detail: String) -> Self {
        Self { challenge: CHALLENGE_BAD_TOKEN, ..Self::new(StatusCode::UNAUTHORIZED, detail) }
    }

    fn by_field(status: StatusCode, errors: FieldErrors) -> Self {
        Self { detail: format!("Please correct: {errors}."), errors, ..Self::new(status, "") }
    }

    fn session_ended() -> Self {
        Self::bad_token(format!("This session has ended. {LOG_IN_AGAIN}"))
    }

    fn blocked() -> Self {
        let detail = "This account is blocked. Ask an administrator.";
        Self::new(StatusCode::FORBIDDEN, detail)
    }

    fn unavailable(who: &str) -> Self {
        let detail = format!("The service cannot reach {who} right now. Try again in a moment.");
        Self { retry_after: Some(RETRY_UNAVAILABLE), ..Self::new(StatusCode::SERVICE_UNAVAILABLE, detail) }
    }

    fn unrecorded() -> Self {
        let detail =
            "The record of this action could not be written, so nothing was changed. Try again in a moment.";
        Self { retry_after: Some(RETRY_UNAVAILABLE), ..Self::new(StatusCode::SERVICE_UNAVAILABLE, detail) }
    }

    /// 503: nobody gets in before the operator can.
    fn no_administrator() -> Self {
        let detail = "This service has no administrator yet, so nobody can register or sign in. Its operator must make one: \
                      the log says why there is none, and 'presenced create-user --role admin' makes one.";
        Self {
            retry_after: Some(RETRY_UNAVAILABLE),
            code: Some("no_administrator"),
            ..Self::new(StatusCode::SERVICE_UNAVAILABLE, detail)
        }
    }

    fn refuses() -> Self {
        let detail = "The presence store takes no changes right now. Try again in a moment.";
        Self { retry_after: Some(RETRY_UNAVAILABLE), ..Self::new(StatusCode::SERVICE_UNAVAILABLE, detail) }
    }

    fn too_many(retry_after: Duration) -> Self {
        // Whole seconds, and enough of them.
        let seconds = retry_after.as_millis().div_ceil(1_000).max(1);
        let seconds = u64::try_from(seconds).unwrap_or(u64::MAX);
        let unit = if seconds == 1 { "second" } else { "seconds" };
        Self {
            retry_after: Some(Duration::from_secs(seconds)),
            ..Self::new(
                StatusCode::TOO_MANY_REQUESTS,
                format!("Too many attempts. Try again in {seconds} {unit}."),
            )
        }
    }

    fn overloaded(status: StatusCode) -> Self {
        let detail = "Too many requests at once. Try again in a moment.";
        Self { retry_after: Some(RETRY_OVERLOADED), ..Self::new(status, detail) }
    }
}

impl From<TokenError> for Problem {
    fn from(error: TokenError) -> Self {
        let text = error.to_string();
        let (first, rest) = text.split_at(1);
        Self::bad_token(format!("{}{rest}. {LOG_IN_AGAIN}", first.to_uppercase()))
    }
}

impl From<PresenceError> for Problem {
    fn from(error: PresenceError) -> Self {
        match error {
            PresenceError::Blocked => Self::blocked(),
            PresenceError::SessionEnded => Self::session_ended(),
            PresenceError::NoSuchAccount => Self::not_found("account"),
            PresenceError::RedisUnavailable(reason) => {
                // Whoever reaches for it says so, once; a line a request would drown it.
                tracing::debug!(reason, "a request needs Redis, which is not available");
                Self::unavailable("its presence store")
            }
            PresenceError::RedisRefuses(reason) => {
                tracing::debug!(reason, "a request needs Redis, which takes no changes");
                Self::refuses()
            }
            PresenceError::Overloaded => Self::overloaded(StatusCode::SERVICE_UNAVAILABLE),
            PresenceError::Store(error) if error.is_busy() => {
                Self::overloaded(StatusCode::SERVICE_UNAVAILABLE)
            }
            PresenceError::Store(error) => from_store(error.is_unavailable(), &error),
        }
    }
}

impl From<IdentityError> for Problem {
    fn from(error: IdentityError) -> Self {
        match error {
            IdentityError::Invalid(errors) => Self::unprocessable(errors),
            IdentityError::Taken { field } => {
                let name = if field == "email" { "e-mail address" } else { field };
                Self {
                    errors: FieldErrors::one(field, "is taken"),
                    ..Self::new(StatusCode::CONFLICT, format!("This {name} is taken. Choose another."))
                }
            }
            IdentityError::WrongCredentials => Self::new(
                StatusCode::UNAUTHORIZED,
                "The username or the password is wrong. Check both and try again.",
            ),
            IdentityError::Blocked => Self::blocked(),
            IdentityError::NoAdministrator => Self::no_administrator(),
            IdentityError::LastAdministrator => Self::new(
                StatusCode::CONFLICT,
                "This is the last account that can administer. Give the role 'admin' to another one first.",
            ),
            IdentityError::Token(error) => error.into(),
            IdentityError::RefreshReused(_) => Self::bad_token(format!(
                "This refresh token had been used before, so its session has been ended. {LOG_IN_AGAIN}"
            )),
            IdentityError::SessionEnded => Self::session_ended(),
            IdentityError::SessionTooOld(_) => Self::bad_token(format!(
                "This session has reached its greatest age and has been ended. {LOG_IN_AGAIN}"
            )),
            IdentityError::ForeignRefresh => Self::new(
                StatusCode::FORBIDDEN,
                "This refresh token belongs to another session. Send that of the session you are logging out of.",
            ),
            IdentityError::TooMany { retry_after } => Self::too_many(retry_after),
            IdentityError::Overloaded => Self::overloaded(StatusCode::TOO_MANY_REQUESTS),
            IdentityError::TokensOverloaded => Self::overloaded(StatusCode::SERVICE_UNAVAILABLE),
            IdentityError::Internal(reason) => {
                tracing::error!(reason, "a request failed");
                Self::internal()
            }
            IdentityError::Unrecorded(error) => {
                tracing::error!(%error, "an administrator's action was not taken");
                Self::unrecorded()
            }
            IdentityError::Store(error) => from_store(error.is_unavailable(), &error),
        }
    }
}

/// SQL's failures: gone is worth a retry; anything else is a fault of ours.
fn from_store(unavailable: bool, error: &dyn std::error::Error) -> Problem {
    if unavailable {
        tracing::debug!(%error, "a request needs the database, which is not available");
        Problem::unavailable("its database")
    } else {
        tracing::error!(%error, "the database refused a request");
        Problem::internal()
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        #[derive(Serialize)]
        struct Body<'a> {
            r#type: &'static str,
            title: &'static str,
            status: u16,
            detail: &'a str,
            #[serde(skip_serializing_if = "Option::is_none")]
            code: Option<&'static str>,
            #[serde(skip_serializing_if = "std::collections::BTreeMap::is_empty")]
            errors: &'a std::collections::BTreeMap<String, Vec<String>>,
        }
        let body = Body {
            r#type: "about:blank",
            title: self.status.canonical_reason().unwrap_or("Error"),
            status: self.status.as_u16(),
            detail: &self.detail,
            code: self.code,
            errors: &self.errors.0,
        };
        let mut response = (self.status, Json(body)).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static(self.challenge));
        }
        if let Some(after) = self.retry_after {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(after.as_secs().max(1)));
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::parts;
    use super::*;

    #[tokio::test]
    async fn a_problem_says_all_that_rfc_9457_asks_for() {
        let errors = FieldErrors::one("page", "must be a whole number of 1 or more");
        let (status, headers, body) = parts(Problem::bad_request(errors).into_response()).await;
        assert_eq!((status, &headers["content-type"]), (400, &"application/problem+json".parse().unwrap()));
        assert_eq!(
            body,
            serde_json::json!({
                "type": "about:blank",
                "title": "Bad Request",
                "status": 400,
                "detail": "Please correct: page must be a whole number of 1 or more.",
                "errors": {"page": ["must be a whole number of 1 or more"]},
            })
        );
    }

    #[tokio::test]
    async fn every_failure_has_its_own_status() {
        let away = || PresenceError::RedisUnavailable("gone".into());
        let table = [
            (PresenceError::Blocked.into(), 403),
            (PresenceError::SessionEnded.into(), 401),
            (PresenceError::NoSuchAccount.into(), 404),
            (away().into(), 503),
            (PresenceError::RedisRefuses("secret inside".into()).into(), 503),
            (PresenceError::Overloaded.into(), 503),
            (IdentityError::Invalid(FieldErrors::one("email", "x")).into(), 422),
            (IdentityError::Taken { field: "email" }.into(), 409),
            (IdentityError::WrongCredentials.into(), 401),
            (IdentityError::Blocked.into(), 403),
            (TokenError::Expired.into(), 401),
            (IdentityError::SessionEnded.into(), 401),
            (IdentityError::ForeignRefresh.into(), 403),
            (IdentityError::Overloaded.into(), 429),
            (IdentityError::TokensOverloaded.into(), 503),
            (IdentityError::NoAdministrator.into(), 503),
            (IdentityError::TooMany { retry_after: Duration::from_micros(1) }.into(), 429),
            (IdentityError::Internal("secret inside".into()).into(), 500),
        ];
        for (problem, expected) in table {
            let problem: Problem = problem;
            let (status, headers, body) = parts(problem.into_response()).await;
            assert_eq!(status, expected);
            assert_eq!(headers.contains_key("www-authenticate"), status == 401, "{body}");
            assert_eq!(headers.contains_key("retry-after"), matches!(status, 429 | 503), "{body}");
            assert!(body.get("errors").is_some() == matches!(status, 409 | 422), "{body}");
            let detail = body["detail"].as_str().unwrap();
            assert!(detail.ends_with('.') && !detail.contains("inside"), "{detail}");
            if let Some(after) = headers.get("retry-after") {
                assert!(after.to_str().unwrap().parse::<u64>().unwrap() >= 1);
            }
        }
    }

    #[tokio::test]
    async fn a_bad_token_is_told_from_a_missing_one() {
        let (_, missing, _) = parts(Problem::no_token().into_response()).await;
        let (_, bad, body) = parts(Problem::from(TokenError::Expired).into_response()).await;
        assert_eq!(missing["www-authenticate"], CHALLENGE);
        assert_eq!(bad["www-authenticate"], CHALLENGE_BAD_TOKEN);
        assert_eq!(body["detail"], "The token has expired. Log in again.");
    }
}
