//! Bad requests: each has its own answer, and every answer is a whole problem.

use reqwest::Method;
use serde_json::{Value, json};

use super::{Engine, Stage, complaint, on_both_databases, problem};
use crate::support::http::{Answer, PASSWORD, send};

on_both_databases!(no_text_in_any_field_is_more_than_the_service_can_bear);

const JSON: &str = "application/json";
const MAX_BODY: usize = 64 * 1024;

async fn raw(
    stage: &Stage,
    method: Method,
    path: &str,
    kind: Option<&str>,
    body: impl Into<reqwest::Body>,
) -> Answer {
    let mut request = stage.api.request(method, path, Some(&stage.admin));
    if let Some(kind) = kind {
        request = request.header("content-type", kind);
    }
    send(request.body(body)).await
}

/// Every call that takes a body.
const BODIES: [(Method, &str); 8] = [
    (Method::POST, "register/"),
    (Method::POST, "login/"),
    (Method::POST, "token/refresh/"),
    (Method::POST, "logout/"),
    (Method::POST, "heartbeat/"),
    (Method::POST, "admin/users/"),
    (Method::PATCH, "admin/users/1/"),
    (Method::POST, "admin/users/1/set-online-status/"),
];

#[tokio::test]
async fn a_body_that_cannot_be_read_is_malformed_too_large_or_no_json() {
    let stage = Stage::start(Engine::Sqlite).await;
    let nested = "[".repeat(20_000);
    let malformed: [&[u8]; 9] = [
        b"{",
        b"nonsense",
        b"{\"status\": \"away\"} trailing",
        b"{\"status\": \"away\"}}",
        b"{'status': 'away'}",
        b"{\"status\": \"away\",}",
        b"{\"status\": \"\xff\"}",
        b"{\"status\": \"a\nb\"}",
        nested.as_bytes(),
    ];
    for (method, path) in BODIES {
        for body in malformed {
            let answer = raw(&stage, method.clone(), path, Some(JSON), body.to_vec()).await;
            assert_eq!(answer.0, 400, "{path} {}", String::from_utf8_lossy(body));
            problem(&answer, 400);
        }
        if path != "heartbeat/" {
            problem(&raw(&stage, method.clone(), path, Some(JSON), "").await, 400);
            problem(&raw(&stage, method.clone(), path, None, "").await, 415);
        }
        for kind in
            [None, Some("text/plain"), Some("application/x-www-form-urlencoded"), Some("application/jsonp")]
        {
            problem(&raw(&stage, method.clone(), path, kind, "{}").await, 415);
        }
        for length in [MAX_BODY + 1, 3 * MAX_BODY] {
            let body = format!("{{}}{}", " ".repeat(length - 2));
            problem(&raw(&stage, method.clone(), path, Some(JSON), body.clone()).await, 413);
        }
        let body = format!("{{\"x\": 1}}{}", " ".repeat(MAX_BODY - 8));
        complaint(&raw(&stage, method.clone(), path, Some(JSON), body).await, 422, "x");
        for body in ["[]", "\"away\"", "null", "5", "true", "[\"a\", \"b\", \"c\"]"] {
            problem(&raw(&stage, method.clone(), path, Some(JSON), body).await, 422);
        }
    }
    let whole = format!("{{\"status\": \"away\"}}{}", " ".repeat(MAX_BODY - 18));
    assert_eq!(whole.len(), MAX_BODY);
    for kind in ["application/json", "application/json; charset=utf-8", "Application/JSON;charset=UTF-8"] {
        let (status, body, _) = raw(&stage, Method::POST, "heartbeat/", Some(kind), whole.clone()).await;
        assert_eq!(
            (status.as_u16(), &body["online_status"]),
            (200, &json!("away")),
            "exactly 64 KiB is fine"
        );
    }
    for kind in [None, Some(JSON), Some("text/plain")] {
        assert_eq!(raw(&stage, Method::POST, "heartbeat/", kind, "").await.0, 200, "nothing needs no type");
    }
}

#[tokio::test]
async fn every_wrong_field_is_named() {
    let stage = Stage::start(Engine::Sqlite).await;
    let account = |more: &str| {
        format!(r#"{{"username": "ada", "email": "ada@example.org", "password": "{PASSWORD}"{more}}}"#)
    };
    let table: [(usize, &str, &str); 33] = [
        (0, "{}", "username"),
        (0, r#"{"username": "ada", "email": "ada@example.org"}"#, "password"),
        (0, r#"{"username": 5, "email": "ada@example.org", "password": "x"}"#, "username"),
        (0, r#"{"username": null, "email": "ada@example.org", "password": "x"}"#, "username"),
        (0, r#"{"username": ["ada"], "email": "ada@example.org", "password": "x"}"#, "username"),
        (0, r#"{"username": "ada", "username": "bob", "email": "a@b", "password": "x"}"#, "username"),
        (0, &account(r#", "role": "admin""#), "role"),
        (0, &account(r#", "is_active": true"#), "is_active"),
        (0, r#"{"username": "", "email": "ada@example.org", "password": "a long one"}"#, "username"),
        (0, r#"{"username": "a@b", "email": "ada@example.org", "password": "a long one"}"#, "username"),
        (0, r#"{"username": "ada", "email": "nobody", "password": "a long one"}"#, "email"),
        (0, r#"{"username": "ada", "email": "ada@example.org", "password": "short"}"#, "password"),
        (1, r#"{"username": "ada"}"#, "password"),
        (1, r#"{"email": "ada@example.org", "password": "x"}"#, "email"),
        (1, r#"{"username": "ada", "password": {}}"#, "password"),
        (2, "{}", "refresh"),
        (2, r#"{"refresh": 5}"#, "refresh"),
        (2, r#"{"refresh": "x", "access": "y"}"#, "access"),
        (3, "{}", "refresh"),
        (3, r#"{"refresh": null}"#, "refresh"),
        (4, r#"{"status": 5}"#, "status"),
        (4, r#"{"status": null}"#, "status"),
        (4, r#"{"state": "away"}"#, "state"),
        (4, r#"{"status": "away", "status": "away"}"#, "status"),
        (5, &account(r#", "role": "god""#), "role"),
        (5, &account(r#", "status": "gone""#), "status"),
        (5, &account(r#", "role": null"#), "role"),
        (5, &account(r#", "online_status": "online""#), "online_status"),
        (6, r#"{"is_active": "yes"}"#, "is_active"),
        (6, r#"{"is_active": 1}"#, "is_active"),
        (6, r#"{"username": "root"}"#, "username"),
        (7, "{}", "status"),
        (7, r#"{"status": ["online"]}"#, "status"),
    ];
    for (call, body, field) in table {
        let (method, path) = BODIES[call].clone();
        let answer = raw(&stage, method, path, Some(JSON), body.to_owned()).await;
        assert_eq!(answer.0, 422, "{path} {body}: {}", answer.1);
        complaint(&answer, 422, field);
        assert!(!answer.1.to_string().contains(PASSWORD), "a password is not repeated");
    }
    assert_eq!(stage.api.get("admin/users/", Some(&stage.admin)).await.1["pagination"]["total"], 1);
}

#[tokio::test]
async fn every_path_takes_its_methods_and_ids_and_no_others() {
    let stage = Stage::start(Engine::Sqlite).await;
    let paths = [
        ("register", "POST"),
        ("login", "POST"),
        ("token/refresh", "POST"),
        ("logout", "POST"),
        ("me", "GET"),
        ("me/sessions", "DELETE GET"),
        ("me/sessions/x", "DELETE"),
        ("heartbeat", "POST"),
        ("all-users", "GET"),
        ("admin/users", "GET POST"),
        ("admin/users/online", "GET"),
        ("admin/users/1", "DELETE GET PATCH"),
        ("admin/users/1/online-status", "GET"),
        ("admin/users/1/set-online-status", "POST"),
        ("/healthz", "GET"),
        ("/readyz", "GET"),
    ];
    for (path, allowed) in paths {
        for slash in ["", "/"] {
            let path = format!("{path}{slash}");
            for method in ["GET", "POST", "PUT", "PATCH", "DELETE"]
                .map(|name| Method::from_bytes(name.as_bytes()).unwrap())
            {
                let answer = send(stage.api.request(method.clone(), &path, None)).await;
                if allowed.contains(method.as_str()) {
                    assert!(answer.0 != 405 && answer.0 != 404, "{method} {path}: {}", answer.1);
                    if answer.0.is_client_error() {
                        problem(&answer, answer.0.as_u16());
                    }
                    continue;
                }
                problem(&answer, 405);
                let allow = answer.2["allow"].to_str().unwrap();
                let mut names: Vec<&str> = allow
                    .split(',')
                    .map(str::trim)
                    .filter(|name| *name != "HEAD" && *name != "OPTIONS")
                    .collect();
                names.sort_unstable();
                assert_eq!(names.join(" "), allowed, "{path}");
            }
        }
    }
    let nowhere = [
        "",
        "/",
        "nothing/",
        "login/x/",
        "me/session/",
        "admin/",
        "admin/users/1/online/",
        "/api",
        "/nothing",
        "//",
    ];
    for path in
        nowhere.map(|path| if path.starts_with('/') { path.to_owned() } else { format!("/api/users/{path}") })
    {
        if path == "/" {
            // The dashboard's.
            continue;
        }
        problem(&stage.api.get(&path, Some(&stage.admin)).await, 404);
    }
    let nobody = [
        "0",
        "-1",
        "+1",
        "1.0",
        "1e0",
        "abc",
        "%00",
        "%ff",
        "%20",
        "999",
        "9223372036854775807",
        "9223372036854775808",
        "99999999999999999999999999",
    ];
    for id in nobody {
        let path = format!("admin/users/{id}/");
        let admin = Some(stage.admin.as_str());
        problem(&stage.api.get(&path, admin).await, 404);
        problem(&stage.api.patch(&path, admin, &json!({})).await, 404);
        problem(&stage.api.delete(&path, admin).await, 404);
        problem(&stage.api.get(&format!("{path}online-status/"), admin).await, 404);
        problem(
            &stage.api.post(&format!("{path}set-online-status/"), admin, &json!({"status": "away"})).await,
            404,
        );
    }
}

#[tokio::test]
async fn every_bad_parameter_is_named() {
    let stage = Stage::start(Engine::Sqlite).await;
    let pages = [
        ("page=0", "page"),
        ("page=-1", "page"),
        ("page=x", "page"),
        ("page=1.5", "page"),
        ("page=", "page"),
        ("page=99999999999999999999", "page"),
        ("page=1&page=2", "page"),
        ("per_page=0", "per_page"),
        ("per_page=1001", "per_page"),
        ("per_page=-5", "per_page"),
        ("per_page=all", "per_page"),
        ("page=1&per_page=10000", "per_page"),
    ];
    let filters = [
        ("status=gone", "status"),
        ("status=ACTIVE", "status"),
        ("online_status=busy", "online_status"),
        ("online_status=Online", "online_status"),
        ("search=%00", "search"),
    ];
    let lists = ["all-users/", "admin/users/", "admin/users/online/"];
    for path in lists {
        let narrowed = path != "admin/users/online/";
        for (query, name) in pages.iter().chain(filters.iter().filter(|_| narrowed)) {
            let answer = stage.api.get(&format!("{path}?{query}"), Some(&stage.admin)).await;
            assert_eq!(answer.0, 400, "{path}?{query}: {}", answer.1);
            complaint(&answer, 400, name);
            assert!(problem(&answer, 400)["detail"].as_str().unwrap().contains(name), "{}", answer.1);
        }
        for good in ["per_page=1", "per_page=1000", "page=1", "page=4294967295&per_page=1000"] {
            assert_eq!(
                stage.api.get(&format!("{path}?{good}"), Some(&stage.admin)).await.0,
                200,
                "{path}?{good}"
            );
        }
    }
}

#[tokio::test]
async fn an_unknown_parameter_is_named_on_every_path() {
    let stage = Stage::start(Engine::Sqlite).await;
    let id = stage.api.register("ada").await["id"].as_i64().unwrap();
    let user = format!("admin/users/{id}");
    let paths = [
        ("POST", "register".to_owned()),
        ("POST", "login".to_owned()),
        ("POST", "token/refresh".to_owned()),
        ("POST", "logout".to_owned()),
        ("GET", "me".to_owned()),
        ("GET", "me/sessions".to_owned()),
        ("DELETE", "me/sessions".to_owned()),
        ("DELETE", "me/sessions/x".to_owned()),
        ("POST", "heartbeat".to_owned()),
        ("GET", "all-users".to_owned()),
        ("GET", "admin/users".to_owned()),
        ("POST", "admin/users".to_owned()),
        ("GET", "admin/users/online".to_owned()),
        ("GET", user.clone()),
        ("PATCH", user.clone()),
        ("DELETE", user.clone()),
        ("GET", format!("{user}/online-status")),
        ("POST", format!("{user}/set-online-status")),
        ("GET", format!("{user}/sessions")),
        ("DELETE", format!("{user}/sessions")),
        ("DELETE", format!("{user}/sessions/x")),
        ("GET", "admin/audit".to_owned()),
        ("GET", "/healthz".to_owned()),
        ("GET", "/readyz".to_owned()),
        ("GET", "/metrics".to_owned()),
    ];
    for (method, path) in paths {
        let method = Method::from_bytes(method.as_bytes()).unwrap();
        for query in ["/?serach=ada", "?serach=ada&_=1", "/?page_size=5&serach="] {
            let request = stage.api.request(method.clone(), &format!("{path}{query}"), Some(&stage.admin));
            let answer = send(request.json(&json!({}))).await;
            assert_eq!(answer.0, 400, "{method} {path}{query}: {}", answer.1);
            let name = if query.contains("serach") { "serach" } else { "page_size" };
            complaint(&answer, 400, name);
            assert!(problem(&answer, 400)["detail"].as_str().unwrap().contains(name), "{}", answer.1);
        }
    }
    assert_eq!(stage.user(id).await["username"], "ada", "nothing was done");
    // The right and the wrong are named together, and an empty query is none.
    let answer = stage.api.get("all-users/?page=0&nothing=1", Some(&stage.admin)).await;
    complaint(&answer, 400, "page");
    complaint(&answer, 400, "nothing");
    assert_eq!(stage.api.get("me/?", Some(&stage.admin)).await.0, 200);
}

async fn no_text_in_any_field_is_more_than_the_service_can_bear(engine: Engine) {
    let stage = Stage::start(engine).await;
    let admin = Some(stage.admin.clone());
    let (api, admin) = (&stage.api, admin.as_deref());
    let id = api.register("ada").await["id"].as_i64().unwrap();
    let texts = [
        "\0".to_owned(),
        "a\0b@example.org".to_owned(),
        "Ωμέγα-東京".to_owned(),
        "\u{202e}gnihton\u{200f}\u{2066}".to_owned(),
        "\u{feff}\u{ffff}\u{10ffff}".to_owned(),
        "\r\n\t\u{7f}\u{85}".to_owned(),
        "'; DROP TABLE users; --\\".to_owned(),
        "x".repeat(10_000),
        "😀".repeat(10_000),
        "\0".repeat(10_000),
    ];
    let bearable = |answer: &Answer, what: &str| {
        assert!(answer.0.as_u16() < 500, "{what}: {:.300}", answer.1.to_string());
        if answer.0.is_client_error() {
            problem(answer, answer.0.as_u16());
        }
    };
    let post = async |path: &str, body: Value| {
        let answer = api.post(path, admin, &body).await;
        bearable(&answer, &format!("{path} {:.100}", body.to_string()));
    };
    for (number, nasty) in texts.iter().enumerate() {
        let mail = format!("user{number}@example.org");
        post("register/", json!({"username": nasty, "email": mail, "password": PASSWORD})).await;
        post("register/", json!({"username": "new", "email": nasty, "password": "short"})).await;
        post("register/", json!({"username": "new", "email": nasty, "password": PASSWORD})).await;
        post("admin/users/", json!({"username": nasty, "email": nasty, "password": nasty})).await;
        post("admin/users/", json!({"username": "n", "email": "n@n", "password": PASSWORD, "role": nasty}))
            .await;
        post("admin/users/", json!({"username": "n", "email": "n@n", "password": PASSWORD, "status": nasty}))
            .await;
        post("login/", json!({"username": nasty, "password": PASSWORD})).await;
        post("login/", json!({"username": "ada", "password": nasty})).await;
        post("token/refresh/", json!({"refresh": nasty})).await;
        post("logout/", json!({"refresh": nasty})).await;
        post("heartbeat/", json!({"status": nasty})).await;
        post("heartbeat/", json!({nasty.as_str(): 1})).await;
        post(&format!("admin/users/{id}/set-online-status/"), json!({"status": nasty})).await;
        for field in ["email", "role", "status", "password", "is_active", nasty] {
            let edit = json!({field: nasty});
            bearable(&api.patch(&format!("admin/users/{id}/"), admin, &edit).await, field);
        }
        let start: Vec<u8> = nasty.bytes().take(6_000).collect();
        let encoded: String = form_urlencoded::byte_serialize(&start).collect();
        for path in [
            "all-users/?search=",
            "admin/users/?status=",
            "admin/users/?online_status=",
            "all-users/?page=",
            "me/sessions/",
            "admin/users/",
            "/",
        ] {
            let answer = api.get(&format!("{path}{encoded}"), admin).await;
            bearable(&answer, path);
        }
        let agent = reqwest::header::HeaderValue::from_bytes(&[0xff, 0xfe, b'x']).unwrap();
        let body = json!({"username": "ada", "password": PASSWORD});
        let answer =
            send(api.request(Method::POST, "login/", None).header("user-agent", agent).json(&body)).await;
        bearable(&answer, "user-agent");
    }
    // What was taken can be found, and shown to everybody.
    let found = api.get("all-users/?search=%E6%9D%B1%E4%BA%AC", admin).await.1;
    assert_eq!(found["results"][0]["username"], texts[2]);
    assert_eq!(api.get("admin/users/?per_page=1000", admin).await.0, 200);
    assert_eq!(api.login(&texts[2]).await.user["username"], texts[2]);
}
