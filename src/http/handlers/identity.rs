//! Registration, login, tokens, and the caller's own account.

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use serde::{Deserialize, Serialize};

use crate::http::AppState;
use crate::http::activity::activity;
use crate::http::answer::{OneUser, UserJson};
use crate::http::body::JsonBody;
use crate::http::client::ClientAddress;
use crate::http::extract::{Leaver, Reader};
use crate::http::problem::Problem;
use crate::http::security_log::LoginOutcome;
use crate::identity::{FieldErrors, IdentityError, Registration, SignedIn, TokenPair};
use crate::model::{Account, Evidence, HeartbeatWord, Millis, Presence, SessionKey};
use crate::presence::{Activity, Beat, PresenceError};

/// `POST register/`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RegisterBody {
    username: String,
    email: String,
    password: String,
}

/// `POST login/`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoginBody {
    username: String,
    password: String,
}

/// `POST token/refresh/` and `POST logout/`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RefreshBody {
    refresh: String,
}

/// The answer to a login.
#[derive(Serialize)]
pub struct LoginAnswer {
    access: String,
    refresh: String,
    user: UserJson,
}

/// The answer to a refresh.
#[derive(Serialize)]
pub struct RefreshAnswer {
    access: String,
    refresh: String,
}

/// An answer that only says what happened.
#[derive(Serialize)]
pub struct Message {
    message: &'static str,
}

/// Adds an account: offline until it logs in.
pub async fn register(
    State(state): State<AppState>,
    ClientAddress(client): ClientAddress,
    JsonBody(body): JsonBody<RegisterBody>,
) -> Result<(StatusCode, Json<OneUser>), Problem> {
    let RegisterBody { username, email, password } = body;
    let registered = state.identity.register(client, Registration { username, email, password }).await;
    state.security.registration(registered.as_ref().map(|account| account.id), client);
    let account = registered?;
    let user = UserJson::merged(account, Evidence::NEVER_PRESENT);
    Ok((StatusCode::CREATED, Json(OneUser::new(user, false))))
}

/// Begins a session and brings the user online, unless the request says that it is no activity. Where presence does not
/// answer, the session is taken back: half a login is none.
pub async fn login(
    State(state): State<AppState>,
    ClientAddress(client): ClientAddress,
    headers: HeaderMap,
    JsonBody(body): JsonBody<LoginBody>,
) -> Result<Json<LoginAnswer>, Problem> {
    let activity = activity(&headers)?;
    let user_agent =
        headers.get(header::USER_AGENT).map(|agent| String::from_utf8_lossy(agent.as_bytes()).into_owned());
    let mut known = None;
    let signed_in =
        state.identity.login_noting(client, &body.username, &body.password, user_agent, &mut known).await;
    let signed_in = signed_in.inspect_err(|error| state.security.login(error.into(), known, client))?;
    let SignedIn { account, tokens: TokenPair { access, refresh }, session, displaced } = signed_in;
    if !displaced.is_empty()
        && let Err(error) = state.presence.sessions_ended(session.user, &displaced).await
    {
        // SQL holds the ends, and Redis is told of them when it answers.
        tracing::warn!(%error, user = session.user, "sessions ended in SQL, but not yet in Redis");
    }
    let arrived = match activity {
        Activity::Counts => arrive(&state, &session).await.map(|Beat { status, last_seen }| {
            let presence = Some(Presence { status, last_seen: Some(last_seen) });
            UserJson::merged(account, Evidence::Live { now: last_seen, presence })
        }),
        Activity::DoesNotCount => as_it_is(&state, account).await,
    };
    match arrived {
        Ok(user) => {
            state.security.login(LoginOutcome::Ok, known, client);
            Ok(Json(LoginAnswer { access, refresh, user }))
        }
        Err(error) => {
            state.security.login(LoginOutcome::Unavailable, known, client);
            if let Some(sid) = &session.sid
                && let Err(error) = state.identity.end_session(session.user, sid, None).await
            {
                tracing::warn!(%error, user = session.user, "a login that failed has left its session behind");
            }
            Err(error.into())
        }
    }
}

/// The user who has signed in without becoming present by it.
async fn as_it_is(state: &AppState, account: Account) -> Result<UserJson, PresenceError> {
    let read = state.presence.read(vec![account]).await?;
    read.value.into_iter().next().map(UserJson::whole).ok_or(PresenceError::NoSuchAccount)
}

/// SQL has just said that the account may be present. Where the fence in Redis still says otherwise, it has not heard
/// of an account that was unblocked this very moment.
async fn arrive(state: &AppState, session: &SessionKey) -> Result<Beat, PresenceError> {
    match state.presence.heartbeat(session, HeartbeatWord::Login).await {
        Err(PresenceError::Blocked) => {
            state.presence.account_changed(&[session.user]).await?;
            state.presence.heartbeat(session, HeartbeatWord::Login).await
        }
        outcome => outcome,
    }
}

/// Trades a refresh token for the next pair. It is no activity: no access token is shown.
pub async fn refresh(
    State(state): State<AppState>,
    ClientAddress(client): ClientAddress,
    JsonBody(body): JsonBody<RefreshBody>,
) -> Result<Json<RefreshAnswer>, Problem> {
    match state.identity.refresh(client, &body.refresh).await {
        Ok(TokenPair { access, refresh }) => Ok(Json(RefreshAnswer { access, refresh })),
        Err(error) => {
            if let IdentityError::RefreshReused(who) = &error {
                state.security.refresh_reused(who.user, client);
            }
            if let IdentityError::RefreshReused(who) | IdentityError::SessionTooOld(who) = &error {
                // SQL holds the end already and will bring Redis in line; the answer is the same.
                if let Err(error) = state.presence.leave(who).await {
                    tracing::warn!(%error, user = who.user, "a session ended in SQL, but not yet in Redis");
                }
            }
            Err(error.into())
        }
    }
}

/// Ends the caller's session: in SQL first, so that a half-done logout can be repeated and never leaves a refresh
/// token behind.
pub async fn logout(
    State(state): State<AppState>,
    Leaver(who, expires_at): Leaver,
    ClientAddress(client): ClientAddress,
    JsonBody(body): JsonBody<RefreshBody>,
) -> Result<Json<Message>, Problem> {
    let left = leave(&state, &who, expires_at, &body.refresh).await;
    state.security.logout(left.is_ok(), who.user, client);
    left.map(|()| Json(Message { message: "Logged out" }))
}

async fn leave(state: &AppState, who: &SessionKey, expires_at: Millis, refresh: &str) -> Result<(), Problem> {
    state.identity.revoke(who, refresh).await.map_err(|error| match error {
        // Not 401: it is the body's token that is no good, not the one that the caller speaks by.
        IdentityError::Token(error) => {
            Problem::bad_request(FieldErrors::one("refresh", format!("is no valid refresh token: {error}")))
        }
        other => other.into(),
    })?;
    Ok(state.presence.leave_until(who, expires_at).await?)
}

/// The caller's own account.
pub async fn me(State(state): State<AppState>, Reader(who): Reader) -> Result<Json<OneUser>, Problem> {
    let reading = state.presence.user(who.user).await?;
    let user = reading.value.ok_or_else(Problem::account_gone)?;
    Ok(Json(OneUser::new(UserJson::whole(user), reading.degraded)))
}
