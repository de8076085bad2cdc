//! What stands around every handler.

use std::any::Any;
use std::panic::{AssertUnwindSafe, resume_unwind};

use axum::extract::Request;
use axum::http::{HeaderValue, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use futures_util::FutureExt;

use super::problem::Problem;

/// Turns a panic into a 500 and lets nobody keep an answer: they hold tokens, or what is true only now.
pub async fn guard(request: Request, next: Next) -> Response {
    let (method, uri) = (request.method().clone(), request.uri().clone());
    // Nothing of a request outlives it but the state, whose locks poison themselves.
    let answered = AssertUnwindSafe(next.run(request)).catch_unwind().await;
    let mut response = answered.unwrap_or_else(|panic| {
        tracing::error!(%method, path = uri.path(), reason = text(&*panic), "a handler panicked");
        Problem::internal().into_response()
    });
    response.headers_mut().entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    response
}

/// Carries a request to its end even where the client hangs up, as browsers do with a tab that logs out and closes:
/// hyper drops the work of a closed connection wherever it waits, and what has happened in SQL would not reach Redis.
pub async fn carry(request: Request, next: Next) -> Response {
    match tokio::spawn(next.run(request)).await {
        Ok(response) => response,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => resume_unwind(panic),
            // The runtime is ending, and nobody will read this.
            Err(_) => Problem::internal().into_response(),
        },
    }
}

fn text(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no text")
}
