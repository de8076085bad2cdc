//! Who speaks, and of what: the callers and the ids in paths.
//!
//! Every authenticated request is an activity, unless it says otherwise (`X-Presence-Activity: none`), and it is one here, in
//! the extractor that lets it in: a handler that names no caller is open. Extractors run in the order of a handler's arguments, so a stranger is refused before his
//! body is read.

use axum::extract::{FromRequestParts, Path};
use axum::http::request::Parts;
use axum::http::{HeaderMap, header};
use futures_util::FutureExt;

use super::AppState;
use super::activity::activity;
use super::caller::CallerSlot;
use super::client::ClientAddress;
use super::problem::Problem;
use crate::model::{Account, Actor, Millis, Role, SessionId, SessionKey, UserId};
use crate::presence::PresenceError;

/// A caller who reads: an activity, unless the request carries `X-Presence-Activity: none`. While Redis is away, SQL decides
/// whether the caller may.
#[derive(Debug)]
pub struct Reader(pub SessionKey);

/// A caller who changes something: an activity, unless the request carries `X-Presence-Activity: none`. Redis must answer.
#[derive(Debug)]
pub struct Writer(pub SessionKey);

/// Somebody who leaves, and when the token expires: no activity, but account and session must still be good.
#[derive(Debug)]
pub struct Leaver(pub SessionKey, pub Millis);

/// Until when the token of the request is good. It lets nobody in: whoever takes it takes a caller too.
#[derive(Debug)]
pub struct TokenEnd(pub Millis);

/// A [`Reader`] who is an administrator as of this request.
#[derive(Debug)]
pub struct AdminReader(pub SessionKey);

/// A [`Writer`] who is an administrator as of this request, as the trail names him.
#[derive(Debug)]
pub struct AdminWriter(pub Actor);

impl FromRequestParts<AppState> for Reader {
    type Rejection = Problem;
    async fn from_request_parts(parts: &mut Parts, state: &AppState) -> Result<Self, Problem> {
        let (who, _) = caller(state, parts).await?;
        state.presence.admit_reader(&who, activity(&parts.headers)?).await.map_err(of_caller)?;
        Ok(Self(who))
    }
}

impl FromRequestParts<AppState> for Writer {
    type Rejection = Problem;
    async fn from_request_parts(parts: &mut Parts, state: &AppState) -> Result<Self, Problem> {
        let (who, _) = caller(state, parts).await?;
        state.presence.admit_writer(&who, activity(&parts.headers)?).await.map_err(of_caller)?;
        Ok(Self(who))
    }
}

impl FromRequestParts<AppState> for Leaver {
    type Rejection = Problem;
    async fn from_request_parts(parts: &mut Parts, state: &AppState) -> Result<Self, Problem> {
        let (who, expires_at) = caller(state, parts).await?;
        state.presence.check(&who).await.map_err(of_caller)?;
        Ok(Self(who, expires_at))
    }
}

impl FromRequestParts<AppState> for TokenEnd {
    type Rejection = Problem;
    async fn from_request_parts(parts: &mut Parts, state: &AppState) -> Result<Self, Problem> {
        let token = bearer_token(&parts.headers).ok_or_else(Problem::no_token)?;
        Ok(Self(state.identity.authenticate(token).await?.1))
    }
}

impl FromRequestParts<AppState> for AdminReader {
    type Rejection = Problem;
    async fn from_request_parts(parts: &mut Parts, state: &AppState) -> Result<Self, Problem> {
        let Reader(who) = Reader::from_request_parts(parts, state).await?;
        admit_admin(state, &who).await?;
        Ok(Self(who))
    }
}

impl FromRequestParts<AppState> for AdminWriter {
    type Rejection = Problem;
    async fn from_request_parts(parts: &mut Parts, state: &AppState) -> Result<Self, Problem> {
        let Writer(who) = Writer::from_request_parts(parts, state).await?;
        let ClientAddress(address) = ClientAddress::from_request_parts(parts, state).await?;
        let account = admit_admin(state, &who).await?;
        Ok(Self(Actor { user: account.id, username: account.username, address: address.to_string() }))
    }
}

/// The bearer of a good access token, who has not been let in yet, and when the token expires. The request counts among
/// those that the user has under way.
async fn caller(state: &AppState, parts: &Parts) -> Result<(SessionKey, Millis), Problem> {
    let token = bearer_token(&parts.headers).ok_or_else(Problem::no_token)?;
    let (who, expires_at) = state.identity.authenticate(token).await?;
    CallerSlot::note(&parts.extensions, who.user, &state.requests)?;
    Ok((who, expires_at))
}

/// The caller's own account as SQL has it now: a changed role counts at once, whatever the token is old.
///
/// # Errors
/// 401 where it has been deleted.
pub async fn own_account(state: &AppState, who: &SessionKey) -> Result<Account, Problem> {
    state.identity.account(who.user).await?.ok_or_else(Problem::account_gone)
}

async fn admit_admin(state: &AppState, who: &SessionKey) -> Result<Account, Problem> {
    let account = own_account(state, who).await?;
    let is_admin = account.role == Role::Admin && account.may_be_present();
    if is_admin { Ok(account) } else { Err(Problem::admins_only()) }
}

/// A refusal of the caller himself: where there is no such account, it is his token that is no good.
pub fn of_caller(error: PresenceError) -> Problem {
    match error {
        PresenceError::NoSuchAccount => Problem::account_gone(),
        other => other.into(),
    }
}

/// The bearer of a good access token, who has not been let in yet: for requests that say themselves what they mean to
/// presence. What is returned does not hold the headers.
///
/// # Errors
/// 401, which says what is wrong with the token; 503 where too many tokens of issuers wait to be verified.
pub fn bearer<'s>(
    state: &'s AppState,
    headers: &HeaderMap,
) -> Result<impl Future<Output = Result<SessionKey, Problem>> + Send + use<'s>, Problem> {
    let token = bearer_token(headers).ok_or_else(Problem::no_token)?;
    let authenticating = state.identity.authenticate(token);
    Ok(authenticating.map(|authenticated| Ok(authenticated?.0)))
}

fn bearer_token(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    let token = token.trim();
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then_some(token)
}

/// The id of an account in a path. What can be nobody's id is simply not there.
#[derive(Debug, PartialEq, Eq)]
pub struct AccountId(pub UserId);

/// The id of an account and the name of a session in one path.
#[derive(Debug, PartialEq, Eq)]
pub struct AccountSession(pub UserId, pub SessionId);

/// The name of a session in a path.
#[derive(Debug, PartialEq, Eq)]
pub struct SessionName(pub SessionId);

impl<S: Send + Sync> FromRequestParts<S> for AccountId {
    type Rejection = Problem;
    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let text = path_segment(parts, state).await.unwrap_or_default();
        account_id(&text).map(Self)
    }
}

impl<S: Send + Sync> FromRequestParts<S> for AccountSession {
    type Rejection = Problem;
    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let segments = Path::<(String, String)>::from_request_parts(parts, state).await;
        let Ok(Path((id, sid))) = segments else { return Err(Problem::not_found("session")) };
        let sid = SessionId::parse(&sid).ok_or_else(|| Problem::not_found("session"));
        Ok(Self(account_id(&id)?, sid?))
    }
}

fn account_id(text: &str) -> Result<UserId, Problem> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    let id = text.parse().ok().filter(|id| digits && *id > 0);
    id.ok_or_else(|| Problem::not_found("account"))
}

impl<S: Send + Sync> FromRequestParts<S> for SessionName {
    type Rejection = Problem;
    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let text = path_segment(parts, state).await.unwrap_or_default();
        SessionId::parse(&text).map(Self).ok_or_else(|| Problem::not_found("session"))
    }
}

async fn path_segment<S: Send + Sync>(parts: &mut Parts, state: &S) -> Option<String> {
    let segment = Path::<String>::from_request_parts(parts, state).await;
    segment.ok().map(|Path(text)| text)
}

#[cfg(test)]
mod tests {
    use axum::Router;
    use axum::body::Body;
    use axum::http::Request;
    use axum::routing::get;
    use tower::ServiceExt;

    use super::*;

    fn token_in(header: &str) -> Option<String> {
        let request = Request::get("/").header("authorization", header).body(()).unwrap();
        bearer_token(request.headers()).map(str::to_owned)
    }

    #[test]
    fn a_bearer_token_is_read_whatever_the_case_of_its_scheme() {
        for header in ["Bearer a.b.c", "bearer a.b.c", "BEARER  a.b.c "] {
            assert_eq!(token_in(header).as_deref(), Some("a.b.c"), "{header:?}");
        }
        for header in ["", "Bearer", "Bearer ", "Basic a.b.c", "a.b.c", "Bearer\u{e9} x"] {
            assert_eq!(token_in(header), None, "{header:?}");
        }
        assert_eq!(bearer_token(Request::get("/").body(()).unwrap().headers()), None);
    }

    #[tokio::test]
    async fn what_can_be_nobodys_id_is_not_found() {
        let router: Router = Router::new()
            .route("/u/{id}", get(|AccountId(id): AccountId| async move { id.to_string() }))
            .route("/s/{sid}", get(|SessionName(sid): SessionName| async move { sid.to_string() }));
        let long = format!("/s/{}", "x".repeat(129));
        let table = [
            ("/u/7", 200),
            ("/u/9223372036854775807", 200),
            ("/u/9223372036854775808", 404),
            ("/u/99999999999999999999999999", 404),
            ("/u/0", 404),
            ("/u/-7", 404),
            ("/u/+7", 404),
            ("/u/7.0", 404),
            ("/u/abc", 404),
            ("/u/%37", 200),
            ("/u/%00", 404),
            ("/u/%ff", 404),
            ("/u/%20", 404),
            ("/s/abc-_", 200),
            ("/s/%20", 404),
            ("/s/%ff", 404),
            (long.as_str(), 404),
        ];
        for (path, status) in table {
            let request = Request::get(path).body(Body::empty()).unwrap();
            let response = router.clone().oneshot(request).await.unwrap();
            assert_eq!(response.status().as_u16(), status, "{path}");
        }
    }
}
