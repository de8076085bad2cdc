//! `X-Presence-Activity: none`: requests that leave the caller's presence as it is.

use reqwest::Method;
use serde_json::{Value, json};

use super::{
    AT_ONCE, Engine, SOON, Stage, access, complaint, on_both_databases, presence_key, problem, setting,
};
use crate::support::http::{Answer, PASSWORD, send};
use crate::support::poll::eventually;

on_both_databases!(
    a_request_that_is_no_activity_leaves_no_trace,
    such_a_request_is_checked_as_any_other,
    such_a_request_is_answered_while_redis_is_away,
    a_redis_that_forgot_lets_no_such_request_in_that_it_should_not,
);

async fn quietly(stage: &Stage, method: Method, path: &str, token: &str, body: Option<Value>) -> Answer {
    let request = stage.api.request(method, path, Some(token)).header("X-Presence-Activity", "none");
    send(match body {
        Some(body) => request.json(&body),
        None => request,
    })
    .await
}

async fn a_request_that_is_no_activity_leaves_no_trace(engine: Engine) {
    let stage = Stage::start(engine).await;
    let ada = stage.join("ada").await;
    let id = ada.user_id();
    // A user who is offline stays offline, and nothing is written to Redis or SQL.
    stage.api.post("logout/", Some(&ada.access), &json!({"refresh": ada.refresh})).await;
    let probe = access(id);
    let paths = ["me/", "me/sessions/", "all-users/", "all-users/?search=a"];
    for path in paths {
        let (status, body, _) = quietly(&stage, Method::GET, path, &probe, None).await;
        assert_eq!(status, 200, "{path}: {body}");
        assert_eq!(stage.redis.cli(&["EXISTS", &presence_key(id)]), "0", "{path}");
    }
    let me = quietly(&stage, Method::GET, "me/", &probe, None).await.1["user"].clone();
    assert_eq!((&me["online_status"], &me["is_online"]), (&json!("offline"), &json!(false)));
    // A user who is online keeps deadline and status.
    assert_eq!(stage.api.post("heartbeat/", Some(&probe), &json!({"status": "away"})).await.0, 200);
    let (deadline, key) = (stage.deadline_ms(id), stage.redis.cli(&["HGETALL", &presence_key(id)]));
    for path in paths {
        assert_eq!(quietly(&stage, Method::GET, path, &probe, None).await.0, 200);
    }
    // What changes something is no activity either.
    assert_eq!(quietly(&stage, Method::DELETE, "me/sessions/unknown/", &probe, None).await.0, 404);
    assert_eq!((stage.deadline_ms(id), stage.redis.cli(&["HGETALL", &presence_key(id)])), (deadline, key));
    // An administrator's probe, and a change that it makes.
    assert_eq!(quietly(&stage, Method::GET, "admin/users/online/", &stage.admin, None).await.0, 200);
    let edit = Some(json!({"status": "pending"}));
    assert_eq!(
        quietly(&stage, Method::PATCH, &format!("admin/users/{id}/"), &stage.admin, edit).await.0,
        200
    );
    assert_eq!(stage.redis.cli(&["EXISTS", &presence_key(1)]), "0", "the administrator was never there");
    // A login begins a session, and that is all.
    let bob = stage.api.register("bob").await["id"].as_i64().unwrap();
    let login = json!({"username": "bob", "password": PASSWORD});
    let (status, body, _) = quietly(&stage, Method::POST, "login/", "", Some(login)).await;
    assert_eq!((status.as_u16(), &body["user"]["online_status"]), (200, &json!("offline")), "{body}");
    assert_eq!(stage.redis.cli(&["EXISTS", &presence_key(bob)]), "0");
    let (status, body, _) = stage.api.heartbeat(body["access"].as_str().unwrap()).await;
    assert_eq!((status.as_u16(), &body["online_status"]), (200, &json!("online")), "its tokens are good");
    let recorded = stage.history(1).await;
    assert!(recorded.is_empty(), "{recorded:?}");
}

async fn such_a_request_is_checked_as_any_other(engine: Engine) {
    let stage = Stage::start(engine).await;
    let ada = stage.join("ada").await;
    let id = ada.user_id();
    problem(&quietly(&stage, Method::GET, "me/", "x.y.z", None).await, 401);
    problem(&quietly(&stage, Method::GET, "admin/users/", &ada.access, None).await, 403);
    // Another value, or the same one twice, is refused; with a heartbeat any value is.
    for value in ["", "all", "false", "none, none"] {
        for path in ["me/", "all-users/", "admin/users/"] {
            let request = stage.api.request(Method::GET, path, Some(&stage.admin));
            complaint(&send(request.header("x-presence-activity", value)).await, 400, "X-Presence-Activity");
        }
    }
    for value in ["none", "all"] {
        let request = stage.api.request(Method::POST, "heartbeat/", Some(&ada.access));
        complaint(&send(request.header("x-presence-activity", value)).await, 400, "X-Presence-Activity");
    }
    // An ended session, and a blocked account.
    let other = stage.api.login("ada").await;
    stage.api.post("logout/", Some(&other.access), &json!({"refresh": other.refresh})).await;
    problem(&quietly(&stage, Method::GET, "me/", &other.access, None).await, 401);
    assert_eq!(quietly(&stage, Method::GET, "me/", &ada.access, None).await.0, 200);
    stage.sql.run(&format!("UPDATE users SET status = 'suspended' WHERE id = {id}")).await;
    eventually(AT_ONCE, async || {
        let answer = quietly(&stage, Method::GET, "me/", &ada.access, None).await;
        if answer.0 == 403 { Ok(()) } else { Err(answer) }
    })
    .await;
}

async fn such_a_request_is_answered_while_redis_is_away(engine: Engine) {
    let stage = Stage::start(engine).await;
    let ada = stage.join("ada").await;
    let blocked = stage.join("bob").await;
    stage.patch(blocked.user_id(), json!({"status": "banned"})).await;
    stage.redis.kill().await;
    eventually(SOON, async || {
        let answer = quietly(&stage, Method::GET, "me/", &ada.access, None).await;
        if answer.0 == 200 && answer.1["degraded"] == true { Ok(()) } else { Err(answer) }
    })
    .await;
    problem(&quietly(&stage, Method::GET, "me/", &blocked.access, None).await, 403);
    problem(&quietly(&stage, Method::DELETE, "me/sessions/", &ada.access, None).await, 503);
}

/// Without its data Redis knows of no block and of no ended session.
async fn a_redis_that_forgot_lets_no_such_request_in_that_it_should_not(engine: Engine) {
    let stage = Stage::with(engine, setting("PRESENCE_LAST_SEEN_FLUSH", "0")).await;
    let ada = stage.join("ada").await;
    let gone = stage.api.login("ada").await;
    let bob = stage.join("bob").await;
    stage.api.post("logout/", Some(&gone.access), &json!({"refresh": gone.refresh})).await;
    stage.patch(bob.user_id(), json!({"status": "banned"})).await;
    for _ in 0..3 {
        stage.redis.cli(&["FLUSHALL"]);
        let (blocked, ended, good) = tokio::join!(
            quietly(&stage, Method::GET, "me/", &bob.access, None),
            quietly(&stage, Method::GET, "me/", &gone.access, None),
            quietly(&stage, Method::GET, "me/", &ada.access, None),
        );
        problem(&blocked, 403);
        problem(&ended, 401);
        assert_eq!(good.0, 200, "{}", good.1);
    }
}
