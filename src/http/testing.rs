//! What the tests of this room share.

use axum::http::HeaderMap;
use axum::response::Response;
use http_body_util::BodyExt;
use serde_json::Value;

/// Status, headers and JSON body (`null` where it is empty) of an answer.
pub async fn parts(response: Response) -> (u16, HeaderMap, Value) {
    let (head, body) = response.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    let body = if body.is_empty() { Value::Null } else { serde_json::from_slice(&body).unwrap() };
    (head.status.as_u16(), head.headers, body)
}
