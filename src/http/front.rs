//! What stands around every route, and a heartbeat's own short way.
//!
//! Each request comes through here: heads that are too long are refused, a panic is a 500, and every answer gets its headers
//! and what its origin may see. Heartbeats are nearly all requests, so they do not ask the router: for axum to look a path
//! up and box what it finds costs as much as all the rest of a heartbeat in this process.

use std::any::Any;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, LazyLock};

use axum::Router;
use axum::body::{Body, Bytes, HttpBody};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri, header};
use axum::response::IntoResponse;
use futures_util::FutureExt;
use http_body_util::{Either, Full};
use tower::Service;

use super::AppState;
use super::caller::CallerSlot;
use super::client::Peer;
use super::cors::Origins;
use super::handlers::presence;
use super::problem::Problem;

/// The longest target of a request, bytes: every path and query of this service fits many times over.
const MAX_URI: usize = 8 * 1024;
/// The most that the headers of a request may hold, bytes of names and values.
const MAX_HEADERS: usize = 32 * 1024;
/// Both spellings of the path of a heartbeat.
const HEARTBEAT: [&str; 2] = ["/api/users/heartbeat/", "/api/users/heartbeat"];

/// What each answer says unless the handler has said otherwise. Answers hold tokens, or what is true only now, so nobody
/// keeps them; and no browser is to take one for a page of its own making, or to show it within another's.
static HEADERS: [(HeaderName, HeaderValue); 5] = [
    (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
    (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
    (header::CONTENT_SECURITY_POLICY, HeaderValue::from_static("default-src 'none'; frame-ancestors 'none'")),
    (header::REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
    (HeaderName::from_static("cross-origin-resource-policy"), HeaderValue::from_static("same-origin")),
];
/// The headers of a heartbeat's answer: a copy costs less than putting them in one by one.
static OF_A_HEARTBEAT: LazyLock<HeaderMap> = LazyLock::new(|| {
    let kind = (header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    HEADERS.iter().cloned().chain([kind]).collect()
});
/// Over TLS: never without it again, for a year.
static HSTS: HeaderValue = HeaderValue::from_static("max-age=31536000");

/// The body of an answer: a small one that is there, or whatever a handler gives.
pub type AnswerBody = Either<Full<Bytes>, Body>;

/// How the outside is met.
#[derive(Debug, Clone, Default)]
pub struct Guard {
    /// Whose scripts may call (`cors`).
    pub origins: Origins,
    /// Whether clients speak TLS with this process.
    pub tls: bool,
}

/// The whole service as the accept loop calls it. Clones share one inside.
#[derive(Clone)]
pub struct Front {
    inner: Arc<Inner>,
}

struct Inner {
    router: Router,
    guard: Guard,
    /// Whom heartbeats are for, past the router.
    heartbeats: Option<AppState>,
}

impl Front {
    pub(super) fn new(router: Router, guard: Guard, heartbeats: Option<AppState>) -> Self {
        Self { inner: Arc::new(Inner { router, guard, heartbeats }) }
    }

    /// Answers a request from this peer.
    pub(super) async fn answer<B>(&self, peer: Peer, request: Request<B>) -> Response<AnswerBody>
    where
        B: HttpBody<Data = Bytes, Error: Into<axum::BoxError>> + Send + 'static,
    {
        let Inner { router, guard, heartbeats } = &*self.inner;
        let call = guard.origins.call(request.method(), request.headers());
        let mut response = match (too_long(request.uri(), request.headers()), heartbeats) {
            (Some(problem), _) => problem.into_response().map(Either::Right),
            (None, Some(state)) if is_heartbeat(&request) => {
                let answering = presence::record(state, request);
                caught(&Method::POST, HEARTBEAT[0], answering).await.map_or_else(panicked, |recorded| {
                    let body = match recorded {
                        Ok(body) => body,
                        Err(problem) => return problem.into_response().map(Either::Right),
                    };
                    let mut response = Response::new(Either::Left(Full::new(body)));
                    *response.headers_mut() = OF_A_HEARTBEAT.clone();
                    response
                })
            }
            (None, _) => {
                let (method, uri) = (request.method().clone(), request.uri().clone());
                let mut request = request.map(Body::new);
                // Held until the answer is there: the caller's place among the requests at once is in it.
                let caller = CallerSlot::default();
                request.extensions_mut().insert(peer);
                request.extensions_mut().insert(caller.clone());
                // A router is always ready, and has no errors.
                let answering = Box::pin(router.clone().call(request));
                let answered = caught(&method, uri.path(), answering).await;
                drop(caller);
                answered.map_or_else(panicked, |Ok(response)| response.map(Either::Right))
            }
        };
        dress(response.headers_mut(), guard.tls);
        guard.origins.finish(call, response)
    }
}

/// A router that nothing special stands before.
impl From<Router> for Front {
    fn from(router: Router) -> Self {
        Self::new(router, Guard::default(), None)
    }
}

fn is_heartbeat<B>(request: &Request<B>) -> bool {
    request.method() == Method::POST && HEARTBEAT.contains(&request.uri().path())
}

/// What comes of it, or `None` after a panic. Nothing of a request outlives it but the state, whose locks poison themselves.
/// No `async fn`, which would have room for `answering` twice: before it begins, and while it is under way.
fn caught<T>(
    method: &Method,
    path: &str,
    answering: impl Future<Output = T>,
) -> impl Future<Output = Option<T>> {
    AssertUnwindSafe(answering).catch_unwind().map(move |answered| {
        answered
            .inspect_err(|panic| {
                tracing::error!(%method, path, reason = text(&**panic), "a handler panicked");
            })
            .ok()
    })
}

fn panicked() -> Response<AnswerBody> {
    Problem::internal().into_response().map(Either::Right)
}

fn dress(headers: &mut HeaderMap, tls: bool) {
    // A heartbeat's have them all.
    if !headers.contains_key(&HEADERS[4].0) {
        headers.reserve(HEADERS.len() + 1);
        for (name, value) in &HEADERS {
            headers.entry(name).or_insert_with(|| value.clone());
        }
    }
    if tls {
        headers.entry(header::STRICT_TRANSPORT_SECURITY).or_insert_with(|| HSTS.clone());
    }
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

pub(super) fn text(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no text")
}
