//! HTTP: one route table, extractors, errors, handlers and the accept loop.
//!
//! Owns the contract's paths, field names and statuses. Decides nothing about presence or accounts: it asks
//! `presence` and `identity`, and says what came of it. Every error is a [`problem::Problem`]. Never logs a body or a
//! token.

pub mod activity;
pub mod answer;
pub mod body;
mod caller;
mod carry;
pub mod client;
pub mod cors;
pub mod cursor;
pub mod extract;
pub mod front;
pub mod handlers;
pub mod lists;
pub mod per_user;
pub mod problem;
pub mod query;
pub mod security_log;
pub mod server;
#[cfg(test)]
mod testing;

use std::sync::Arc;

use axum::Router;
use axum::http::{StatusCode, Uri};
use axum::middleware::{from_fn, from_fn_with_state};
use axum::routing::{MethodRouter, delete, get, post};

use crate::identity::Identity;
use crate::metrics::Registry;
use crate::presence::PresenceService;
use handlers::{admin, health, identity, presence, sessions, trail};
use problem::Problem;

pub use client::TrustedProxies;
pub use cors::Origins;
pub use front::{Front, Guard};
pub use per_user::PerUser;
pub use security_log::SecurityLog;
pub use server::{Doors, Patience, PemPair, Tls, TlsError, serve};

/// What the handlers ask.
#[derive(Clone)]
pub struct AppState {
    /// Who is there.
    pub presence: PresenceService,
    /// Lists of who is there.
    pub lists: lists::Lists,
    /// Who may speak.
    pub identity: Identity,
    /// What is counted.
    pub metrics: Arc<Registry>,
    /// Whose word about the client's address counts.
    pub trusted_proxies: TrustedProxies,
    /// What each user has under way at once.
    pub requests: PerUser,
    /// Who signed in, and what administrators did.
    pub security: SecurityLog,
}

/// Where `GET /metrics` is served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Metrics {
    /// On the main address.
    Here,
    /// By a listener of its own ([`metrics_front`]), and nowhere else.
    Elsewhere,
}

/// One path: its methods, and the layers around them.
struct Route<S> {
    path: &'static str,
    methods: MethodRouter<S>,
    /// Whether a request is carried to its end.
    is_carried: bool,
    /// Whether `GET` takes query parameters, which its handler's extractor reads. Nothing else takes any.
    takes_parameters: bool,
}

fn route<S>(path: &'static str, methods: MethodRouter<S>) -> Route<S> {
    Route { path, methods, is_carried: false, takes_parameters: false }
}

impl<S: Clone + Send + Sync + 'static> Route<S> {
    fn carried(self) -> Self {
        Self { is_carried: true, ..self }
    }

    fn with_parameters(self) -> Self {
        Self { takes_parameters: true, ..self }
    }

    /// The methods with their layers, the innermost first.
    fn finish(self, log: &(SecurityLog, TrustedProxies)) -> (&'static str, MethodRouter<S>) {
        let mut methods = self.methods;
        if self.path.starts_with(security_log::ADMINISTRATION) {
            methods = methods.route_layer(from_fn_with_state(log.clone(), security_log::administration));
        }
        if self.is_carried {
            methods = methods.route_layer(from_fn(carry::carry));
        }
        (self.path, methods.route_layer(from_fn_with_state(self.takes_parameters, query::refuse_any)))
    }
}

/// The routes. Paths stand here without their trailing slash; each answers with it too. What changes SQL and then Redis
/// is carried to its end.
fn table() -> Vec<Route<AppState>> {
    vec![
        // Identity.
        route("/api/users/register", post(identity::register)).carried(),
        route("/api/users/login", post(identity::login)).carried(),
        route("/api/users/token/refresh", post(identity::refresh)).carried(),
        route("/api/users/logout", post(identity::logout)).carried(),
        route("/api/users/me", get(identity::me)),
        route("/api/users/me/sessions", get(sessions::own).delete(sessions::end_all_own))
            .carried()
            .with_parameters(),
        route("/api/users/me/sessions/{sid}", delete(sessions::end_own)).carried(),
        // Presence.
        route("/api/users/heartbeat", post(presence::heartbeat)),
        route("/api/users/all-users", get(presence::all_users)).with_parameters(),
        // Administration.
        route("/api/users/admin/users", get(admin::users).post(admin::create)).carried().with_parameters(),
        route("/api/users/admin/users/online", get(admin::online)).with_parameters(),
        route("/api/users/admin/users/{id}", get(admin::user).patch(admin::edit).delete(admin::delete))
            .carried(),
        route("/api/users/admin/users/{id}/online-status", get(admin::online_status)),
        route("/api/users/admin/users/{id}/set-online-status", post(admin::set_online_status)).carried(),
        route(
            "/api/users/admin/users/{id}/sessions",
            get(sessions::of_user).delete(sessions::end_all_of_user),
        )
        .carried()
        .with_parameters(),
        route("/api/users/admin/users/{id}/sessions/{sid}", delete(sessions::end_of_user)).carried(),
        route("/api/users/admin/audit", get(trail::trail)).with_parameters(),
        // Operations.
        route("/healthz", get(health::healthz)),
        route("/readyz", get(health::readyz)),
        route(METRICS, get(health::metrics)),
    ]
}

const METRICS: &str = "/metrics";

/// The service as the accept loop calls it.
pub fn front(state: AppState, guard: Guard, metrics: Metrics) -> Front {
    let mut routes = table();
    routes.retain(|route| route.path != METRICS || metrics == Metrics::Here);
    let log = (state.security.clone(), state.trusted_proxies.clone());
    Front::new(assemble(routes, &log, state.clone()), guard, Some(state))
}

/// The metrics alone, for a listener of their own.
pub fn metrics_front(state: AppState) -> Front {
    let log = (state.security.clone(), state.trusted_proxies.clone());
    let routes = vec![route(METRICS, get(health::metrics))];
    Front::new(assemble(routes, &log, state), Guard::default(), None)
}

/// Both spellings of every path, and problems for all others.
fn assemble<S: Clone + Send + Sync + 'static>(
    table: Vec<Route<S>>,
    log: &(SecurityLog, TrustedProxies),
    state: S,
) -> Router {
    table
        .into_iter()
        .map(|route| route.finish(log))
        .fold(Router::new(), |router, (path, methods)| {
            router.route(path, methods.clone()).route(&format!("{path}/"), methods)
        })
        .fallback(unknown_path)
        .method_not_allowed_fallback(method_not_allowed)
        .with_state(state)
}

async fn unknown_path(uri: Uri) -> Problem {
    let detail = format!("There is nothing at {}. Check the address.", uri.path());
    Problem::new(StatusCode::NOT_FOUND, detail)
}

/// axum adds `Allow`.
async fn method_not_allowed() -> Problem {
    let detail = "This path does not take that method. The header 'Allow' lists those it takes.";
    Problem::new(StatusCode::METHOD_NOT_ALLOWED, detail)
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use axum::http::Request;

    use super::*;
    use testing::parts;

    async fn panics() {
        panic!("on purpose");
    }

    fn of(table: Vec<Route<()>>) -> Front {
        assemble(table, &<_>::default(), ()).into()
    }

    fn front() -> Front {
        let table = vec![
            route("/things", get(async || "list").post(async || "made")).with_parameters(),
            route("/things/{id}", delete(async || "gone")),
            route("/panic", get(panics)),
            route("/carried/panic", get(panics)).carried(),
        ];
        of(table)
    }

    async fn answer(front: &Front, request: Request<Body>) -> axum::response::Response {
        front.answer(client::Peer(([127, 0, 0, 1], 9).into()), request).await.map(Body::new)
    }

    async fn send(method: &str, path: &str) -> axum::response::Response {
        let request = Request::builder().method(method).uri(path).body(Body::empty()).unwrap();
        answer(&front(), request).await
    }

    #[test]
    fn the_table_holds_no_path_twice() {
        let paths: Vec<_> = table().into_iter().map(|route| route.path).collect();
        assert_eq!(paths.len(), 20);
        assert!(paths.iter().all(|path| !path.ends_with('/')));
        // Registering a path twice, or two that clash, panics.
        let add = |router: Router<AppState>, route: Route<AppState>| router.route(route.path, route.methods);
        let _ = table().into_iter().fold(Router::new(), add);
    }

    #[tokio::test]
    async fn every_path_answers_with_and_without_its_slash() {
        for path in ["/things", "/things/", "/things?page=1", "/things/?page=1"] {
            assert_eq!(send("GET", path).await.status(), 200, "{path}");
        }
        for path in ["/things/5", "/things/5/"] {
            assert_eq!(send("DELETE", path).await.status(), 200, "{path}");
        }
    }

    #[tokio::test]
    async fn parameters_are_taken_where_a_path_has_some_and_nowhere_else() {
        for (method, path) in [("POST", "/things"), ("DELETE", "/things/5"), ("DELETE", "/things/5/")] {
            assert_eq!(send(method, &format!("{path}?")).await.status(), 200, "{method} {path}");
            let (status, _, body) = parts(send(method, &format!("{path}?dry_run=1")).await).await;
            let complaint = "is no parameter of this request, which takes none";
            assert_eq!((status, &body["errors"]["dry_run"][0]), (400, &complaint.into()), "{method} {path}");
        }
    }

    #[tokio::test]
    async fn an_unknown_path_is_a_problem() {
        for path in ["/", "/nothing", "/nothing//", "//things", "/things/5/6"] {
            let (status, headers, body) = parts(send("GET", path).await).await;
            assert_eq!((status, &body["title"]), (404, &"Not Found".into()), "{path}");
            assert_eq!(headers["content-type"], "application/problem+json");
        }
    }

    #[tokio::test]
    async fn a_wrong_method_is_a_problem_that_lists_the_right_ones() {
        for path in ["/things", "/things/"] {
            let (status, headers, body) = parts(send("PUT", path).await).await;
            assert_eq!((status, &body["status"]), (405, &405.into()));
            assert_eq!(headers["allow"], "GET,HEAD,POST");
        }
        let (_, headers, _) = parts(send("GET", "/things/5").await).await;
        assert_eq!(headers["allow"], "DELETE");
    }

    #[tokio::test]
    async fn a_panic_is_a_problem_and_says_nothing_of_its_inside() {
        for path in ["/panic", "/carried/panic"] {
            let (status, headers, body) = parts(send("GET", path).await).await;
            assert_eq!(
                (status, &headers["content-type"]),
                (500, &"application/problem+json".parse().unwrap())
            );
            assert!(!body.to_string().contains("purpose"));
            let (status, headers, _) = parts(send("POST", path).await).await;
            assert_eq!((status, &headers["allow"]), (405, &"GET,HEAD".parse().unwrap()));
        }
    }

    #[tokio::test]
    async fn a_carried_request_comes_to_its_end_though_its_client_hangs_up() {
        let (entered, mut is_in) = tokio::sync::mpsc::channel::<()>(1);
        let (release, released) = tokio::sync::watch::channel(false);
        let (ended, mut is_done) = tokio::sync::mpsc::channel::<()>(1);
        let handler = async move || {
            let mut released = released.clone();
            entered.send(()).await.unwrap();
            released.wait_for(|go| *go).await.unwrap();
            ended.send(()).await.unwrap();
        };
        let front = of(vec![route("/logout", post(handler)).carried()]);
        let request = Request::post("/logout").body(Body::empty()).unwrap();
        let client = tokio::spawn(async move { answer(&front, request).await });
        is_in.recv().await.unwrap();
        client.abort();
        assert!(client.await.unwrap_err().is_cancelled());
        release.send(true).unwrap();
        assert_eq!(is_done.recv().await, Some(()));
    }

    #[tokio::test]
    async fn no_answer_may_be_kept_sniffed_or_framed() {
        for path in ["/things", "/nothing", "/panic"] {
            let headers = send("GET", path).await.headers().clone();
            assert_eq!(headers["cache-control"], "no-store", "{path}");
            assert_eq!(headers["x-content-type-options"], "nosniff");
            assert_eq!(headers["content-security-policy"], "default-src 'none'; frame-ancestors 'none'");
            assert_eq!(headers["referrer-policy"], "no-referrer");
            assert_eq!(headers["cross-origin-resource-policy"], "same-origin");
            assert!(!headers.contains_key("strict-transport-security") && !headers.contains_key("vary"));
        }
    }

    #[tokio::test]
    async fn a_handler_may_say_otherwise() {
        let page = async || ([("content-security-policy", "default-src 'self'")], "page");
        let guard = Guard { tls: true, ..Guard::default() };
        let front = Front::new(assemble(vec![route("/page", get(page))], &<_>::default(), ()), guard, None);
        let response = answer(&front, Request::get("/page").body(Body::empty()).unwrap()).await;
        let policies: Vec<_> = response.headers().get_all("content-security-policy").iter().collect();
        assert_eq!(policies, ["default-src 'self'"]);
        assert_eq!(response.headers()["strict-transport-security"], "max-age=31536000");
    }

    #[tokio::test]
    async fn a_head_that_is_too_long_is_a_problem() {
        let ask = async |path: String, header: &str| {
            let request = Request::get(path).header("x", header).body(Body::empty()).unwrap();
            parts(answer(&front(), request).await).await.0
        };
        assert_eq!(ask(format!("/nothing?{}", "x".repeat(8 * 1024 - 9)), "").await, 404);
        assert_eq!(ask(format!("/nothing?{}", "x".repeat(8 * 1024 - 8)), "").await, 414);
        assert_eq!(ask("/nothing".into(), &"x".repeat(32 * 1024 - 1)).await, 404);
        assert_eq!(ask("/nothing".into(), &"x".repeat(32 * 1024)).await, 431);
    }
}
