//! Registration, login, tokens, and the caller's own account.

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use serde::{Deserialize, Serialize};

use crate::http::AppState;
use crate::http::answer::{OneUser, UserJson};
use crate::http::body::JsonBody;
use crate::http::client::ClientAddress;
use crate::http::extract::{Leaver, Reader};
use crate::http::problem::Problem;
use crate::identity::{FieldErrors, IdentityError, Registration, SignedIn, TokenPair};
use crate::model::{Evidence, HeartbeatWord, Presence, SessionKey};
use crate::presence::{Beat, PresenceError};

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
    let account = state.identity.register(client, Registration { username, email, password }).await?;
    let user = UserJson::merged(account, Evidence::NEVER_PRESENT);
    Ok((StatusCode::CREATED, Json(OneUser::new(user, false))))
}

/// Begins a session and brings the user online. Where presence does not answer, the session is taken back: half a
/// login is none.
pub async fn login(
    State(state): State<AppState>,
    ClientAddress(client): ClientAddress,
    headers: HeaderMap,
    JsonBody(body): JsonBody<LoginBody>,
) -> Result<Json<LoginAnswer>, Problem> {
    let user_agent =
        headers.get(header::USER_AGENT).map(|agent| String::from_utf8_lossy(agent.as_bytes()).into_owned());
    let signed_in = state.identity.login(client, &body.username, &body.password, user_agent).await?;
    let SignedIn { account, tokens: TokenPair { access, refresh }, session, displaced } = signed_in;
    if !displaced.is_empty()
        && let Err(error) = state.presence.sessions_ended(session.user, &displaced).await
    {
        // SQL holds the ends, and Redis is told of them when it answers.
        tracing::warn!(%error, user = session.user, "sessions ended in SQL, but not yet in Redis");
    }
    match arrive(&state, &session).await {
        Ok(Beat { status, last_seen }) => {
            let presence = Some(Presence { status, last_seen: Some(last_seen) });
            let user = UserJson::merged(account, Evidence::Live { now: last_seen, presence });
            Ok(Json(LoginAnswer { access, refresh, user }))
        }
        Err(error) => {
            if let Some(sid) = &session.sid
                && let Err(error) = state.identity.end_session(session.user, sid, None).await
            {
                tracing::warn!(%error, user = session.user, "a login that failed has left its session behind");
            }
            Err(error.into())
        }
    }
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
                tracing::warn!(user = who.user, "a refresh token was used twice; its session has been ended");
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
    JsonBody(body): JsonBody<RefreshBody>,
) -> Result<Json<Message>, Problem> {
    state.identity.revoke(&who, &body.refresh).await.map_err(|error| match error {
        // Not 401: it is the body's token that is no good, not the one that the caller speaks by.
        IdentityError::Token(error) => {
            Problem::bad_request(FieldErrors::one("refresh", format!("is no valid refresh token: {error}")))
        }
        other => other.into(),
    })?;
    state.presence.leave_until(&who, expires_at).await?;
    Ok(Json(Message { message: "Logged out" }))
}

/// The caller's own account.
pub async fn me(State(state): State<AppState>, Reader(who): Reader) -> Result<Json<OneUser>, Problem> {
    let reading = state.presence.user(who.user).await?;
    let user = reading.value.ok_or_else(Problem::account_gone)?;
    Ok(Json(OneUser::new(UserJson::whole(user), reading.degraded)))
}
