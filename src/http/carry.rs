//! Requests that are carried to their end.

use std::panic::resume_unwind;

use axum::extract::Request;
use axum::http::Method;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::caller::CallerSlot;
use super::problem::Problem;

/// Carries a request to its end even where the client hangs up, as browsers do with a tab that logs out and closes:
/// hyper drops the work of a closed connection wherever it waits, and what has happened in SQL would not reach Redis. What
/// only reads is cancelled with its connection.
pub async fn carry(request: Request, next: Next) -> Response {
    if matches!(*request.method(), Method::GET | Method::HEAD) {
        return next.run(request).await;
    }
    // It is under way to its end, and counts as one of its caller's until then.
    let caller = request.extensions().get::<CallerSlot>().cloned();
    let carried = tokio::spawn(async move {
        let response = next.run(request).await;
        drop(caller);
        response
    });
    match carried.await {
        Ok(response) => response,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => resume_unwind(panic),
            // The runtime is ending, and nobody will read this.
            Err(_) => Problem::internal().into_response(),
        },
    }
}
