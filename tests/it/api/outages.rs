//! A dependency that is down, hung or overrun: a quick, honest answer, and the way back.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use reqwest::Method;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::{AT_ONCE, Database, Engine, SOON, Stage, access, problem, setting};
use crate::support::{
    http::{Answer, Api, PASSWORD, Tokens, send},
    poll::eventually,
    postgres::PrivatePostgres,
    process::PresencedOptions,
};

/// One request, and whether it needs Redis, SQL, and shows presence.
struct Call {
    method: Method,
    path: String,
    token: Option<String>,
    body: Option<Value>,
}

fn call(method: Method, path: &str, token: &str, body: Option<Value>) -> Call {
    let token = (!token.is_empty()).then(|| token.to_owned());
    Call { method, path: path.to_owned(), token, body }
}

/// Sends all of them at the same time; each answer with how long it took.
async fn all_at_once(api: &Api, calls: Vec<Call>) -> Vec<(String, Answer, Duration)> {
    let mut requests = JoinSet::new();
    for Call { method, path, token, body } in calls {
        let mut request = api.request(method.clone(), &path, token.as_deref());
        if let Some(body) = body {
            request = request.json(&body);
        }
        requests.spawn(async move {
            let begun = Instant::now();
            let answer = send(request).await;
            (format!("{method} {path}"), answer, begun.elapsed())
        });
    }
    requests.join_all().await
}

fn writes(ada: &Tokens, admin: &str, id: i64) -> Vec<Call> {
    let login = json!({"username": "ada", "password": PASSWORD});
    vec![
        call(Method::POST, "heartbeat/", &ada.access, None),
        call(Method::POST, "heartbeat/", &access(id), Some(json!({"status": "away"}))),
        call(Method::POST, "login/", "", Some(login)),
        call(Method::POST, "logout/", &ada.access, Some(json!({"refresh": ada.refresh}))),
        call(Method::DELETE, "me/sessions/", &ada.access, None),
        call(Method::DELETE, "me/sessions/x/", &ada.access, None),
        call(Method::POST, "admin/users/1/set-online-status/", admin, Some(json!({"status": "away"}))),
        call(Method::PATCH, &format!("admin/users/{id}/"), admin, Some(json!({"status": "pending"}))),
        call(Method::DELETE, &format!("admin/users/{id}/"), admin, None),
    ]
}

fn reads(ada: &Tokens, admin: &str, id: i64) -> Vec<Call> {
    let paths = [
        "all-users/",
        "all-users/?page=9",
        "all-users/?online_status=online",
        "admin/users/",
        "admin/users/online/",
    ];
    let mut calls: Vec<Call> = paths.iter().map(|path| call(Method::GET, path, admin, None)).collect();
    calls.push(call(Method::GET, "me/", &ada.access, None));
    calls.push(call(Method::GET, &format!("admin/users/{id}/"), admin, None));
    calls.push(call(Method::GET, &format!("admin/users/{id}/online-status/"), admin, None));
    calls
}

async fn refuses_all_writes_and_degrades_all_reads(stage: &Stage, ada: &Tokens, bound: Duration) {
    let id = ada.user_id();
    for (what, answer, took) in all_at_once(&stage.api, writes(ada, &stage.admin, id)).await {
        assert!(answer.0 == 503 && took < bound, "{what}: {answer:?} after {took:?}");
        problem(&answer, 503);
    }
    for (what, (status, body, _), took) in all_at_once(&stage.api, reads(ada, &stage.admin, id)).await {
        assert!(status == 200 && took < bound, "{what}: {body} after {took:?}");
        assert_eq!(body["degraded"], true, "{what}: {body}");
    }
    let calls = ["/readyz", "/readyz/", "/healthz"].map(|path| call(Method::GET, path, "", None));
    for (what, (status, body, _), took) in all_at_once(&stage.api, calls.into()).await {
        assert!(took < Duration::from_secs(2), "{what} after {took:?}");
        if what.contains("readyz") {
            assert_eq!((status.as_u16(), &body["status"]), (503, &json!("unavailable")), "{body}");
            assert_eq!(body["checks"]["database"], "ok", "{body}");
            assert!(body["checks"]["redis"].is_string() && body["checks"]["redis"] != "ok", "{body}");
        } else {
            assert_eq!(status, 200, "the process is alive");
        }
    }
    // What needs no Redis goes on.
    let sessions = stage.api.get("me/sessions/", Some(&ada.access)).await;
    assert_eq!(sessions.0, 200, "{}", sessions.1);
    assert_eq!(sessions.1["sessions"].as_array().unwrap().len(), 1, "half a login is none");
    problem(&stage.api.get("me/", None).await, 401);
}

async fn comes_back(stage: &Stage, ada: &Tokens) {
    works_again(stage, ada).await;
    eventually(SOON, async || {
        let (_, body, _) = stage.api.get("all-users/?online_status=online", Some(&ada.access)).await;
        let whole = body.get("degraded").is_none() && body["online_count"].as_i64() >= Some(1);
        if whole { Ok(()) } else { Err(body) }
    })
    .await;
}

async fn works_again(stage: &Stage, ada: &Tokens) {
    eventually(SOON, async || {
        let answer = stage.api.heartbeat(&ada.access).await;
        if answer.0 == 200 { Ok(()) } else { Err(answer.1) }
    })
    .await;
    eventually(SOON, async || {
        let (status, body, _) = stage.api.get("/readyz", None).await;
        if status == 200 { Ok(()) } else { Err(body) }
    })
    .await;
    stage.api.login("ada").await;
}

#[tokio::test]
async fn a_dead_redis_is_said_within_half_a_second() {
    let mut stage = Stage::start(Engine::Postgres).await;
    let ada = stage.join("ada").await;
    // Known to SQL before Redis goes.
    eventually(SOON, async || {
        let known = stage.history(ada.user_id()).await.len();
        if known == 1 { Ok(()) } else { Err(known) }
    })
    .await;
    let [bob, carol, dora] = [stage.join("bob").await, stage.join("carol").await, stage.join("dora").await];
    let body = json!({"refresh": bob.refresh});
    assert_eq!(stage.api.post("logout/", Some(&bob.access), &body).await.0, 200);
    stage.patch(carol.user_id(), json!({"status": "banned"})).await;
    stage.redis.kill().await;
    for _ in 0..2 {
        refuses_all_writes_and_degrades_all_reads(&stage, &ada, Duration::from_millis(500)).await;
    }
    stage.sql.run(&format!("UPDATE users SET is_active = false WHERE id = {}", dora.user_id())).await;
    let refused = [(&bob.access, 401), (&carol.access, 403), (&dora.access, 403)];
    for (token, status) in refused {
        problem(&stage.api.get("me/", Some(token)).await, status);
    }
    let me = stage.api.get("me/", Some(&ada.access)).await.1;
    assert_eq!(me["user"]["online_status"], "online", "SQL has heard of her within the TTL: {me}");
    stage.redis.restart().await;
    works_again(&stage, &ada).await;
    // It has lost all it held: for a TTL reads keep to SQL's word of users who have not been heard since, and say so.
    let (_, body, _) = stage.api.get("all-users/?online_status=online", Some(&ada.access)).await;
    assert_eq!(body["degraded"], true, "{body}");
    let names = body["results"].as_array().unwrap().iter().map(|user| &user["username"]);
    assert!(names.clone().any(|name| name == "ada"), "{body}");
    for (token, status) in refused {
        problem(&stage.api.heartbeat(token).await, status);
    }
}

#[tokio::test]
async fn a_hung_redis_is_said_within_two_seconds() {
    let stage = Stage::with(Engine::Postgres, setting("PRESENCE_REFRESH_GRACE", "0s")).await;
    let ada = stage.join("ada").await;
    let bob = stage.join("bob").await;
    let stolen = json!({"refresh": bob.refresh});
    assert_eq!(stage.api.post("token/refresh/", None, &stolen).await.0, 200);
    stage.redis.pause();
    problem(&stage.api.post("token/refresh/", None, &stolen).await, 401);
    refuses_all_writes_and_degrades_all_reads(&stage, &ada, Duration::from_secs(2)).await;
    stage.redis.resume();
    comes_back(&stage, &ada).await;
    // Redis could not be told of the session's end while it hung; SQL has kept it.
    eventually(AT_ONCE, async || {
        let answer = stage.api.heartbeat(&bob.access).await;
        if answer.0 == 401 { Ok(()) } else { Err(answer) }
    })
    .await;
}

#[tokio::test]
async fn a_dead_or_hung_database_is_said_within_three_seconds_and_heartbeats_never_notice() {
    let mut postgres = PrivatePostgres::start().await;
    let database = Database::Postgres(postgres.database().await);
    let stage = Stage::on(database, PresencedOptions::default()).await;
    let ada = stage.join("ada").await;
    let id = ada.user_id();
    for hung in [true, false] {
        if hung {
            postgres.pause();
        } else {
            postgres.kill().await;
        }
        let ended = Arc::new(AtomicBool::new(false));
        let beats = {
            let (api, access, ended) = (stage.api.clone(), ada.access.clone(), ended.clone());
            tokio::spawn(async move {
                let mut times = Vec::new();
                while !ended.load(Ordering::Relaxed) {
                    let begun = Instant::now();
                    let (status, body, _) = api.heartbeat(&access).await;
                    assert_eq!(status, 200, "{body}");
                    times.push(begun.elapsed());
                }
                times.sort_unstable();
                times[times.len() * 99 / 100]
            })
        };
        let mut calls = reads(&ada, &stage.admin, id);
        // Equal ones share an answer: nobody waits for two in a row.
        calls.extend((0..6).map(|_| call(Method::GET, "all-users/?per_page=7", &stage.admin, None)));
        let register = json!({"username": "new", "email": "new@example.org", "password": PASSWORD});
        calls.push(call(Method::POST, "register/", "", Some(register)));
        calls.push(call(Method::POST, "login/", "", Some(json!({"username": "ada", "password": PASSWORD}))));
        calls.push(call(Method::POST, "token/refresh/", "", Some(json!({"refresh": ada.refresh}))));
        calls.push(call(Method::POST, "logout/", &ada.access, Some(json!({"refresh": ada.refresh}))));
        calls.push(call(Method::GET, "me/sessions/", &ada.access, None));
        calls.push(call(Method::DELETE, "me/sessions/", &ada.access, None));
        calls.push(call(
            Method::POST,
            "admin/users/1/set-online-status/",
            &stage.admin,
            Some(json!({"status": "away"})),
        ));
        calls.push(call(Method::DELETE, &format!("admin/users/{id}/"), &stage.admin, None));
        for (what, answer, took) in all_at_once(&stage.api, calls).await {
            assert!(answer.0 == 503 && took < Duration::from_secs(3), "{what}: {answer:?} after {took:?}");
            problem(&answer, 503);
        }
        ended.store(true, Ordering::Relaxed);
        let p99 = beats.await.unwrap();
        assert!(p99 < Duration::from_millis(500), "{p99:?}");
        let (status, body, _) = stage.api.get("/readyz", None).await;
        assert_eq!((status.as_u16(), &body["checks"]["redis"]), (503, &json!("ok")), "{body}");
        assert!(body["checks"]["database"].is_string() && body["checks"]["database"] != "ok", "{body}");
        if hung {
            postgres.resume();
        } else {
            postgres.restart().await;
        }
        comes_back(&stage, &ada).await;
    }
}

#[tokio::test]
async fn a_flood_of_logins_is_refused_and_disturbs_no_heartbeat() {
    let stage = Stage::start(Engine::Sqlite).await;
    let ada = stage.join("ada").await;
    let mut flood = JoinSet::new();
    for _ in 0..400 {
        let api = stage.api.clone();
        let body = json!({"username": "ada", "password": "wrong"});
        flood.spawn(async move { api.post("login/", None, &body).await });
    }
    let (mut refused, mut slowest) = (0, Duration::ZERO);
    while refused < 50 {
        let answer = flood.join_next().await.expect("not every login is let in").unwrap();
        refused += usize::from(answer.0 == 429);
        problem(&answer, if answer.0 == 429 { 429 } else { 401 });
        if refused % 10 == 1 {
            let begun = Instant::now();
            assert_eq!(stage.api.heartbeat(&ada.access).await.0, 200);
            slowest = slowest.max(begun.elapsed());
        }
    }
    assert!(slowest < Duration::from_millis(500), "{slowest:?}");
}
