//! What browsers are told: by whom a page may be called, shown and kept.

use std::time::Duration;

use reqwest::Method;
use reqwest::header::HeaderMap;

use crate::service::{Database, Scene};
use crate::support::http::{Api, send};
use crate::support::mint::access_token;
use crate::support::process::{Presenced, PresencedOptions};

const ORIGIN: &str = "https://app.example.com";

async fn scene(env: &[(&str, &str)]) -> Scene {
    Scene::start(Database::Sqlite, 2, Duration::from_mins(1), env).await
}

async fn ask(api: &Api, method: Method, path: &str, headers: &[(&str, &str)]) -> (u16, HeaderMap) {
    let request = headers
        .iter()
        .fold(api.request(method, path, None), |request, (name, value)| request.header(*name, *value));
    let (status, _, headers) = send(request).await;
    (status.as_u16(), headers)
}

const QUESTION: [(&str, &str); 3] = [
    ("origin", ORIGIN),
    ("access-control-request-method", "POST"),
    ("access-control-request-headers", "authorization,content-type"),
];

#[tokio::test]
async fn without_the_setting_no_other_origin_gets_in() {
    let scene = scene(&[]).await;
    for path in ["heartbeat/", "all-users/", "/healthz", "/nothing"] {
        let (status, headers) = ask(&scene.api, Method::OPTIONS, path, &QUESTION).await;
        assert_eq!(status, if path == "/nothing" { 404 } else { 405 }, "{path}");
        assert!(!headers.keys().any(|name| name.as_str().starts_with("access-control")), "{headers:?}");
        let (_, headers) = ask(&scene.api, Method::GET, path, &QUESTION[..1]).await;
        assert!(!headers.contains_key("access-control-allow-origin"), "{headers:?}");
    }
}

#[tokio::test]
async fn an_origin_of_the_setting_may_call_every_path_with_its_methods() {
    let origins = format!("http://localhost:3000,{ORIGIN}");
    let scene = scene(&[("PRESENCE_CORS_ORIGINS", &origins)]).await;
    for (path, methods) in [
        ("heartbeat/", "POST"),
        ("heartbeat", "POST"),
        ("all-users/?page=1", "GET,HEAD"),
        ("me/sessions/", "GET,HEAD,DELETE"),
        ("admin/users/7/", "GET,HEAD,PATCH,DELETE"),
        ("/healthz", "GET,HEAD"),
    ] {
        let (status, headers) = ask(&scene.api, Method::OPTIONS, path, &QUESTION).await;
        assert_eq!(status, 204, "{path}");
        assert_eq!(headers["access-control-allow-methods"], methods, "{path}");
        assert_eq!(
            headers["access-control-allow-headers"],
            "authorization, content-type, if-none-match, x-presence-activity"
        );
        assert_eq!(headers["access-control-allow-origin"], ORIGIN);
        assert_eq!(headers["access-control-max-age"], "7200");
        assert!(!headers.contains_key("access-control-allow-credentials"));
        assert_eq!(headers["x-content-type-options"], "nosniff");
        assert!(!headers.contains_key("content-type"), "there is no body: {headers:?}");
    }
    // Answers and refusals alike can be read.
    for (path, status) in [("/healthz", 200), ("me/", 401), ("/nothing", 404)] {
        let (got, headers) = ask(&scene.api, Method::GET, path, &[("origin", ORIGIN)]).await;
        assert_eq!((got, &headers["access-control-allow-origin"]), (status, &ORIGIN.parse().unwrap()));
        assert_eq!(
            (&headers["access-control-expose-headers"], &headers["vary"]),
            (&"etag, retry-after".parse().unwrap(), &"origin".parse().unwrap())
        );
    }
    // Nobody else, and a plain OPTIONS asks nothing.
    let stranger = [("origin", "https://evil.example.com"), QUESTION[1]];
    let (status, headers) = ask(&scene.api, Method::OPTIONS, "heartbeat/", &stranger).await;
    assert!(status == 405 && !headers.contains_key("access-control-allow-origin"), "{headers:?}");
    assert_eq!(headers["vary"], "origin");
    assert_eq!(ask(&scene.api, Method::OPTIONS, "heartbeat/", &QUESTION[..1]).await.0, 405);
}

#[tokio::test]
async fn a_star_lets_every_origin_in() {
    let scene = scene(&[("PRESENCE_CORS_ORIGINS", "*")]).await;
    let (status, headers) = ask(&scene.api, Method::OPTIONS, "heartbeat/", &QUESTION).await;
    assert_eq!((status, &headers["access-control-allow-origin"]), (204, &"*".parse().unwrap()));
}

#[tokio::test]
async fn a_bad_setting_of_the_doors_ends_the_start_and_names_itself() {
    let table = [
        ("PRESENCE_CORS_ORIGINS", "app.example.com", "such as https://"),
        ("PRESENCE_CORS_ORIGINS", "https://app.example.com/", "no slash at the end"),
        ("PRESENCE_TRUSTED_PROXIES", "proxy.example.com", "such as 10.0.0.0/8"),
        ("PRESENCE_MAX_CONNECTIONS", "0", "1..=1000000"),
        ("PRESENCE_TLS_CERT", "/nowhere/certificate.pem", "set both, or neither"),
        ("PRESENCE_TLS_KEY", "/nowhere/key.pem", "set both, or neither"),
    ];
    for (name, value, must_say) in table {
        let env = vec![(name.to_owned(), value.to_owned())];
        let started = Presenced::try_start(PresencedOptions { env, ..PresencedOptions::default() }).await;
        let (code, output) = started.expect_err(value);
        let names_itself =
            output.contains(name) || output.contains(&name[9..].to_lowercase().replace('_', "-"));
        assert!(code != 0 && names_itself && output.contains(must_say), "{name}={value}: {output}");
    }
}

#[tokio::test]
async fn a_proxy_that_is_trusted_and_one_that_is_not_are_both_let_in() {
    let scene = scene(&[("PRESENCE_TRUSTED_PROXIES", "127.0.0.0/8, ::1")]).await;
    let token = access_token(1, "phone");
    for chain in ["203.0.113.9", "unknown, [2001:db8::1]:80", ""] {
        let request =
            scene.api.request(Method::POST, "heartbeat/", Some(&token)).header("x-forwarded-for", chain);
        assert_eq!(send(request).await.0, 200, "{chain:?}");
    }
}
