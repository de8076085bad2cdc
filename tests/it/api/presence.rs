//! Heartbeats, activity and expiry.

use std::time::Duration;

use reqwest::Method;
use serde_json::{Value, json};

use super::{
    Engine, Recorded, SOON, Stage, TTL_MS, access, instant_ms, on_both_databases, presence_key, problem,
};
use crate::support::{http::send, poll::eventually, process::PresencedOptions};

on_both_databases!(
    a_heartbeat_says_online_or_away_and_any_other_request_only_renews,
    a_user_is_online_where_any_session_is,
    any_authenticated_request_is_an_activity,
    an_administrators_word_stands_until_the_next_heartbeat,
    a_new_ttl_counts_for_each_user_from_the_next_heartbeat_on,
    who_falls_silent_is_offline_one_ttl_after_the_last_heartbeat,
);

/// A heartbeat with this word, which must succeed and be dated to the millisecond; the status that it says.
async fn beat(stage: &Stage, access: &str, id: i64, word: &str) -> Value {
    let (status, body, _) = stage.api.post("heartbeat/", Some(access), &json!({"status": word})).await;
    assert_eq!(status, 200, "{body}");
    assert_eq!(stage.deadline_ms(id), instant_ms(&body["last_seen"]) + TTL_MS);
    body["online_status"].clone()
}

async fn a_heartbeat_says_online_or_away_and_any_other_request_only_renews(engine: Engine) {
    let stage = Stage::start(engine).await;
    let ada = stage.join("ada").await;
    let (id, token) = (ada.user_id(), ada.access.as_str());

    for path in ["heartbeat/", "heartbeat"] {
        let (status, body, _) = send(stage.api.request(Method::POST, path, Some(token))).await;
        let last_seen = instant_ms(&body["last_seen"]);
        assert_eq!(status, 200);
        assert_eq!(
            body,
            json!({"message": "Heartbeat recorded", "online_status": "online", "last_seen": body["last_seen"]})
        );
        assert_eq!(stage.deadline_ms(id), last_seen + TTL_MS);
        let user = stage.user(id).await;
        assert_eq!((&user["online_status"], &user["last_seen"]), (&json!("online"), &body["last_seen"]));
    }
    for word in ["online", "away", "away", "online", "away"] {
        assert_eq!(beat(&stage, token, id, word).await, word);
        let user = stage.user(id).await;
        assert_eq!((&user["online_status"], &user["is_online"]), (&json!(word), &json!(true)));
    }
    let before = stage.deadline_ms(id);
    let me = stage.api.get("me/", Some(token)).await.1["user"].clone();
    assert_eq!(me["online_status"], "away", "a touch leaves the status");
    assert_eq!(stage.deadline_ms(id), instant_ms(&me["last_seen"]) + TTL_MS, "and renews the time");
    assert!(stage.deadline_ms(id) > before);
    let (_, body, _) = stage.api.post("heartbeat/", Some(token), &json!({})).await;
    assert_eq!(body["online_status"], "online", "a plain heartbeat means online");

    for word in ["offline", "busy", "", "ONLINE", "touch", "login"] {
        let answer = stage.api.post("heartbeat/", Some(token), &json!({"status": word})).await;
        super::complaint(&answer, 400, "status");
    }
    stage.set_status(id, "offline").await;
    let me = stage.api.get("me/", Some(token)).await.1;
    assert_eq!(me["user"]["online_status"], "online", "a touch brings back who was offline");
    eventually(SOON, async || {
        let history = stage.history(id).await;
        let words: Vec<_> = history.iter().map(|row| (row.to.as_str(), row.reason.as_str())).collect();
        let expected = [
            ("online", "login"),
            ("away", "heartbeat"),
            ("online", "heartbeat"),
            ("away", "heartbeat"),
            ("online", "heartbeat"),
            ("offline", "admin"),
            ("online", "heartbeat"),
        ];
        if words == expected { Ok(()) } else { Err(history) }
    })
    .await;
}

async fn a_user_is_online_where_any_session_is(engine: Engine) {
    let stage = Stage::start(engine).await;
    let phone = stage.join("ada").await;
    let laptop = stage.api.login("ada").await;
    let id = phone.user_id();
    assert_eq!(beat(&stage, &laptop.access, id, "away").await, "online", "the phone is online");
    assert_eq!(beat(&stage, &phone.access, id, "away").await, "away");
    let elsewhere = access(id);
    assert_eq!(
        beat(&stage, &elsewhere, id, "online").await,
        "online",
        "tokens without sid are a session too"
    );
    assert_eq!(beat(&stage, &elsewhere, id, "away").await, "away");
    assert_eq!(beat(&stage, &laptop.access, id, "away").await, "away");
    let laptop_deadline = stage.deadline_ms(id);
    assert_eq!(beat(&stage, &phone.access, id, "online").await, "online");
    let phone_deadline = stage.deadline_ms(id);
    assert!(phone_deadline > laptop_deadline, "the deadline is that of the latest");

    let body = json!({"refresh": phone.refresh});
    assert_eq!(stage.api.post("logout/", Some(&phone.access), &body).await.0, 200);
    let user = stage.user(id).await;
    assert_eq!(user["online_status"], "away", "the others' heartbeats count");
    assert_eq!(stage.deadline_ms(id), laptop_deadline);
    // SQL may have heard of the phone's last heartbeat, or not yet.
    let last_seen = instant_ms(&user["last_seen"]) + TTL_MS;
    assert!([laptop_deadline, phone_deadline].contains(&last_seen), "{user}");
}

async fn any_authenticated_request_is_an_activity(engine: Engine) {
    let stage = Stage::start(engine).await;
    let ada = stage.join("ada").await;
    let id = ada.user_id();
    let live = "presence:{0}:live";
    // An hour of silence passes for nobody else: the deadline comes nearer, and a request takes it back.
    let age = || {
        let soon = (chrono::Utc::now().timestamp_millis() + 50_000).to_string();
        stage.redis.cli(&["PEXPIREAT", &presence_key(id), &soon]);
        stage.redis.cli(&["ZADD", live, &soon, &id.to_string()]);
    };
    let renewed = || stage.deadline_ms(id) > chrono::Utc::now().timestamp_millis() + 100_000;
    let requests = [
        (Method::GET, "me/", 200),
        (Method::GET, "me", 200),
        (Method::GET, "me/sessions/", 200),
        (Method::GET, "all-users/?per_page=1", 200),
        (Method::GET, "admin/users/", 403),
        (Method::GET, "admin/users/online/", 403),
        (Method::DELETE, "admin/users/1/", 403),
        (Method::DELETE, "me/sessions/unknown/", 404),
        (Method::POST, "heartbeat/", 200),
    ];
    for (method, path, expected) in requests {
        age();
        assert!(!renewed());
        let (status, body, _) = send(stage.api.request(method, path, Some(&ada.access))).await;
        assert_eq!(status, expected, "{path}: {body}");
        assert!(renewed(), "{path}");
    }
    age();
    let body = json!({"refresh": ada.refresh});
    assert_eq!(stage.api.post("token/refresh/", None, &body).await.0, 200);
    assert!(!renewed(), "a refresh shows no access token");
    problem(&stage.api.post("logout/", Some(&ada.access), &json!({"refresh": "nonsense"})).await, 400);
    assert!(!renewed(), "nor is a logout an activity");
}

async fn an_administrators_word_stands_until_the_next_heartbeat(engine: Engine) {
    let stage = Stage::start(engine).await;
    let ada = stage.join("ada").await;
    let id = ada.user_id();
    let deadline = stage.deadline_ms(id);
    for word in ["away", "online", "away"] {
        let (status, body, _) = stage.set_status(id, word).await;
        assert_eq!(status, 200);
        let last_seen = &stage.user(id).await["last_seen"];
        let expected = json!({
            "user_id": id, "username": "ada", "online_status": word, "is_online": true, "last_seen": last_seen,
        });
        assert_eq!(body, expected);
        assert_eq!(
            stage.api.get(&format!("admin/users/{id}/online-status/"), Some(&stage.admin)).await.1,
            expected
        );
        assert_eq!(stage.deadline_ms(id), deadline, "it is no sign of life");
    }
    assert_eq!(beat(&stage, &ada.access, id, "online").await, "online");

    let (status, body, _) = stage.set_status(id, "offline").await;
    assert_eq!(
        (status.as_u16(), &body["online_status"], &body["is_online"]),
        (200, &json!("offline"), &json!(false))
    );
    assert_eq!(stage.deadline_ms(id), -2);
    assert_eq!(stage.set_status(id, "offline").await.0, 200);

    // Lent to somebody offline, it lasts one TTL.
    for (lent, word) in [("online", "away"), ("away", "online")] {
        let (_, body, _) = stage.set_status(id, lent).await;
        assert_eq!(body["online_status"], lent);
        let left = stage.deadline_ms(id) - chrono::Utc::now().timestamp_millis();
        assert!((TTL_MS - 10_000..=TTL_MS).contains(&left), "{left}");
        assert_eq!(
            beat(&stage, &ada.access, id, word).await,
            word,
            "the next heartbeat follows its own word"
        );
        stage.set_status(id, "offline").await;
    }
    assert_eq!(stage.api.heartbeat(&ada.access).await.0, 200, "and brings back who was set offline");
    assert_eq!(stage.status(id).await, "online");
}

async fn a_new_ttl_counts_for_each_user_from_the_next_heartbeat_on(engine: Engine) {
    let stage = Stage::start(engine).await;
    let ids = [stage.api.register("ada").await, stage.api.register("bob").await];
    let [ada, bob] = ids.map(|user| user["id"].as_i64().unwrap());
    for id in [ada, bob] {
        beat(&stage, &access(id), id, "online").await;
    }
    let before = stage.deadline_ms(bob);
    let ttl = Some(Duration::from_mins(1));
    let (_shorter, shorter) = stage.another(PresencedOptions { ttl, ..PresencedOptions::default() }).await;
    let seen = instant_ms(&shorter.heartbeat(&access(ada)).await.1["last_seen"]);
    assert_eq!(stage.deadline_ms(ada), seen + 60_000);
    assert_eq!(stage.deadline_ms(bob), before, "who was promised two minutes has them");
    let user = &shorter.get(&format!("admin/users/{bob}/"), Some(&stage.admin)).await.1["user"];
    assert_eq!((&user["online_status"], instant_ms(&user["last_seen"])), (&json!("online"), before - TTL_MS));
}

async fn who_falls_silent_is_offline_one_ttl_after_the_last_heartbeat(engine: Engine) {
    const SHORT: Duration = Duration::from_secs(1);
    let stage =
        Stage::with(engine, PresencedOptions { ttl: Some(SHORT), ..PresencedOptions::default() }).await;
    let silent = stage.join("silent").await;
    let lent = stage.api.register("lent").await["id"].as_i64().unwrap();
    let alive = stage.join("alive").await;
    let (id, alive_id) = (silent.user_id(), alive.user_id());
    let seen = instant_ms(&stage.api.heartbeat(&silent.access).await.1["last_seen"]);
    assert_eq!(stage.deadline_ms(id), seen + 1_000);
    assert_eq!(stage.set_status(lent, "away").await.1["online_status"], "away");
    let lent_until = stage.deadline_ms(lent);

    for (user, until) in [(id, seen + 1_000), (lent, lent_until)] {
        let recorded = eventually(SOON, async || {
            assert_eq!(stage.api.heartbeat(&alive.access).await.0, 200);
            stage.history(user).await.pop().filter(|last| last.to == "offline").ok_or("not yet")
        })
        .await;
        let expected = Recorded { to: "offline".into(), reason: "expired".into(), at_ms: until };
        assert_eq!(recorded, expected, "dated at the deadline, not when it was noticed");
        let user = stage.user(user).await;
        assert_eq!((&user["online_status"], &user["is_online"]), (&json!("offline"), &json!(false)));
        if id == user["id"].as_i64().unwrap() {
            assert_eq!(instant_ms(&user["last_seen"]), until - 1_000);
        } else {
            assert_eq!(user["last_seen"], Value::Null, "an administrator's word is no sighting");
        }
    }
    assert_eq!(stage.status(alive_id).await, "online", "who is heard stays");
    let history = stage.history(alive_id).await;
    assert_eq!(history.len(), 1, "{history:?}");

    // Not noticed by anybody, and offline all the same: from the deadline on, no read says otherwise.
    let seen = instant_ms(&stage.api.heartbeat(&silent.access).await.1["last_seen"]);
    eventually(SOON, async || {
        let before = chrono::Utc::now().timestamp_millis();
        let status = stage.status(id).await;
        let after = chrono::Utc::now().timestamp_millis();
        assert!(status == "offline" || before <= seen + 1_001, "online {} ms late", before - seen - 1_000);
        assert!(status == "online" || after >= seen + 999, "offline too early");
        if status == "offline" { Ok(()) } else { Err(status) }
    })
    .await;
}
