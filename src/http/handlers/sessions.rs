//! Login sessions: listed and ended, by their user and by administrators.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::Serialize;

use crate::http::AppState;
use crate::http::answer::Pagination;
use crate::http::extract::{
    AccountId, AccountSession, AdminReader, AdminWriter, Reader, SessionName, TokenEnd, Writer,
};
use crate::http::problem::Problem;
use crate::http::query::PageParameters;
use crate::model::{Millis, Page, SessionId, UserId};

/// `GET me/sessions/` and `GET admin/users/<id>/sessions/`.
#[derive(Serialize)]
pub struct SessionsAnswer {
    sessions: Vec<SessionJson>,
    pagination: Pagination,
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
    PageParameters(page): PageParameters,
) -> Result<Json<SessionsAnswer>, Problem> {
    list(&state, who.user, page, who.sid.as_ref()).await
}

/// Ends one of the caller's sessions.
pub async fn end_own(
    State(state): State<AppState>,
    Writer(who): Writer,
    SessionName(sid): SessionName,
) -> Result<StatusCode, Problem> {
    if !state.identity.end_session(who.user, &sid, None).await? {
        return Err(Problem::not_found("session"));
    }
    state.presence.sessions_ended(who.user, &[sid]).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Ends all of the caller's sessions: those that SQL knows, and the one that he speaks by, which may have been minted
/// elsewhere, and for longer than tokens are good here.
pub async fn end_all_own(
    State(state): State<AppState>,
    Writer(who): Writer,
    TokenEnd(expires_at): TokenEnd,
) -> Result<StatusCode, Problem> {
    let mut others = state.identity.end_sessions(who.user, None).await?;
    others.retain(|sid| who.sid.as_ref() != Some(sid));
    let ended = state.presence.sessions_ended(who.user, &others).await;
    state.presence.leave_until(&who, expires_at).await?;
    ended?;
    Ok(StatusCode::NO_CONTENT)
}

/// Another user's sessions.
pub async fn of_user(
    State(state): State<AppState>,
    AdminReader(admin): AdminReader,
    AccountId(id): AccountId,
    PageParameters(page): PageParameters,
) -> Result<Json<SessionsAnswer>, Problem> {
    state.identity.account(id).await?.ok_or_else(|| Problem::not_found("account"))?;
    list(&state, id, page, admin.sid.as_ref()).await
}

/// Ends one of another user's sessions. SQL records it with the end itself, before presence hears of it.
pub async fn end_of_user(
    State(state): State<AppState>,
    AdminWriter(admin): AdminWriter,
    AccountSession(id, sid): AccountSession,
) -> Result<StatusCode, Problem> {
    let account = state.identity.account(id).await?.ok_or_else(|| Problem::not_found("account"))?;
    if !state.identity.end_session(id, &sid, Some((&admin, &account.username))).await? {
        return Err(Problem::not_found("session"));
    }
    state.presence.sessions_ended(id, &[sid]).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Ends all of another user's sessions.
pub async fn end_all_of_user(
    State(state): State<AppState>,
    AdminWriter(admin): AdminWriter,
    AccountId(id): AccountId,
) -> Result<StatusCode, Problem> {
    let account = state.identity.account(id).await?.ok_or_else(|| Problem::not_found("account"))?;
    let ended = state.identity.end_sessions(id, Some((&admin, &account.username))).await?;
    state.presence.sessions_ended(id, &ended).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn list(
    state: &AppState,
    user: UserId,
    page: Page,
    current: Option<&SessionId>,
) -> Result<Json<SessionsAnswer>, Problem> {
    let listed = state.identity.sessions(user, page).await?;
    let sessions = listed
        .sessions
        .into_iter()
        .map(|session| SessionJson {
            current: current == Some(&session.sid),
            sid: session.sid.to_string(),
            created_at: session.created_at,
            last_used_at: session.last_used_at,
            user_agent: session.user_agent,
        })
        .collect();
    Ok(Json(SessionsAnswer { sessions, pagination: Pagination::new(page, listed.total) }))
}
