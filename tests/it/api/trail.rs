//! The trail of administrators, and the rule that somebody is always left who can administer.

use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::{Engine, Stage, access, complaint, instant_ms, on_both_databases, problem, text};
use crate::support::http::PASSWORD;

on_both_databases!(
    whatever_an_administrator_does_is_told,
    what_came_to_nothing_is_not_told,
    what_cannot_be_recorded_is_not_done,
    the_trail_is_for_administrators_and_can_be_searched,
    of_two_who_depose_each_other_one_remains,
);

async fn trail(stage: &Stage, query: &str) -> Vec<Value> {
    let (status, body, _) = stage.api.get(&format!("admin/audit/?{query}"), Some(&stage.admin)).await;
    assert_eq!(status, 200, "{body}");
    body["entries"].as_array().unwrap().clone()
}

async fn make(stage: &Stage, name: &str, role: &str) -> i64 {
    let body =
        json!({"username": name, "email": format!("{name}@example.com"), "password": PASSWORD, "role": role});
    let (status, answer, _) = stage.api.post("admin/users/", Some(&stage.admin), &body).await;
    assert_eq!(status, 201, "{answer}");
    answer["user"]["id"].as_i64().unwrap()
}

fn change(field: &str, from: impl Into<Value>, to: impl Into<Value>) -> Value {
    json!({"field": field, "from": from.into(), "to": to.into()})
}

async fn whatever_an_administrator_does_is_told(engine: Engine) {
    let stage = Stage::start(engine).await;
    let admin = Some(stage.admin.as_str());
    let before = chrono::Utc::now().timestamp_millis();
    let id = make(&stage, "ada", "user").await;
    let session = stage.api.login("ada").await;
    stage.api.login("ada").await;
    let sid = text(&super::claims(&session.access)["sid"]);
    stage
        .patch(id, json!({"status": "pending", "email": "ada@example.org", "password": "another password"}))
        .await;
    stage.api.login_with("ada", "another password").await;
    let path = format!("admin/users/{id}/sessions/");
    let listed = stage.api.get(&path, admin).await.1;
    let alive = text(&listed["sessions"][0]["sid"]);
    assert!(alive != sid && listed["sessions"].as_array().unwrap().len() == 1, "{listed}");
    assert_eq!(stage.api.delete(&format!("{path}{alive}/"), admin).await.0, 204);
    assert_eq!(stage.api.delete(&path, admin).await.0, 204);
    assert_eq!(stage.set_status(id, "away").await.0, 200);
    stage.patch(id, json!({"status": "banned"})).await;
    assert_eq!(stage.api.delete(&format!("admin/users/{id}/"), admin).await.0, 204);

    let entries = trail(&stage, &format!("user={id}")).await;
    let told: Vec<(String, Value)> =
        entries.iter().rev().map(|entry| (text(&entry["action"]), entry["changes"].clone())).collect();
    let null = || Value::Null;
    let expected = [
        (
            "create_user",
            json!([
                change("email", null(), "ada@example.com"),
                change("role", null(), "user"),
                change("status", null(), "active"),
                change("is_active", null(), "true")
            ]),
        ),
        (
            "update_user",
            json!([
                change("email", "ada@example.com", "ada@example.org"),
                change("status", "active", "pending"),
                change("password", null(), null())
            ]),
        ),
        ("end_sessions", json!([change("session", alive.as_str(), null())])),
        ("end_sessions", json!([])),
        ("set_online_status", json!([change("online_status", "offline", "away")])),
        ("update_user", json!([change("status", "pending", "banned")])),
        (
            "delete_user",
            json!([
                change("email", "ada@example.org", null()),
                change("role", "user", null()),
                change("status", "banned", null()),
                change("is_active", "true", null())
            ]),
        ),
    ];
    assert_eq!(told, expected.map(|(action, changes)| (action.to_owned(), changes)));
    for entry in &entries {
        assert_eq!(entry["admin"], json!({"id": 1, "username": "admin"}));
        assert_eq!(entry["user"], json!({"id": id, "username": "ada"}));
        assert_eq!(entry["address"], "127.0.0.1");
        let at = instant_ms(&entry["at"]);
        assert!((before..before + 60_000).contains(&at), "{entry}");
    }
    let shown = format!("{entries:?}");
    assert!(!shown.contains("another password") && !shown.contains("argon2"), "{shown}");
}

async fn what_came_to_nothing_is_not_told(engine: Engine) {
    let stage = Stage::start(engine).await;
    let admin = Some(stage.admin.as_str());
    let id = make(&stage, "ada", "user").await;
    make(&stage, "bob", "user").await;
    let path = format!("admin/users/{id}/");
    problem(&stage.api.patch(&path, admin, &json!({"status": "gone"})).await, 422);
    problem(
        &stage.api.patch(&path, admin, &json!({"status": "banned", "email": "bob@example.com"})).await,
        409,
    );
    problem(&stage.api.patch("admin/users/99/", admin, &json!({"status": "banned"})).await, 404);
    problem(&stage.api.delete("admin/users/99/", admin).await, 404);
    problem(&stage.api.delete(&format!("{path}sessions/unknown/"), admin).await, 404);
    problem(&stage.api.delete("admin/users/99/sessions/", admin).await, 404);
    problem(&stage.api.get("admin/users/99/sessions/", admin).await, 404);
    problem(&stage.set_status(99, "online").await, 404);
    stage.patch(id, json!({"status": "active"})).await;
    stage.patch(id, json!({})).await;
    let told = trail(&stage, "").await;
    assert_eq!(told.len(), 2, "the two accounts made: {told:?}");
    assert_eq!(stage.user(id).await["status"], "active", "an edit is done whole or not at all");
}

/// The database takes everything but the record: then nothing may happen, in SQL or in Redis.
async fn what_cannot_be_recorded_is_not_done(engine: Engine) {
    let stage = Stage::start(engine).await;
    let admin = Some(stage.admin.as_str());
    let ada = stage.join("ada").await;
    let id = ada.user_id();
    let path = format!("admin/users/{id}/");
    let sid = text(&super::claims(&ada.access)["sid"]);
    let (refuse, allow) = match engine {
        Engine::Postgres => (
            "ALTER TABLE admin_actions ADD CONSTRAINT full_up CHECK (false) NOT VALID",
            "ALTER TABLE admin_actions DROP CONSTRAINT full_up",
        ),
        Engine::Sqlite => (
            "CREATE TRIGGER full_up BEFORE INSERT ON admin_actions BEGIN SELECT RAISE(ABORT, 'full'); END",
            "DROP TRIGGER full_up",
        ),
    };
    stage.sql.run(refuse).await;
    let new = json!({"username": "bob", "email": "bob@example.com", "password": PASSWORD});
    let refused = [
        stage.api.post("admin/users/", admin, &new).await,
        stage.api.patch(&path, admin, &json!({"status": "banned"})).await,
        stage.api.patch(&path, admin, &json!({"password": "another password"})).await,
        stage.set_status(id, "offline").await,
        stage.set_status(id, "away").await,
        stage.api.delete(&format!("{path}sessions/{sid}/"), admin).await,
        stage.api.delete(&format!("{path}sessions/"), admin).await,
        stage.api.delete(&path, admin).await,
    ];
    for answer in &refused {
        let detail = problem(answer, 503)["detail"].to_string();
        assert!(detail.contains("nothing was changed"), "{detail}");
    }
    assert_eq!(stage.status(id).await, "online", "nor has Redis heard of it");
    assert_eq!(stage.api.heartbeat(&ada.access).await.0, 200);
    assert_eq!(stage.api.login("ada").await.user["status"], "active");
    let listed = stage.api.get("admin/users/?search=bob", admin).await.1;
    assert_eq!(listed["pagination"]["total"], 0, "{listed}");
    let reasons: Vec<_> = stage.history(id).await.into_iter().map(|row| row.reason).collect();
    assert_eq!(reasons, ["login"]);
    assert!(trail(&stage, "").await.is_empty());

    stage.sql.run(allow).await;
    assert_eq!(stage.set_status(id, "offline").await.0, 200);
    assert_eq!(trail(&stage, "").await.len(), 1);
}

async fn the_trail_is_for_administrators_and_can_be_searched(engine: Engine) {
    let stage = Stage::start(engine).await;
    let ada = stage.join("ada").await;
    problem(&stage.api.get("admin/audit/", Some(&ada.access)).await, 403);
    problem(&stage.api.get("admin/audit/", None).await, 401);
    let path = format!("admin/users/{}/sessions/", ada.user_id());
    problem(&stage.api.get(&path, Some(&ada.access)).await, 403);
    problem(&stage.api.delete(&path, Some(&ada.access)).await, 403);
    for (query, field) in [
        ("user=0", "user"),
        ("user=x", "user"),
        ("admin=-1", "admin"),
        ("action=x", "action"),
        ("page=0", "page"),
    ] {
        let path = format!("admin/audit/?{query}");
        complaint(&stage.api.get(&path, Some(&stage.admin)).await, 400, field);
    }

    let root = make(&stage, "root", "admin").await;
    for word in ["suspended", "active", "banned"] {
        let edit = json!({"status": word});
        let path = format!("admin/users/{}/", ada.user_id());
        assert_eq!(stage.api.patch(&path, Some(&access(root)), &edit).await.0, 200);
    }
    assert_eq!(trail(&stage, &format!("admin={root}")).await.len(), 3);
    assert_eq!(trail(&stage, "action=create_user&admin=1").await.len(), 1);
    assert_eq!(trail(&stage, "action=&user=").await.len(), 4, "empty is what a form sends for all");
    let (_, body, _) =
        stage.api.get(&format!("admin/audit/?admin={root}&per_page=2&page=2"), Some(&stage.admin)).await;
    assert_eq!(body["pagination"], json!({"page": 2, "per_page": 2, "total": 3, "total_pages": 2}));
    assert_eq!(body["entries"][0]["changes"][0]["to"], "suspended", "newest first: {body}");
    assert_eq!(trail(&stage, "page=9").await.len(), 0);
}

async fn of_two_who_depose_each_other_one_remains(engine: Engine) {
    let stage = Stage::start(engine).await;
    let (_another, another) = stage.another(crate::support::process::PresencedOptions::default()).await;
    let root = make(&stage, "root", "admin").await;
    let edits =
        [json!({"role": "user"}), json!({"status": "suspended"}), json!({"is_active": false}), Value::Null];
    for (round, edit) in edits.into_iter().cycle().take(12).enumerate() {
        let mut duel = JoinSet::new();
        for (api, by, whom) in [(stage.api.clone(), 1, root), (another.clone(), root, 1)] {
            let (edit, path) = (edit.clone(), format!("admin/users/{whom}/"));
            duel.spawn(async move {
                let token = access(by);
                let answer = match edit {
                    Value::Null => api.delete(&path, Some(&token)).await,
                    edit => api.patch(&path, Some(&token), &edit).await,
                };
                answer.0.as_u16()
            });
        }
        let mut statuses = duel.join_all().await;
        statuses.sort_unstable();
        // The second is refused as the last one, or because he is no administrator any more.
        assert!([200, 204].contains(&statuses[0]), "round {round}: {statuses:?}");
        assert!([401, 403, 404, 409].contains(&statuses[1]), "round {round}: {statuses:?}");
        let left = "SELECT CAST(count(*) AS text) FROM users WHERE role = 'admin' AND may_be_present";
        assert_eq!(stage.sql.number(left).await, 1, "round {round}");
        if edit == Value::Null {
            break;
        }
        stage.sql.run("UPDATE users SET role = 'admin', status = 'active', is_active = true").await;
    }
}
