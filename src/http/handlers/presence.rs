//! Heartbeats, and the list that everybody may see.

use axum::Json;
use axum::extract::State;
use serde::{Deserialize, Serialize};

use crate::http::AppState;
use crate::http::answer::{UserJson, UserPage};
use crate::http::body::{OptionalJsonBody, given};
use crate::http::extract::{Bearer, Reader, of_caller, own_account};
use crate::http::problem::Problem;
use crate::http::query::ListParameters;
use crate::identity::FieldErrors;
use crate::model::{HeartbeatWord, Millis, Role};
use crate::presence::ListQuery;

/// `POST heartbeat/`: empty, or a word.
#[derive(Debug, Deserialize, Default)]
#[serde(deny_unknown_fields)]
pub struct HeartbeatBody {
    #[serde(default, deserialize_with = "given")]
    status: Option<String>,
}

/// The answer to a heartbeat.
#[derive(Debug, Serialize)]
pub struct HeartbeatAnswer {
    message: &'static str,
    online_status: &'static str,
    last_seen: Millis,
}

/// Records a heartbeat.
pub async fn heartbeat(
    State(state): State<AppState>,
    Bearer(who): Bearer,
    OptionalJsonBody(body): OptionalJsonBody<HeartbeatBody>,
) -> Result<Json<HeartbeatAnswer>, Problem> {
    let beat = state.presence.heartbeat(&who, word(&body)?).await.map_err(of_caller)?;
    Ok(Json(HeartbeatAnswer {
        message: "Heartbeat recorded",
        online_status: beat.status.as_str(),
        last_seen: beat.last_seen,
    }))
}

/// `offline` is not a heartbeat's word: who is alive is not gone.
fn word(body: &HeartbeatBody) -> Result<HeartbeatWord, Problem> {
    match body.status.as_deref() {
        None | Some("online") => Ok(HeartbeatWord::Online),
        Some("away") => Ok(HeartbeatWord::Away),
        Some(_) => Err(Problem::bad_request(FieldErrors::one("status", "must be one of online, away"))),
    }
}

/// All users; what is private only to administrators.
pub async fn all_users(
    State(state): State<AppState>,
    Reader(who): Reader,
    parameters: ListParameters,
) -> Result<Json<UserPage>, Problem> {
    let is_admin = own_account(&state, &who).await?.role == Role::Admin;
    if !is_admin && parameters.status.is_some() {
        return Err(Problem::admins_only_parameter("status"));
    }
    list(&state, parameters, is_admin).await
}

/// A page of all users, as administrators or as others see them.
pub async fn list(
    state: &AppState,
    parameters: ListParameters,
    as_admin: bool,
) -> Result<Json<UserPage>, Problem> {
    let ListParameters { page, search, status, online_status } = parameters;
    let mut query = ListQuery { online_status, ..ListQuery::default() };
    query.accounts.search = search;
    query.accounts.search_email = as_admin;
    query.accounts.status = status;
    let reading = state.presence.list(&query, page).await?;
    let show = if as_admin { UserJson::whole } else { UserJson::public };
    Ok(Json(UserPage::results(reading.value, page, reading.degraded, show)))
}

#[cfg(test)]
mod tests {
    use axum::response::IntoResponse;
    use serde_json::json;

    use super::*;
    use crate::http::testing::parts;

    #[tokio::test]
    async fn a_heartbeat_knows_two_words() {
        let of = |status: Option<&str>| word(&HeartbeatBody { status: status.map(str::to_owned) });
        assert_eq!(of(None), Ok(HeartbeatWord::Online));
        assert_eq!(of(Some("online")), Ok(HeartbeatWord::Online));
        assert_eq!(of(Some("away")), Ok(HeartbeatWord::Away));
        for other in ["offline", "login", "touch", "", "AWAY", "busy"] {
            let (status, _, body) = parts(of(Some(other)).unwrap_err().into_response()).await;
            let errors = json!({"status": ["must be one of online, away"]});
            assert_eq!((status, &body["errors"]), (400, &errors), "{other:?}");
        }
    }

    #[test]
    fn a_heartbeats_answer_has_three_fields() {
        let answer = HeartbeatAnswer {
            message: "Heartbeat recorded",
            online_status: "online",
            last_seen: Millis(1_768_473_000_120),
        };
        let expected = r#"{"message":"Heartbeat recorded","online_status":"online","last_seen":"2026-01-15T10:30:00.120Z"}"#;
        assert_eq!(serde_json::to_string(&answer).unwrap(), expected);
    }
}
