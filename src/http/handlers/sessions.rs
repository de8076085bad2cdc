//! Login sessions: listed and ended, by their user and by administrators.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::Serialize;

use crate::http::AppState;
use crate::http::extract::{
    AccountId, AccountSession, AdminReader, AdminWriter, Reader, SessionName, TokenEnd, Writer,
};
use crate::http::problem::Problem;
use crate::model::{Action, Actor, Change, Deed, Millis, SessionId, SessionKey, UserId};
use crate::presence::PresenceError;

/// `GET me/sessions/` and `GET admin/users/<id>/sessions/`.
#[derive(Serialize)]
pub struct SessionsAnswer {
    sessions: Vec<SessionJson>,
}

#[derive(Serialize)]
struct SessionJson {
    sid: String,
    created_at: Millis,
    last_used_at: Millis,
    user_agent: Option<String>,
    current: bool,
}

/// The caller's sessions.
pub async fn own(
    State(state): State<AppState>,
    Reader(who): Reader,
) -> Result<Json<SessionsAnswer>, Problem> {
    list(&state, who.user, who.sid.as_ref()).await
}

/// Ends one of the caller's sessions.
pub async fn end_own(
    State(state): State<AppState>,
    Writer(who): Writer,
    SessionName(sid): SessionName,
) -> Result<StatusCode, Problem> {
    if !state.identity.end_session(who.user, &sid).await? {
        return Err(Problem::not_found("session"));
    }
    leave_all(&state, who.user, [sid]).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Ends all of the caller's sessions: those that SQL knows, and the one that he speaks by, which may have been minted
/// elsewhere, and for longer than tokens are good here.
pub async fn end_all_own(
    State(state): State<AppState>,
    Writer(who): Writer,
    TokenEnd(expires_at): TokenEnd,
) -> Result<StatusCode, Problem> {
    let ended = state.identity.end_sessions(who.user).await?;
    let others = ended.into_iter().filter(|sid| who.sid.as_ref() != Some(sid));
    let left = leave_all(&state, who.user, others).await;
    state.presence.leave_until(&who, expires_at).await?;
    left?;
    Ok(StatusCode::NO_CONTENT)
}

/// Another user's sessions.
pub async fn of_user(
    State(state): State<AppState>,
    AdminReader(admin): AdminReader,
    AccountId(id): AccountId,
) -> Result<Json<SessionsAnswer>, Problem> {
    state.identity.account(id).await?.ok_or_else(|| Problem::not_found("account"))?;
    list(&state, id, admin.sid.as_ref()).await
}

/// Ends one of another user's sessions.
pub async fn end_of_user(
    State(state): State<AppState>,
    AdminWriter(admin): AdminWriter,
    AccountSession(id, sid): AccountSession,
) -> Result<StatusCode, Problem> {
    let account = state.identity.account(id).await?.ok_or_else(|| Problem::not_found("account"))?;
    if !state.identity.end_session(id, &sid).await? {
        return Err(Problem::not_found("session"));
    }
    tell(&state, &admin, id, account.username, [sid]).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Ends all of another user's sessions.
pub async fn end_all_of_user(
    State(state): State<AppState>,
    AdminWriter(admin): AdminWriter,
    AccountId(id): AccountId,
) -> Result<StatusCode, Problem> {
    let account = state.identity.account(id).await?.ok_or_else(|| Problem::not_found("account"))?;
    let ended = state.identity.end_sessions(id).await?;
    tell(&state, &admin, id, account.username, ended).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Tells trail and presence of sessions that an administrator has just ended in SQL. Presence hears of it even where the
/// trail fails.
async fn tell(
    state: &AppState,
    admin: &Actor,
    user: UserId,
    username: String,
    sids: impl IntoIterator<Item = SessionId>,
) -> Result<(), Problem> {
    let sids: Vec<SessionId> = sids.into_iter().collect();
    let changes = sids.iter().map(|sid| Change::new("session", Some(sid.as_str()), None)).collect();
    let deed = Deed { action: Action::EndSessions, user, username, changes };
    let told = state.identity.add_to_trail(admin, &deed).await;
    leave_all(state, user, sids).await?;
    Ok(told?)
}

async fn list(
    state: &AppState,
    user: UserId,
    current: Option<&SessionId>,
) -> Result<Json<SessionsAnswer>, Problem> {
    let sessions = state.identity.sessions(user).await?;
    let sessions = sessions
        .into_iter()
        .map(|session| SessionJson {
            current: current == Some(&session.sid),
            sid: session.sid.to_string(),
            created_at: session.created_at,
            last_used_at: session.last_used_at,
            user_agent: session.user_agent,
        })
        .collect();
    Ok(Json(SessionsAnswer { sessions }))
}

/// Tells presence that sessions have ended in SQL, so that their access tokens die at once; goes on to the last even
/// if one fails.
async fn leave_all(
    state: &AppState,
    user: UserId,
    sids: impl IntoIterator<Item = SessionId>,
) -> Result<(), PresenceError> {
    let mut outcome = Ok(());
    for sid in sids {
        let left = state.presence.leave(&SessionKey { user, sid: Some(sid) }).await;
        outcome = outcome.and(left);
    }
    outcome
}
