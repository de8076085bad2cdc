//! HTTP: one route table, extractors, errors, handlers and the accept loop.
//!
//! Owns the contract's paths, field names and statuses. Decides nothing about presence or accounts: it asks
//! `presence` and `identity`, and says what came of it. Every error is a [`problem::Problem`]. Never logs a body or a
//! token.

pub mod answer;
pub mod body;
mod carry;
pub mod client;
pub mod cors;
pub mod extract;
pub mod front;
pub mod handlers;
pub mod problem;
pub mod query;
pub mod server;
#[cfg(test)]
mod testing;

use std::sync::Arc;

use axum::Router;
use axum::http::{StatusCode, Uri};
use axum::middleware::from_fn;
use axum::routing::{MethodRouter, delete, get, post};

use crate::identity::Identity;
use crate::metrics::Registry;
use crate::presence::PresenceService;
use handlers::{admin, health, identity, presence, sessions, trail};
use problem::Problem;

pub use client::TrustedProxies;
pub use cors::Origins;
pub use front::{Front, Guard};
pub use server::{Doors, Patience, PemPair, Tls, TlsError, serve};

/// What the handlers ask.
#[derive(Clone)]
pub struct AppState {
    /// Who is there.
    pub presence: PresenceService,
    /// Who may speak.
    pub identity: Identity,
    /// What is counted.
    pub metrics: Arc<Registry>,
    /// Whose word about the client's address counts.
    pub trusted_proxies: TrustedProxies,
}

/// The routes. Paths stand here without their trailing slash; each answers with it too. What changes SQL and then Redis
/// is carried to its end.
fn table() -> Vec<(&'static str, MethodRouter<AppState>)> {
    vec![
        // Identity.
        ("/api/users/register", post(identity::register)),
        ("/api/users/login", carried(post(identity::login))),
        ("/api/users/token/refresh", carried(post(identity::refresh))),
        ("/api/users/logout", carried(post(identity::logout))),
        ("/api/users/me", get(identity::me)),
        ("/api/users/me/sessions", carried(get(sessions::own).delete(sessions::end_all_own))),
        ("/api/users/me/sessions/{sid}", carried(delete(sessions::end_own))),
        // Presence.
        ("/api/users/heartbeat", post(presence::heartbeat)),
        ("/api/users/all-users", get(presence::all_users)),
        // Administration.
        ("/api/users/admin/users", carried(get(admin::users).post(admin::create))),
        ("/api/users/admin/users/online", get(admin::online)),
        ("/api/users/admin/users/{id}", carried(get(admin::user).patch(admin::edit).delete(admin::delete))),
        ("/api/users/admin/users/{id}/online-status", get(admin::online_status)),
        ("/api/users/admin/users/{id}/set-online-status", carried(post(admin::set_online_status))),
        (
            "/api/users/admin/users/{id}/sessions",
            carried(get(sessions::of_user).delete(sessions::end_all_of_user)),
        ),
        ("/api/users/admin/users/{id}/sessions/{sid}", carried(delete(sessions::end_of_user))),
        ("/api/users/admin/audit", get(trail::trail)),
        // Operations.
        ("/healthz", get(health::healthz)),
        ("/readyz", get(health::readyz)),
        ("/metrics", get(health::metrics)),
    ]
}

/// The service as the accept loop calls it.
pub fn front(state: AppState, guard: Guard) -> Front {
    Front::new(assemble(table(), state.clone()), guard, Some(state))
}

fn carried<S: Clone + Send + Sync + 'static>(methods: MethodRouter<S>) -> MethodRouter<S> {
    methods.route_layer(from_fn(carry::carry))
}

/// Both spellings of every path, and problems for all others.
fn assemble<S: Clone + Send + Sync + 'static>(
    table: Vec<(&'static str, MethodRouter<S>)>,
    state: S,
) -> Router {
    table
        .into_iter()
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

    fn front() -> Front {
        let table = vec![
            ("/things", get(async || "list").post(async || "made")),
            ("/things/{id}", delete(async || "gone")),
            ("/panic", get(panics)),
            ("/carried/panic", carried(get(panics))),
        ];
        assemble(table, ()).into()
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
        let paths: Vec<_> = table().into_iter().map(|(path, _)| path).collect();
        assert_eq!(paths.len(), 20);
        assert!(paths.iter().all(|path| !path.ends_with('/')));
        // Registering a path twice, or two that clash, panics.
        let _ =
            table().into_iter().fold(Router::new(), |router, (path, methods)| router.route(path, methods));
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
        let front = Front::from(assemble(vec![("/logout", carried(post(handler)))], ()));
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
        let front = Front::new(assemble(vec![("/page", get(page))], ()), guard, None);
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
