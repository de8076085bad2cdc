//! Heartbeats, and the list that everybody may see.

use std::cell::RefCell;

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::{FromRequest, State};
use axum::http::{Request, header};
use axum::response::{IntoResponse, Response};
use axum::{BoxError, Json};
use serde::{Deserialize, Serialize};

use crate::http::AppState;
use crate::http::answer::{UserJson, UserPage};
use crate::http::body::{OptionalJsonBody, given};
use crate::http::extract::{Reader, bearer, of_caller, own_account};
use crate::http::problem::Problem;
use crate::http::query::ListParameters;
use crate::identity::FieldErrors;
use crate::model::{HeartbeatWord, Millis, Role};
use crate::presence::{Beat, ListQuery};

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

/// Records a heartbeat; the answer's body. The token comes before the body: a stranger is refused before his is read.
pub async fn record<B>(state: &AppState, request: Request<B>) -> Result<Bytes, Problem>
where
    B: HttpBody<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
{
    let who = bearer(state, request.headers())?;
    let word = if request.body().is_end_stream() {
        HeartbeatWord::Online
    } else {
        let OptionalJsonBody(body) = OptionalJsonBody::from_request(request.map(Body::new), &()).await?;
        word(&body)?
    };
    Ok(rendered(state.presence.heartbeat(&who, word).await.map_err(of_caller)?))
}

/// As [`record`], for whoever comes by the route.
pub async fn heartbeat(State(state): State<AppState>, request: Request<Body>) -> Result<Response, Problem> {
    let body = record(&state, request).await?;
    Ok(([(header::CONTENT_TYPE, "application/json")], body).into_response())
}

/// The answer as JSON. Heartbeats that were recorded together are answered alike, and the answer is written once.
fn rendered(beat: Beat) -> Bytes {
    thread_local! {
        static LATEST: RefCell<Option<(Beat, Bytes)>> = const { RefCell::new(None) };
    }
    LATEST.with_borrow_mut(|latest| match latest {
        Some((of, body)) if *of == beat => body.clone(),
        _ => {
            let answer = HeartbeatAnswer {
                message: "Heartbeat recorded",
                online_status: beat.status.as_str(),
                last_seen: beat.last_seen,
            };
            // Texts and an instant: nothing that JSON could not hold.
            let body = Bytes::from(serde_json::to_vec(&answer).unwrap_or_default());
            latest.insert((beat, body)).1.clone()
        }
    })
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
