//! Who may not be present, however that came about.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::{AT_ONCE, Engine, Stage, access, column, on_both_databases, presence_key, problem};
use crate::support::{
    http::{Api, PASSWORD, Tokens},
    poll::eventually,
    process::PresencedOptions,
};

on_both_databases!(
    a_blocked_account_is_gone_within_a_second_and_back_within_another,
    no_storm_of_heartbeats_keeps_a_blocked_user_online,
    a_deleted_account_is_gone_within_a_second,
);

/// The ways to block: the edit for the API, and the assignment for plain SQL.
fn ways() -> [(Value, &'static str); 4] {
    [
        (json!({"status": "inactive"}), "status = 'inactive'"),
        (json!({"status": "suspended"}), "status = 'suspended'"),
        (json!({"status": "banned"}), "status = 'banned'"),
        (json!({"is_active": false}), "is_active = false"),
    ]
}

/// Waits until the account is refused everywhere, by every instance, and offline in every read.
async fn is_gone(stage: &Stage, another: &Api, name: &str, tokens: &Tokens) {
    let id = tokens.user_id();
    for api in [&stage.api, another] {
        eventually(AT_ONCE, async || {
            let answer = api.heartbeat(&tokens.access).await;
            if answer.0 == 403 { Ok(problem(&answer, 403).clone()) } else { Err(answer.1) }
        })
        .await;
    }
    for api in [another, &stage.api] {
        for path in ["me/", "me/sessions/", "all-users/", "admin/users/"] {
            problem(&api.get(path, Some(&tokens.access)).await, 403);
        }
        let credentials = json!({"username": name, "password": PASSWORD});
        problem(&api.post("login/", None, &credentials).await, 403);
        problem(&api.post("token/refresh/", None, &json!({"refresh": tokens.refresh})).await, 403);

        let admin = Some(stage.admin.as_str());
        let user = &api.get(&format!("admin/users/{id}/"), admin).await.1["user"];
        assert_eq!((&user["online_status"], &user["is_online"]), (&json!("offline"), &json!(false)));
        let status = api.get(&format!("admin/users/{id}/online-status/"), admin).await.1;
        assert_eq!((&status["online_status"], &status["is_online"]), (&json!("offline"), &json!(false)));
        let path = format!("all-users/?search={name}");
        assert_eq!(column(&api.get(&path, admin).await.1, "results", "online_status"), ["offline"]);
        let path = format!("admin/users/?search={name}&online_status=offline");
        assert_eq!(column(&api.get(&path, admin).await.1, "results", "id"), [id]);
        let online = api.get("admin/users/online/", admin).await.1;
        assert_eq!(column(&online, "online_users", "id"), [1], "only the administrator is left");
        assert_eq!(online["online_count"], 1);
    }
    assert_eq!(stage.deadline_ms(id), -2);
}

async fn a_blocked_account_is_gone_within_a_second_and_back_within_another(engine: Engine) {
    let stage = Stage::start(engine).await;
    let (_another, another) = stage.another(PresencedOptions::default()).await;
    let mut ada = stage.join("ada").await;
    let id = ada.user_id();
    let mut blocks = 0;
    for (edit, assignment) in ways() {
        for by_sql in [false, true] {
            // A status that is not blocking changes nothing.
            stage.patch(id, json!({"status": "pending"})).await;
            assert_eq!(another.heartbeat(&ada.access).await.0, 200, "{assignment}");
            assert_eq!(stage.status(id).await, "online");
            if by_sql {
                stage.sql.run(&format!("UPDATE users SET {assignment} WHERE id = {id}")).await;
            } else {
                stage.patch(id, edit.clone()).await;
                problem(&stage.api.heartbeat(&ada.access).await, 403);
                problem(&another.heartbeat(&ada.access).await, 403);
            }
            is_gone(&stage, &another, "ada", &ada).await;
            blocks += 1;
            eventually(AT_ONCE, async || {
                let history = stage.history(id).await;
                let blocked =
                    history.iter().filter(|row| row.to == "offline" && row.reason == "blocked").count();
                let offline = history.last().is_some_and(|row| row.to == "offline");
                if blocked == blocks && offline { Ok(()) } else { Err(history) }
            })
            .await;

            if by_sql {
                let sql = format!("UPDATE users SET status = 'active', is_active = true WHERE id = {id}");
                stage.sql.run(&sql).await;
            } else {
                stage.patch(id, json!({"status": "active", "is_active": true})).await;
            }
            // The sessions from before the block have ended with it; who has none that could end is let in again.
            let foreign = access(id);
            eventually(AT_ONCE, async || {
                let answer = another.heartbeat(&foreign).await;
                if answer.0 == 200 { Ok(()) } else { Err(answer.1) }
            })
            .await;
            problem(&another.heartbeat(&ada.access).await, 401);
            let refresh = json!({"refresh": ada.refresh});
            problem(&another.post("token/refresh/", None, &refresh).await, 401);
            ada = stage.api.login("ada").await;
            assert_eq!(another.heartbeat(&ada.access).await.0, 200);
            assert_eq!(stage.status(id).await, "online");
        }
    }
    // Unblocked this very moment, a login does not wait for anything.
    stage.sql.run(&format!("UPDATE users SET is_active = false WHERE id = {id}")).await;
    is_gone(&stage, &another, "ada", &ada).await;
    stage.sql.run(&format!("UPDATE users SET is_active = true WHERE id = {id}")).await;
    assert_eq!(stage.api.login("ada").await.user["online_status"], "online");
}

async fn no_storm_of_heartbeats_keeps_a_blocked_user_online(engine: Engine) {
    let stage = Stage::start(engine).await;
    let (_another, another) = stage.another(PresencedOptions::default()).await;
    let id = stage.join("ada").await.user_id();
    let ended = Arc::new(AtomicBool::new(false));
    let mut storm = JoinSet::new();
    for task in 0..8 {
        let api = if task % 2 == 0 { stage.api.clone() } else { another.clone() };
        // Of no session that the block could end.
        let (access, ended) = (access(id), ended.clone());
        storm.spawn(async move {
            while !ended.load(Ordering::Relaxed) {
                let (status, body, _) = api.heartbeat(&access).await;
                assert!([200, 403].contains(&status.as_u16()), "{body}");
            }
        });
    }
    for round in 0..4 {
        let (edit, assignment) = ways()[round].clone();
        eventually(AT_ONCE, async || {
            let status = stage.status(id).await;
            if status == "online" { Ok(()) } else { Err(status) }
        })
        .await;
        if round % 2 == 0 {
            stage.sql.run(&format!("UPDATE users SET {assignment} WHERE id = {id}")).await;
        } else {
            stage.patch(id, edit).await;
            assert_eq!(stage.deadline_ms(id), -2, "at once where the service itself made the change");
        }
        let key = presence_key(id);
        let held = || {
            stage.redis.cli(&["EXISTS", &key])
                + &stage.redis.cli(&["ZCOUNT", "presence:{0}:live", "(0", "+inf"])
        };
        assert_eq!(stage.status(id).await, "offline", "reads say so from the very change on");
        // The administrator is the one in the live set.
        eventually(AT_ONCE, async || if held() == "01" { Ok(()) } else { Err(held()) }).await;
        for _ in 0..8 {
            assert_eq!((held().as_str(), stage.status(id).await.as_str()), ("01", "offline"));
        }
        let sql = format!("UPDATE users SET status = 'active', is_active = true WHERE id = {id}");
        stage.sql.run(&sql).await;
    }
    ended.store(true, Ordering::Relaxed);
    storm.join_all().await;
}

async fn a_deleted_account_is_gone_within_a_second(engine: Engine) {
    let stage = Stage::start(engine).await;
    let (_another, another) = stage.another(PresencedOptions::default()).await;
    let admin = Some(stage.admin.as_str());
    for by_sql in [false, true] {
        let ada = stage.join("ada").await;
        let id = ada.user_id();
        assert_eq!(another.heartbeat(&ada.access).await.0, 200);
        if by_sql {
            stage.sql.run(&format!("DELETE FROM users WHERE id = {id}")).await;
        } else {
            assert_eq!(stage.api.delete(&format!("admin/users/{id}/"), admin).await.0, 204);
        }
        let refused = |status: u16| [401, 403].contains(&status);
        for api in [&stage.api, &another] {
            eventually(AT_ONCE, async || {
                let (status, body, _) = api.heartbeat(&ada.access).await;
                if refused(status.as_u16()) { Ok(()) } else { Err(body) }
            })
            .await;
        }
        for api in [&stage.api, &another] {
            for path in ["me/", "me/sessions/", "all-users/"] {
                let answer = api.get(path, Some(&ada.access)).await;
                assert!(refused(answer.0.as_u16()), "{path}: {answer:?}");
            }
            problem(&api.post("login/", None, &json!({"username": "ada", "password": PASSWORD})).await, 401);
            problem(&api.post("token/refresh/", None, &json!({"refresh": ada.refresh})).await, 401);
            problem(&api.get(&format!("admin/users/{id}/"), admin).await, 404);
            assert_eq!(api.get("admin/users/", admin).await.1["online_count"], 1);
        }
        assert_eq!(stage.deadline_ms(id), -2);
        assert_eq!(stage.redis.cli(&["ZSCORE", "presence:{0}:live", &id.to_string()]), "");
    }
}
