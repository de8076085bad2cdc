//! What stands around every handler.

use std::any::Any;
use std::panic::{AssertUnwindSafe, resume_unwind};

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Uri, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use futures_util::FutureExt;

use super::cors::Origins;
use super::problem::Problem;

/// The longest target of a request, bytes: every path and query of this service fits many times over.
const MAX_URI: usize = 8 * 1024;
/// The most that the headers of a request may hold, bytes of names and values.
const MAX_HEADERS: usize = 32 * 1024;

/// What each answer says unless the handler has said otherwise. Answers hold tokens, or what is true only now, so nobody
/// keeps them; and no browser is to take one for a page of its own making, or to show it within another's.
static HEADERS: [(HeaderName, HeaderValue); 5] = [
    (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
    (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
    (header::CONTENT_SECURITY_POLICY, HeaderValue::from_static("default-src 'none'; frame-ancestors 'none'")),
    (header::REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
    (HeaderName::from_static("cross-origin-resource-policy"), HeaderValue::from_static("same-origin")),
];
/// Over TLS: never without it again, for a year.
static HSTS: HeaderValue = HeaderValue::from_static("max-age=31536000");

/// How the outside is met.
#[derive(Debug, Clone, Default)]
pub struct Guard {
    /// Whose scripts may call (`cors`).
    pub origins: Origins,
    /// Whether clients speak TLS with this process.
    pub tls: bool,
}

/// Refuses heads that are too long, turns a panic into a 500, and gives each answer its headers.
pub async fn guard(State(guard): State<Guard>, request: Request, next: Next) -> Response {
    let mut response = match too_long(request.uri(), request.headers()) {
        None => answer(request, next).await,
        Some(problem) => problem.into_response(),
    };
    let headers = response.headers_mut();
    headers.reserve(HEADERS.len() + 1);
    for (name, value) in &HEADERS {
        headers.entry(name).or_insert_with(|| value.clone());
    }
    if guard.tls {
        headers.entry(header::STRICT_TRANSPORT_SECURITY).or_insert_with(|| HSTS.clone());
    }
    response
}

async fn answer(request: Request, next: Next) -> Response {
    let (method, uri) = (request.method().clone(), request.uri().clone());
    // Nothing of a request outlives it but the state, whose locks poison themselves.
    let answered = AssertUnwindSafe(next.run(request)).catch_unwind().await;
    answered.unwrap_or_else(|panic| {
        tracing::error!(%method, path = uri.path(), reason = text(&*panic), "a handler panicked");
        Problem::internal().into_response()
    })
}

/// hyper has bounds too, further out, at which it hangs up with a bare status.
fn too_long(uri: &Uri, headers: &HeaderMap) -> Option<Problem> {
    let target = uri.path().len() + uri.query().map_or(0, |query| query.len() + 1);
    if target > MAX_URI {
        let detail = format!("The address is too long: {MAX_URI} bytes at most. Shorten the query.");
        return Some(Problem::new(StatusCode::URI_TOO_LONG, detail));
    }
    let length: usize = headers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum();
    (length > MAX_HEADERS).then(|| {
        let detail =
            format!("The headers are too long: {MAX_HEADERS} bytes in all at most. Send fewer of them.");
        Problem::new(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, detail)
    })
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
