//! Is the process alive, and can it work.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::Serialize;

use crate::http::AppState;
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

fn ready(health: Health) -> (StatusCode, Json<Ready>) {
    let (code, status) = if health.redis.is_ok() && health.database.is_ok() {
        (StatusCode::OK, "ok")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "unavailable")
    };
    let text = |check: Result<(), String>| check.err().unwrap_or_else(|| "ok".into());
    let checks = Checks { redis: text(health.redis), database: text(health.database) };
    (code, Json(Ready { status, checks }))
}

#[cfg(test)]
mod tests {
    use axum::response::IntoResponse;
    use serde_json::json;

    use super::*;
    use crate::http::testing::parts;

    #[tokio::test]
    async fn readiness_names_what_is_down() {
        let (status, _, body) =
            parts(ready(Health { redis: Ok(()), database: Ok(()) }).into_response()).await;
        assert_eq!(
            (status, body),
            (200, json!({"status": "ok", "checks": {"redis": "ok", "database": "ok"}}))
        );
        let health = Health { redis: Err("gone".into()), database: Ok(()) };
        let (status, _, body) = parts(ready(health).into_response()).await;
        let checks = json!({"redis": "gone", "database": "ok"});
        assert_eq!((status, body), (503, json!({"status": "unavailable", "checks": checks})));
    }
}
