//! Is the process alive, can it work, and how is it doing.

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use crate::http::AppState;
use crate::metrics::exposition;
use crate::presence::Health;

/// `GET /healthz`.
#[derive(Debug, Serialize)]
pub struct Alive {
    status: &'static str,
}

/// `GET /readyz`.
#[derive(Debug, Serialize)]
pub struct Ready {
    status: &'static str,
    checks: Checks,
    /// Conditions that need the operator's attention although both dependencies answer.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    warnings: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Checks {
    redis: String,
    database: String,
}

/// The process answers: nothing else is asked.
pub async fn healthz() -> Json<Alive> {
    Json(Alive { status: "ok" })
}

/// Each dependency by name.
pub async fn readyz(State(state): State<AppState>) -> (StatusCode, Json<Ready>) {
    ready(state.presence.health().await)
}

/// `GET /metrics`: what was counted since the start, and what Redis knows, for Prometheus. What is measured may be a second
/// old.
pub async fn metrics(State(state): State<AppState>, headers: HeaderMap) -> Response {
    let measured = state.presence.measured().await;
    let accept = headers.get(header::ACCEPT).and_then(|accept| accept.to_str().ok()).unwrap_or_default();
    let (content_type, text) = exposition(accept, &[&state.metrics, &measured]);
    ([(header::CONTENT_TYPE, content_type)], text).into_response()
}

fn ready(health: Health) -> (StatusCode, Json<Ready>) {
    let (code, status) = if health.redis.is_ok() && health.database.is_ok() {
        (StatusCode::OK, "ok")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "unavailable")
    };
    let text = |check: Result<(), String>| check.err().unwrap_or_else(|| "ok".into());
    let checks = Checks { redis: text(health.redis), database: text(health.database) };
    (code, Json(Ready { status, checks, warnings: health.warnings }))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::http::testing::parts;

    #[tokio::test]
    async fn readiness_names_what_is_down() {
        let health = |redis: Result<(), String>| Health { redis, database: Ok(()), warnings: Vec::new() };
        let (status, _, body) = parts(ready(health(Ok(()))).into_response()).await;
        assert_eq!(
            (status, body),
            (200, json!({"status": "ok", "checks": {"redis": "ok", "database": "ok"}}))
        );
        let (status, _, body) = parts(ready(health(Err("gone".into()))).into_response()).await;
        let checks = json!({"redis": "gone", "database": "ok"});
        assert_eq!((status, body), (503, json!({"status": "unavailable", "checks": checks})));
        let warned = Health { warnings: vec!["may lose data".into()], ..health(Ok(())) };
        let (status, _, body) = parts(ready(warned).into_response()).await;
        assert_eq!((status, &body["warnings"]), (200, &json!(["may lose data"])));
    }
}
