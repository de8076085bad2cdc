//! Heartbeats, and the list that everybody may see.

use std::cell::RefCell;

use axum::BoxError;
use axum::body::{Body, Bytes, HttpBody};
use axum::extract::{FromRequest, State};
use axum::http::{HeaderMap, Request, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};

use crate::http::AppState;
use crate::http::activity::must_count;
use crate::http::body::{OptionalJsonBody, given};
use crate::http::extract::{Reader, bearer, of_caller};
use crate::http::lists::Question;
use crate::http::problem::Problem;
use crate::http::query::{self, ListParameters};
use crate::identity::FieldErrors;
use crate::model::{HeartbeatWord, Millis};
use crate::presence::{Beat, EmailSearch, ListQuery};

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
    let caller = bearer(state, request.headers())?;
    query::none(request.uri().query())?;
    must_count(request.headers())?;
    // Elsewhere, for most have none; begun below, when the caller is known.
    let body = (!request.body().is_end_stream())
        .then(|| Box::pin(OptionalJsonBody::from_request(request.map(Body::new), &())));
    let who = caller.await?;
    let word = match body {
        None => HeartbeatWord::Online,
        Some(read) => {
            let OptionalJsonBody(body) = read.await?;
            word(&body)?
        }
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
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let question = question(parameters, EmailSearch::IfAdmin(who.user));
    Ok(state.lists.for_user(question, who.user).await?.respond(&headers))
}

/// What is asked of all users. Only a search hangs on who asks.
pub fn question(parameters: ListParameters, search_email: EmailSearch) -> Question {
    let ListParameters { place, search, status, online_status } = parameters;
    let search_email = if search.is_some() { search_email } else { EmailSearch::No };
    Question::Users(ListQuery { search, search_email, status, online_status }, place)
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
