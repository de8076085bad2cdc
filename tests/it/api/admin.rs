//! The administration.

use reqwest::Method;
use serde_json::{Value, json};

use super::{Engine, Stage, access, column, complaint, on_both_databases, presence_key, problem};
use crate::support::http::{PASSWORD, send};

on_both_databases!(
    accounts_are_made_read_changed_and_deleted,
    the_administration_is_for_administrators,
    a_status_is_set_by_the_rules,
);

fn new(name: &str) -> Value {
    json!({"username": name, "email": format!("{name}@example.org"), "password": PASSWORD})
}

async fn accounts_are_made_read_changed_and_deleted(engine: Engine) {
    let stage = Stage::start(engine).await;
    let (api, admin) = (&stage.api, Some(stage.admin.as_str()));
    let mut body = new("boss");
    (body["role"], body["status"]) = (json!("admin"), json!("pending"));
    let (status, made, _) = api.post("admin/users/", admin, &body).await;
    let user = &made["user"];
    let expected = json!({
        "id": user["id"], "username": "boss", "email": "boss@example.org", "role": "admin", "status": "pending",
        "is_active": true, "online_status": "offline", "last_seen": null, "is_online": false,
    });
    assert_eq!((status.as_u16(), user), (201, &expected));
    let id = user["id"].as_i64().unwrap();
    let (status, plain, _) = api.post("admin/users", admin, &new("plain")).await;
    assert_eq!(
        (status.as_u16(), &plain["user"]["role"], &plain["user"]["status"]),
        (201, &json!("user"), &json!("active"))
    );
    let mut taken = new("BOSS");
    taken["email"] = json!("free@example.org");
    complaint(&api.post("admin/users/", admin, &taken).await, 409, "username");
    let mut banned = new("banned");
    banned["status"] = json!("banned");
    assert_eq!(api.post("admin/users/", admin, &banned).await.0, 201);
    problem(&api.post("login/", None, &json!({"username": "banned", "password": PASSWORD})).await, 403);
    let boss = api.login("boss").await;
    assert_eq!(api.get("admin/users/", Some(&boss.access)).await.0, 200);

    for edit in [
        json!({"email": "new@example.org"}),
        json!({"role": "user", "status": "active"}),
        json!({"is_active": true}),
        json!({}),
    ] {
        let changed = stage.patch(id, edit.clone()).await;
        for (field, value) in edit.as_object().unwrap() {
            assert_eq!(&changed[field], value);
        }
        assert_eq!((&changed["online_status"], &changed["username"]), (&json!("online"), &json!("boss")));
        assert_eq!(stage.user(id).await, changed);
    }
    let refused = [
        (json!({"username": "other"}), 422, "username"),
        (json!({"online_status": "away"}), 422, "online_status"),
        (json!({"last_seen": null}), 422, "last_seen"),
        (json!({"id": 7}), 422, "id"),
        (json!({"role": "god"}), 422, "role"),
        (json!({"status": "gone"}), 422, "status"),
        (json!({"email": "nobody"}), 422, "email"),
        (json!({"email": "PLAIN@example.org"}), 409, "email"),
        (json!({"password": "short"}), 422, "password"),
        (json!({"is_active": null}), 422, "is_active"),
    ];
    for (edit, status, field) in refused {
        let answer = api.patch(&format!("admin/users/{id}/"), admin, &edit).await;
        complaint(&answer, status, field);
    }
    assert_eq!(stage.user(id).await["email"], "new@example.org");

    let path = format!("admin/users/{id}/");
    let (status, body, _) = api.delete(&path, admin).await;
    assert_eq!((status.as_u16(), body), (204, Value::Null));
    problem(&api.get(&path, admin).await, 404);
    problem(&api.patch(&path, admin, &json!({})).await, 404);
    problem(&api.delete(&path, admin).await, 404);
    problem(&api.get(&format!("{path}online-status/"), admin).await, 404);
    problem(&stage.set_status(id, "online").await, 404);
    let names = column(&api.get("admin/users/", admin).await.1, "results", "username");
    assert_eq!(names, ["admin", "plain", "banned"]);
    // Name and address are free again, and the newcomer is somebody else.
    let again = api.register("boss").await;
    assert!(again["id"].as_i64().unwrap() > id && again["online_status"] == "offline");

    // Nobody locks himself out.
    for edit in [json!({"role": "user"}), json!({"status": "banned"}), json!({"is_active": false})] {
        problem(&api.patch("admin/users/1/", admin, &edit).await, 409);
    }
    problem(&api.delete("admin/users/1/", admin).await, 409);
    assert_eq!(stage.user(1).await["role"], "admin");
}

async fn the_administration_is_for_administrators(engine: Engine) {
    let stage = Stage::start(engine).await;
    let ada = stage.join("ada").await;
    let id = ada.user_id();
    let calls = [
        (Method::GET, "admin/users/".to_owned(), None),
        (Method::POST, "admin/users/".to_owned(), Some(new("mallory"))),
        (Method::GET, "admin/users/1/".to_owned(), None),
        (Method::GET, "admin/users/999/".to_owned(), None),
        (Method::PATCH, format!("admin/users/{id}/"), Some(json!({"role": "admin"}))),
        (Method::DELETE, "admin/users/1/".to_owned(), None),
        (Method::GET, "admin/users/online/".to_owned(), None),
        (Method::GET, format!("admin/users/{id}/online-status/"), None),
        (Method::POST, "admin/users/1/set-online-status/".to_owned(), Some(json!({"status": "offline"}))),
    ];
    for (method, path, body) in calls {
        for (token, expected) in [(Some(ada.access.as_str()), 403), (None, 401), (Some("nonsense"), 401)] {
            let mut request = stage.api.request(method.clone(), &path, token);
            if let Some(body) = &body {
                request = request.json(body);
            }
            problem(&send(request).await, expected);
        }
    }
    assert_eq!(
        (stage.user(id).await["role"].clone(), stage.status(1).await),
        (json!("user"), "online".into())
    );
    assert_eq!(stage.api.get("admin/users/", Some(&stage.admin)).await.1["pagination"]["total"], 2);
}

async fn a_status_is_set_by_the_rules(engine: Engine) {
    let stage = Stage::start(engine).await;
    let api = &stage.api;
    let ada = stage.join("ada").await;
    let bob = api.register("bob").await["id"].as_i64().unwrap();
    let id = ada.user_id();
    for word in ["busy", "", "ONLINE", "on\0line", "login", "touch"] {
        complaint(&stage.set_status(id, word).await, 400, "status");
    }
    assert_eq!(stage.status(id).await, "online", "nothing has changed");
    let fields = ["is_online", "last_seen", "online_status", "user_id", "username"];
    let (_, body, _) = api.get(&format!("admin/users/{bob}/online-status"), Some(&stage.admin)).await;
    let mut members: Vec<_> = body.as_object().unwrap().keys().map(String::as_str).collect();
    members.sort_unstable();
    assert_eq!((members.as_slice(), &body["last_seen"]), (fields.as_slice(), &Value::Null));

    for block in [json!({"status": "suspended"}), json!({"status": "active", "is_active": false})] {
        stage.patch(id, block).await;
        for word in ["online", "away"] {
            problem(&stage.set_status(id, word).await, 409);
        }
        let (status, body, _) = stage.set_status(id, "offline").await;
        assert_eq!((status.as_u16(), &body["online_status"]), (200, &json!("offline")));
    }
    // Blocked behind the service's back: SQL is asked, so not even a moment's delay.
    stage.patch(id, json!({"is_active": true})).await;
    stage.sql.run(&format!("UPDATE users SET status = 'inactive' WHERE id = {id}")).await;
    problem(&stage.set_status(id, "online").await, 409);
    stage.sql.run(&format!("UPDATE users SET status = 'active' WHERE id = {id}")).await;
    assert_eq!(stage.set_status(id, "away").await.1["online_status"], "away");
    assert_eq!(stage.status(id).await, "away");
    problem(&api.heartbeat(&ada.access).await, 401);
    let ada = api.login("ada").await;
    assert_eq!(api.heartbeat(&ada.access).await.0, 200, "the block has ended his session, not him");

    // A guest of whom only the administrator knows comes and goes like everybody.
    assert_eq!(stage.set_status(bob, "online").await.1["is_online"], true);
    let listed = api.get("admin/users/online/", Some(&stage.admin)).await.1;
    assert!(column(&listed, "online_users", "id").contains(&json!(bob)), "{listed}");
    assert_eq!(api.heartbeat(&access(bob)).await.0, 200);
    assert_eq!(stage.redis.cli(&["HEXISTS", &presence_key(bob), "admin"]), "0", "his own word counts now");
}
