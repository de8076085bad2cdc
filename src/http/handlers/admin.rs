//! The administration: accounts, who is online, and setting a status.

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use serde::Deserialize;

use super::presence::question;
use crate::http::AppState;
use crate::http::answer::{OneUser, OnlineStatusJson, UserJson};
use crate::http::body::{JsonBody, given};
use crate::http::extract::{AccountId, AdminReader, AdminWriter, Reader};
use crate::http::lists::Question;
use crate::http::problem::Problem;
use crate::http::query::{ListParameters, OnlineParameters};
use crate::identity::{AccountEdit, FieldErrors, NewAccount, Registration};
use crate::model::account::{UnknownWord, may_be_present};
use crate::model::{AccountStatus, Action, Change, Deed, Evidence, OnlineStatus, Role, UserId};
use crate::presence::{EmailSearch, PresenceError, User};

/// `POST admin/users/`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewAccountBody {
    username: String,
    email: String,
    password: String,
    #[serde(default, deserialize_with = "given")]
    role: Option<String>,
    #[serde(default, deserialize_with = "given")]
    status: Option<String>,
}

/// `PATCH admin/users/<id>/`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EditBody {
    #[serde(default, deserialize_with = "given")]
    email: Option<String>,
    #[serde(default, deserialize_with = "given")]
    role: Option<String>,
    #[serde(default, deserialize_with = "given")]
    status: Option<String>,
    #[serde(default, deserialize_with = "given")]
    is_active: Option<bool>,
    #[serde(default, deserialize_with = "given")]
    password: Option<String>,
}

/// `POST admin/users/<id>/set-online-status/`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StatusBody {
    status: String,
}

/// All users with all fields.
pub async fn users(
    State(state): State<AppState>,
    Reader(admin): Reader,
    parameters: ListParameters,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let question = question(parameters, EmailSearch::Yes);
    Ok(state.lists.for_admin(question, admin.user).await?.respond(&headers))
}

/// Adds an account.
pub async fn create(
    State(state): State<AppState>,
    AdminWriter(admin): AdminWriter,
    JsonBody(body): JsonBody<NewAccountBody>,
) -> Result<(StatusCode, Json<OneUser>), Problem> {
    let NewAccountBody { username, email, password, role, status } = body;
    let registration = Registration { username, email, password };
    let account =
        state.identity.create_account(NewAccount { registration, role, status }, Some(&admin)).await?;
    announce(&state, account.id).await;
    let user = UserJson::merged(account, Evidence::NEVER_PRESENT);
    Ok((StatusCode::CREATED, Json(OneUser::new(user, false))))
}

/// One user with all fields.
pub async fn user(
    State(state): State<AppState>,
    _: AdminReader,
    AccountId(id): AccountId,
) -> Result<Json<OneUser>, Problem> {
    let (user, degraded) = read(&state, id).await?;
    Ok(Json(OneUser::new(UserJson::whole(user), degraded)))
}

/// Changes an account. It counts at once: the fence is told before the answer.
pub async fn edit(
    State(state): State<AppState>,
    AdminWriter(admin): AdminWriter,
    AccountId(id): AccountId,
    JsonBody(body): JsonBody<EditBody>,
) -> Result<Json<OneUser>, Problem> {
    if id == admin.user && gives_up_administration(&body) {
        return Err(Problem::own_account("take the administration from it"));
    }
    let EditBody { email, role, status, is_active, password } = body;
    let edit = AccountEdit { email, role, status, is_active, password };
    let updated = state.identity.update_account(id, edit, &admin).await?;
    let account = updated.ok_or_else(|| Problem::not_found("account"))?;
    announce(&state, id).await;
    let reading = state.presence.read(vec![account]).await?;
    let user = reading.value.into_iter().next().ok_or_else(|| Problem::not_found("account"))?;
    Ok(Json(OneUser::new(UserJson::whole(user), reading.degraded)))
}

/// Deletes an account.
pub async fn delete(
    State(state): State<AppState>,
    AdminWriter(admin): AdminWriter,
    AccountId(id): AccountId,
) -> Result<StatusCode, Problem> {
    if id == admin.user {
        return Err(Problem::own_account("delete it"));
    }
    if !state.identity.delete_account(id, &admin).await? {
        return Err(Problem::not_found("account"));
    }
    announce(&state, id).await;
    Ok(StatusCode::NO_CONTENT)
}

/// Who is online or away, most recently seen first.
pub async fn online(
    State(state): State<AppState>,
    Reader(admin): Reader,
    OnlineParameters(place): OnlineParameters,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    Ok(state.lists.for_admin(Question::Online(place), admin.user).await?.respond(&headers))
}

/// One user's status.
pub async fn online_status(
    State(state): State<AppState>,
    _: AdminReader,
    AccountId(id): AccountId,
) -> Result<Json<OnlineStatusJson>, Problem> {
    let (user, degraded) = read(&state, id).await?;
    Ok(Json(OnlineStatusJson::new(user, degraded)))
}

/// Sets one user's status. It is recorded before Redis is told: where the record cannot be written, nothing is set. Where
/// Redis fails after that, the record says what was asked for.
pub async fn set_online_status(
    State(state): State<AppState>,
    AdminWriter(admin): AdminWriter,
    AccountId(id): AccountId,
    JsonBody(body): JsonBody<StatusBody>,
) -> Result<Json<OnlineStatusJson>, Problem> {
    let to: OnlineStatus = body.status.parse().map_err(|unknown: UnknownWord| {
        Problem::bad_request(FieldErrors::one("status", unknown.to_string()))
    })?;
    let (before, _) = read(&state, id).await?;
    if to.is_online() && !before.account.may_be_present() {
        return Err(Problem::blocked_target());
    }
    let change = Change::new("online_status", Some(before.presence.status.as_str()), Some(to.as_str()));
    let username = before.account.username;
    let deed = Deed { action: Action::SetOnlineStatus, user: id, username, changes: vec![change] };
    state.identity.add_to_trail(&admin, &deed).await?;
    let user = state.presence.set_status(id, to).await.map_err(|error| match error {
        // It is not the caller who is blocked.
        PresenceError::Blocked => Problem::blocked_target(),
        other => other.into(),
    })?;
    Ok(Json(OnlineStatusJson::new(user, false)))
}

async fn read(state: &AppState, id: UserId) -> Result<(User, bool), Problem> {
    let reading = state.presence.user(id).await?;
    let user = reading.value.ok_or_else(|| Problem::not_found("account"))?;
    Ok((user, reading.degraded))
}

/// Brings Redis in line with a change that SQL has just taken. Where that fails the change stands all the same, and the
/// log of account changes will bring it to Redis: it is no failure of the request.
async fn announce(state: &AppState, id: UserId) {
    if let Err(error) = state.presence.account_changed(&[id]).await {
        tracing::warn!(%error, user = id, "an account changed in SQL, but not yet in Redis");
    }
}

/// Whether an edit of the caller's own account would lock him out: mostly a slip. That somebody is left who can administer
/// does not hang on it; the store sees to that.
fn gives_up_administration(edit: &EditBody) -> bool {
    let role: Option<Role> = edit.role.as_deref().and_then(|word| word.parse().ok());
    let status: Option<AccountStatus> = edit.status.as_deref().and_then(|word| word.parse().ok());
    let blocks = !may_be_present(status.unwrap_or(AccountStatus::Active), edit.is_active.unwrap_or(true));
    blocks || role.is_some_and(|role| role != Role::Admin)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn an_administrator_cannot_lock_himself_out() {
        let locks_out = |edit: Value| gives_up_administration(&serde_json::from_value(edit).unwrap());
        for edit in [json!({"role": "user"}), json!({"status": "banned"}), json!({"is_active": false})] {
            assert!(locks_out(edit.clone()), "{edit}");
        }
        let harmless = [
            json!({}),
            json!({"role": "admin", "status": "pending", "is_active": true}),
            json!({"email": "a@b", "password": "x"}),
            json!({"role": "god", "status": "gone"}),
        ];
        for edit in harmless {
            assert!(!locks_out(edit.clone()), "{edit}");
        }
    }
}
