//! Request bodies: a JSON object of known fields, and a clear answer to everything else.

use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{FromRequest, Request};
use axum::http::{HeaderMap, StatusCode, header};
use http_body_util::BodyExt;
use serde::de::{DeserializeOwned, IgnoredAny};
use serde::{Deserialize, Deserializer};

use super::problem::Problem;
use crate::identity::FieldErrors;

/// The largest body that is taken, bytes.
pub const MAX_BODY: usize = 64 * 1024;
/// How much of a body that is too large is read and thrown away, so that a client which does not listen while it
/// sends still gets to read the answer.
const MAX_DRAINED: usize = 1024 * 1024;
/// How long a client may take to send its body.
const MAX_WAIT: Duration = Duration::from_secs(10);

/// A JSON body.
#[derive(Debug)]
pub struct JsonBody<T>(pub T);

/// A JSON body, or none at all: then the default, whatever its content type.
#[derive(Debug)]
pub struct OptionalJsonBody<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for JsonBody<T> {
    type Rejection = Problem;
    async fn from_request(request: Request, _: &S) -> Result<Self, Problem> {
        let (head, body) = request.into_parts();
        expect_json(&head.headers)?;
        parse(&read(&head.headers, body).await?).map(Self)
    }
}

impl<S: Send + Sync, T: DeserializeOwned + Default> FromRequest<S> for OptionalJsonBody<T> {
    type Rejection = Problem;
    async fn from_request(request: Request, _: &S) -> Result<Self, Problem> {
        let (head, body) = request.into_parts();
        let body = read(&head.headers, body).await?;
        if body.is_empty() {
            return Ok(Self(T::default()));
        }
        expect_json(&head.headers)?;
        parse(&body).map(Self)
    }
}

/// A field that may be left out, but not be `null`: for `#[serde(default, deserialize_with = "given")]`.
pub fn given<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}

fn expect_json(headers: &HeaderMap) -> Result<(), Problem> {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    let essence = kind.split_once(';').map_or(kind, |(essence, _)| essence).trim();
    if essence.eq_ignore_ascii_case("application/json") {
        return Ok(());
    }
    let detail = "Send the body as JSON, with 'Content-Type: application/json'.";
    Err(Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, detail))
}

async fn read(headers: &HeaderMap, body: Body) -> Result<Bytes, Problem> {
    let announced = headers.get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
    if announced == Some(0) {
        return Ok(Bytes::new());
    }
    let Ok(taken) = tokio::time::timeout(MAX_WAIT, collect(body)).await else {
        let detail = "The body took too long to arrive. Try again.";
        return Err(Problem::new(StatusCode::REQUEST_TIMEOUT, detail));
    };
    let mut taken = taken?;
    // Most bodies come in one piece.
    Ok(if taken.len() == 1 { taken.remove(0) } else { taken.concat().into() })
}

/// The pieces of a body, [`MAX_BODY`] bytes at most.
async fn collect(mut body: Body) -> Result<Vec<Bytes>, Problem> {
    let (mut pieces, mut length) = (Vec::new(), 0usize);
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|_| {
            Problem::new(StatusCode::BAD_REQUEST, "The body broke off before its end. Send it again.")
        })?;
        if let Ok(piece) = frame.into_data() {
            length = length.saturating_add(piece.len());
            if length > MAX_DRAINED {
                break;
            }
            if length > MAX_BODY {
                pieces.clear();
            } else {
                pieces.push(piece);
            }
        }
    }
    if length <= MAX_BODY {
        return Ok(pieces);
    }
    let detail = format!("The body is too large: {MAX_BODY} bytes at most.");
    Err(Problem::new(StatusCode::PAYLOAD_TOO_LARGE, detail))
}

/// Malformed is 400, whatever the fields would have been; well-formed but wrong is 422.
pub fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, Problem> {
    let malformed = |place: String| {
        let detail = format!("The body is not well-formed JSON{place}. Correct it and send it again.");
        Problem::new(StatusCode::BAD_REQUEST, detail)
    };
    let text = std::str::from_utf8(body).map_err(|_| malformed(": it is not UTF-8".into()))?;
    let at = |error: &serde_json::Error| format!(": line {}, column {}", error.line(), error.column());
    serde_json::from_str::<IgnoredAny>(text).map_err(|error| malformed(at(&error)))?;
    // A struct would also be read from an array.
    if !text.trim_start().starts_with('{') {
        let detail = "The body must be a JSON object.";
        return Err(Problem::new(StatusCode::UNPROCESSABLE_ENTITY, detail));
    }
    let mut deserializer = serde_json::Deserializer::from_str(text);
    serde_path_to_error::deserialize(&mut deserializer).map_err(|error| {
        // Nested too deeply, or a number beyond all bounds: found only by the second look.
        if error.inner().is_syntax() {
            return malformed(at(error.inner()));
        }
        let path = error.path().to_string();
        Problem::unprocessable(complaint(&path, &error.inner().to_string()))
    })
}

/// Says of which field serde complains, and what: its own words name Rust's types and repeat what was sent, which may
/// be a password.
fn complaint(path: &str, message: &str) -> FieldErrors {
    let quoted = |prefix: &str| message.strip_prefix(prefix)?.split('`').next();
    if let Some(field) = quoted("missing field `") {
        return FieldErrors::one(field, "is required");
    }
    if let Some(field) = quoted("unknown field `") {
        return FieldErrors::one(field, "is not a field of this request");
    }
    if let Some(field) = quoted("duplicate field `") {
        return FieldErrors::one(field, "is given twice");
    }
    let expected = message.rsplit_once(", expected ").map_or("of another type", |(_, expected)| expected);
    let expected = expected.split(" at line ").next().unwrap_or(expected);
    FieldErrors::one(path, format!("must be {expected}"))
}

#[cfg(test)]
mod tests {
    use axum::Router;
    use axum::response::IntoResponse;
    use axum::routing::post;
    use serde_json::{Value, json};
    use tower::ServiceExt;

    use super::super::testing::parts;
    use super::*;

    #[derive(Debug, Deserialize, Default)]
    #[serde(deny_unknown_fields)]
    struct Sample {
        username: String,
        #[serde(default, deserialize_with = "given")]
        is_active: Option<bool>,
    }

    async fn send(path: &str, content_type: Option<&str>, body: impl Into<Body>) -> (u16, Value) {
        let answer = |sample: Sample| axum::Json(json!([sample.username, sample.is_active]));
        let router: Router = Router::new()
            .route("/", post(move |JsonBody(sample): JsonBody<Sample>| async move { answer(sample) }))
            .route(
                "/optional",
                post(move |OptionalJsonBody(sample): OptionalJsonBody<Sample>| async move { answer(sample) }),
            );
        let mut request = Request::post(path);
        if let Some(content_type) = content_type {
            request = request.header("content-type", content_type);
        }
        let response = router.oneshot(request.body(body.into()).unwrap()).await.unwrap();
        let (status, _, body) = parts(response.into_response()).await;
        (status, body)
    }

    async fn json_body(body: &str) -> (u16, Value) {
        send("/", Some("application/json"), body.to_owned()).await
    }

    #[tokio::test]
    async fn a_good_body_is_taken() {
        assert_eq!(json_body(r#" {"username":"ada","is_active":true} "#).await, (200, json!(["ada", true])));
        let table = ["application/json; charset=utf-8", "Application/JSON", "application/json ;a=b"];
        for content_type in table {
            let (status, _) = send("/", Some(content_type), r#"{"username":"ada"}"#).await;
            assert_eq!(status, 200, "{content_type}");
        }
    }

    #[tokio::test]
    async fn what_is_no_json_is_malformed() {
        let deep = format!(r#"{{"username":{}"#, "[".repeat(20_000));
        let bad = [
            "",
            " ",
            "{",
            r#"{"username":"ada""#,
            r#"{"username":"ada"} x"#,
            r#"{"username":"ada"}{}"#,
            r#"{"username":5} x"#,
            "{'username':1}",
            r#"{"username":"a,}"#,
            "nonsense",
            deep.as_str(),
        ];
        for body in bad {
            let (status, problem) = json_body(body).await;
            assert_eq!((status, &problem["status"]), (400, &json!(400)), "{body:.40}");
        }
        let latin = b"{\"username\":\"\xe9\"}".to_vec();
        assert_eq!(send("/", Some("application/json"), latin).await.0, 400);
    }

    #[tokio::test]
    async fn wrong_fields_are_named() {
        let table = [
            ("{}", "username", "is required"),
            (r#"{"username":5}"#, "username", "must be a string"),
            (r#"{"username":null}"#, "username", "must be a string"),
            (r#"{"username":{"a":["secret"]}}"#, "username", "must be a string"),
            (r#"{"username":"a","is_active":"secret"}"#, "is_active", "must be a boolean"),
            (r#"{"username":"a","is_active":null}"#, "is_active", "must be a boolean"),
            (r#"{"username":"a","role":"secret"}"#, "role", "is not a field of this request"),
            (r#"{"username":"a","username":"secret"}"#, "username", "is given twice"),
        ];
        for (body, field, text) in table {
            let (status, problem) = json_body(body).await;
            assert_eq!((status, &problem["errors"]), (422, &json!({field: [text]})), "{body}");
            assert!(!problem.to_string().contains("secret"), "{problem}");
        }
        for body in ["[]", r#"["ada",true]"#, "null", "5", r#""text""#, "true"] {
            assert_eq!(json_body(body).await.0, 422, "{body}");
        }
    }

    #[tokio::test]
    async fn another_content_type_is_unsupported() {
        for content_type in [None, Some("text/plain"), Some("application/x-www-form-urlencoded"), Some("")] {
            assert_eq!(send("/", content_type, r#"{"username":"ada"}"#).await.0, 415, "{content_type:?}");
        }
    }

    #[tokio::test]
    async fn an_empty_body_needs_no_content_type_where_it_may_be_empty() {
        for content_type in [None, Some("text/plain"), Some("application/json")] {
            assert_eq!(
                send("/optional", content_type, "").await,
                (200, json!(["", null])),
                "{content_type:?}"
            );
        }
        assert_eq!(send("/optional", None, r#"{"username":"ada"}"#).await.0, 415);
        assert_eq!(send("/optional", Some("application/json"), " ").await.0, 400);
        assert_eq!(send("/optional", Some("application/json"), r#"{"x":1}"#).await.0, 422);
    }

    #[tokio::test]
    async fn a_body_above_64_kib_is_too_large_and_one_of_just_that_is_not() {
        let body = |length: usize| format!(r#"{{"username":"{}"}}"#, "x".repeat(length - 15));
        assert_eq!(json_body(&body(MAX_BODY)).await.0, 200);
        assert_eq!(json_body(&body(MAX_BODY + 1)).await.0, 413);
        assert_eq!(json_body(&body(3 * MAX_DRAINED)).await.0, 413);
        assert_eq!(send("/optional", None, "x".repeat(MAX_BODY + 1)).await.0, 413);
    }

    #[tokio::test]
    async fn a_body_in_pieces_is_put_together() {
        let pieces =
            [r#"{"user"#, r#"name":"#, r#""ada"}"#].map(|piece| Ok::<_, std::io::Error>(Bytes::from(piece)));
        let body = Body::from_stream(futures_util::stream::iter(pieces));
        assert_eq!(send("/", Some("application/json"), body).await, (200, json!(["ada", null])));
        let broken = [Ok(Bytes::from("{")), Err(std::io::Error::other("gone"))];
        let body = Body::from_stream(futures_util::stream::iter(broken));
        assert_eq!(send("/", Some("application/json"), body).await.0, 400);
    }
}
