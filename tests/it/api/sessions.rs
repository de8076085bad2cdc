//! Logouts, ended sessions, and what a Redis that forgets does to them.

use std::time::Duration;

use reqwest::Method;
use serde_json::{Value, json};

use super::{
    AT_ONCE, Engine, SOON, Stage, TTL_MS, access, claims, instant_ms, on_both_databases, problem, setting,
    text,
};
use crate::support::{
    http::{Answer, Api, PASSWORD, Tokens, send},
    poll::eventually,
    process::PresencedOptions,
};

on_both_databases!(
    a_logout_ends_its_own_session_and_no_other,
    a_logout_is_never_an_activity,
    the_sessions_of_a_user_are_listed_and_can_be_ended,
    what_has_ended_stays_ended_when_redis_forgets,
    a_new_password_ends_every_session_however_it_was_set,
    a_block_ends_the_sessions_for_good,
    an_administrator_ends_the_sessions_of_others,
    a_token_with_somebody_elses_sid_speaks_for_its_own_user_alone,
    a_login_beyond_the_most_ends_the_oldest_session_everywhere,
    sessions_are_listed_by_pages,
    a_session_beyond_its_greatest_age_ends_at_its_refresh,
    a_session_that_plain_sql_ends_is_refused_within_a_second,
);

async fn logout(stage: &Stage, access: &str, refresh: &str) -> Answer {
    stage.api.post("logout/", Some(access), &json!({"refresh": refresh})).await
}

async fn refresh_status(stage: &Stage, tokens: &Tokens) -> u16 {
    stage.api.post("token/refresh/", None, &json!({"refresh": tokens.refresh})).await.0.as_u16()
}

async fn a_logout_ends_its_own_session_and_no_other(engine: Engine) {
    let stage = Stage::start(engine).await;
    let api = &stage.api;
    let phone = stage.join("ada").await;
    let laptop = api.login("ada").await;
    let bob = stage.join("bob").await;
    let id = phone.user_id();

    for foreign in [&laptop.refresh, &bob.refresh] {
        problem(&logout(&stage, &phone.access, foreign).await, 403);
    }
    problem(&logout(&stage, &access(id), &phone.refresh).await, 403);
    for bad in ["", "nonsense", &phone.access] {
        problem(&logout(&stage, &phone.access, bad).await, 400);
    }
    problem(&api.post("logout/", None, &json!({"refresh": phone.refresh})).await, 401);
    for tokens in [&phone, &laptop, &bob] {
        assert_eq!(api.heartbeat(&tokens.access).await.0, 200, "nothing has ended");
    }
    assert_eq!(api.get("me/sessions/", Some(&phone.access)).await.1["sessions"].as_array().unwrap().len(), 2);

    let (status, body, _) = logout(&stage, &phone.access, &phone.refresh).await;
    assert!(status == 200 && body["message"].is_string(), "{body}");
    assert_eq!(stage.status(id).await, "online", "the laptop is alive");
    assert_eq!(api.heartbeat(&laptop.access).await.0, 200);
    problem(&api.heartbeat(&phone.access).await, 401);
    problem(&api.get("me/", Some(&phone.access)).await, 401);
    problem(&logout(&stage, &phone.access, &phone.refresh).await, 401);
    assert_eq!(refresh_status(&stage, &phone).await, 401);

    // A storm of heartbeats around the last logout: some before, some after, and none brings the user back.
    let mut storm = tokio::task::JoinSet::new();
    for _ in 0..50 {
        let (api, access) = (api.clone(), laptop.access.clone());
        storm.spawn(async move { api.heartbeat(&access).await.0.as_u16() });
    }
    assert_eq!(logout(&stage, &laptop.access, &laptop.refresh).await.0, 200);
    assert_eq!(stage.status(id).await, "offline");
    let statuses = storm.join_all().await;
    assert!(statuses.iter().all(|status| [200, 401].contains(status)), "{statuses:?}");
    problem(&api.heartbeat(&laptop.access).await, 401);
    assert_eq!((stage.status(id).await.as_str(), stage.deadline_ms(id)), ("offline", -2));
    eventually(SOON, async || {
        let reasons: Vec<_> = stage.history(id).await.into_iter().map(|row| row.reason).collect();
        if reasons == ["login", "logout"] { Ok(()) } else { Err(reasons) }
    })
    .await;
    assert_eq!(stage.status(bob.user_id()).await, "online");
}

async fn a_logout_is_never_an_activity(engine: Engine) {
    let stage = Stage::start(engine).await;
    let ada = stage.join("ada").await;
    let id = ada.user_id();
    let beat = stage.api.heartbeat(&ada.access).await.1;
    assert_eq!(stage.set_status(id, "offline").await.0, 200);
    problem(&logout(&stage, &ada.access, "nonsense").await, 400);
    assert_eq!(stage.status(id).await, "offline");
    assert_eq!(logout(&stage, &ada.access, &ada.refresh).await.0, 200);
    assert_eq!(stage.status(id).await, "offline");
    eventually(SOON, async || {
        let user = stage.user(id).await;
        if user["last_seen"] == beat["last_seen"] { Ok(()) } else { Err((user, beat.clone())) }
    })
    .await;
    let reasons: Vec<_> = stage.history(id).await.into_iter().map(|row| row.reason).collect();
    assert_eq!(reasons, ["login", "admin"]);
}

async fn the_sessions_of_a_user_are_listed_and_can_be_ended(engine: Engine) {
    let stage = Stage::start(engine).await;
    let api = &stage.api;
    let begun = chrono::Utc::now().timestamp_millis();
    let phone = stage.join("ada").await;
    let login = json!({"username": "ada", "password": crate::support::http::PASSWORD});
    let request =
        api.request(Method::POST, "login/", None).header("user-agent", "a browser/1.0").json(&login);
    let laptop = send(request).await.1;
    let bob = stage.join("bob").await;
    let sid = |token: &str| text(&claims(token)["sid"]);
    let (phone_sid, laptop_sid) = (sid(&phone.access), sid(laptop["access"].as_str().unwrap()));

    let me = api.get("me/", Some(&phone.access)).await.1;
    assert_eq!((&me["user"]["username"], &me["user"]["is_online"]), (&json!("ada"), &json!(true)));
    let listed = api.get("me/sessions/", Some(&phone.access)).await.1;
    let listed = listed["sessions"].as_array().unwrap();
    assert_eq!(listed.len(), 2, "{listed:?}");
    let of = |sid: &str| listed.iter().find(|session| session["sid"] == sid).unwrap();
    let (one, other) = (of(&phone_sid), of(&laptop_sid));
    assert_eq!((&one["current"], &other["current"]), (&json!(true), &json!(false)));
    assert_eq!((&one["user_agent"], &other["user_agent"]), (&Value::Null, &json!("a browser/1.0")));
    for session in listed {
        let (created, used) = (instant_ms(&session["created_at"]), instant_ms(&session["last_used_at"]));
        assert!(created >= begun - 1 && used >= created, "{session}");
        assert_eq!(session.as_object().unwrap().len(), 5, "{session}");
    }

    for not_own in [sid(&bob.access).as_str(), "unknown", "%00", "%20", &"x".repeat(1_000)] {
        problem(&api.delete(&format!("me/sessions/{not_own}/"), Some(&phone.access)).await, 404);
    }
    assert_eq!(api.heartbeat(&bob.access).await.0, 200, "another's session is not there to be ended");
    let path = format!("me/sessions/{laptop_sid}/");
    let (status, body, _) = api.delete(&path, Some(&phone.access)).await;
    assert_eq!((status.as_u16(), body), (204, Value::Null));
    problem(&api.heartbeat(laptop["access"].as_str().unwrap()).await, 401);
    let refresh = json!({"refresh": laptop["refresh"]});
    problem(&api.post("token/refresh/", None, &refresh).await, 401);
    problem(&api.delete(&path, Some(&phone.access)).await, 404);
    assert_eq!(stage.status(phone.user_id()).await, "online");

    let tablet = api.login("ada").await;
    assert_eq!(api.delete("me/sessions/", Some(&phone.access)).await.0, 204);
    for tokens in [&phone, &tablet] {
        problem(&api.heartbeat(&tokens.access).await, 401);
        assert_eq!(refresh_status(&stage, tokens).await, 401);
    }
    assert_eq!(stage.status(phone.user_id()).await, "offline");
    assert_eq!(api.heartbeat(&bob.access).await.0, 200);
}

async fn what_has_ended_stays_ended_when_redis_forgets(engine: Engine) {
    let mut stage = Stage::start(engine).await;
    let phone = stage.join("ada").await;
    let laptop = stage.api.login("ada").await;
    let bob = stage.join("bob").await;
    let carol = stage.join("carol").await;
    let (id, bob_id) = (phone.user_id(), bob.user_id());
    assert_eq!(logout(&stage, &phone.access, &phone.refresh).await.0, 200);
    stage.patch(bob_id, json!({"status": "banned"})).await;
    assert_eq!(
        stage.api.delete(&format!("admin/users/{}/", carol.user_id()), Some(&stage.admin)).await.0,
        204
    );

    stage.redis.restart_empty().await;
    // Not even for a moment: whatever comes first that is no 503 is the refusal.
    for (token, refusal) in [(&phone.access, 401), (&bob.access, 403)] {
        let answer = eventually(SOON, async || {
            let answer = stage.api.heartbeat(token).await;
            if answer.0 == 503 { Err(problem(&answer, 503).clone()) } else { Ok(answer) }
        })
        .await;
        problem(&answer, refusal);
    }
    // Of a deleted account nothing is left that could tell; a token of it is found out within a second.
    let id_gone = carol.user_id();
    eventually(AT_ONCE, async || {
        let answer = stage.api.heartbeat(&carol.access).await;
        let held = stage.redis.cli(&["ZSCORE", "presence:{0}:live", &id_gone.to_string()]);
        if [401, 403].contains(&answer.0.as_u16()) && held.is_empty() { Ok(()) } else { Err((answer, held)) }
    })
    .await;
    let (status, body, _) = stage.api.heartbeat(&laptop.access).await;
    assert_eq!((status.as_u16(), &body["online_status"]), (200, &json!("online")));
    assert_eq!(stage.deadline_ms(id), instant_ms(&body["last_seen"]) + TTL_MS);
    assert_eq!((stage.status(id).await.as_str(), stage.status(bob_id).await.as_str()), ("online", "offline"));
    assert_eq!(refresh_status(&stage, &phone).await, 401);
    assert_eq!(refresh_status(&stage, &laptop).await, 200);
}

/// Waits until the tokens are refused with this status by both instances, as the contract wants it.
async fn refused(stage: &Stage, another: &Api, tokens: &Tokens, expected: u16) {
    for api in [&stage.api, another] {
        eventually(AT_ONCE, async || {
            let status = api.heartbeat(&tokens.access).await.0.as_u16();
            if status == expected { Ok(()) } else { Err(status) }
        })
        .await;
    }
    let answer = another.post("token/refresh/", None, &json!({"refresh": tokens.refresh})).await;
    problem(&answer, expected);
}

async fn a_new_password_ends_every_session_however_it_was_set(engine: Engine) {
    let stage = Stage::start(engine).await;
    let (_another, another) = stage.another(PresencedOptions::default()).await;
    let bob = stage.join("bob").await;
    let mut tokens = stage.join("ada").await;
    let id = tokens.user_id();
    let hash_of_bob = format!("(SELECT password_hash FROM users WHERE id = {})", bob.user_id());
    for by_sql in [false, true] {
        let phone = another.login("ada").await;
        if by_sql {
            // As another tool would set it, one that knows how we hash.
            stage.sql.run(&format!("UPDATE users SET password_hash = {hash_of_bob} WHERE id = {id}")).await;
        } else {
            stage.patch(id, json!({"password": PASSWORD})).await;
            problem(&stage.api.heartbeat(&phone.access).await, 401);
        }
        refused(&stage, &another, &tokens, 401).await;
        refused(&stage, &another, &phone, 401).await;
        assert_eq!(stage.status(id).await, "offline");
        tokens = stage.api.login("ada").await;
    }
    assert_eq!(another.heartbeat(&tokens.access).await.0, 200);
    assert_eq!(another.heartbeat(&bob.access).await.0, 200, "the others stay");
}

async fn a_block_ends_the_sessions_for_good(engine: Engine) {
    let stage = Stage::start(engine).await;
    let (_another, another) = stage.another(PresencedOptions::default()).await;
    let tokens = stage.join("ada").await;
    let id = tokens.user_id();
    stage.sql.run(&format!("UPDATE users SET status = 'suspended' WHERE id = {id}")).await;
    refused(&stage, &another, &tokens, 403).await;
    stage.sql.run(&format!("UPDATE users SET status = 'active' WHERE id = {id}")).await;
    refused(&stage, &another, &tokens, 401).await;
    let tokens = another.login("ada").await;
    // So short that nobody may have seen the account blocked.
    stage.sql.run(&format!("UPDATE users SET status = 'banned' WHERE id = {id}")).await;
    stage.sql.run(&format!("UPDATE users SET status = 'active' WHERE id = {id}")).await;
    refused(&stage, &another, &tokens, 401).await;
    let sessions = "SELECT CAST(count(*) AS text) FROM login_sessions WHERE ended_at IS NULL";
    assert_eq!(stage.sql.number(sessions).await, 0);
}

async fn an_administrator_ends_the_sessions_of_others(engine: Engine) {
    let stage = Stage::start(engine).await;
    let (_another, another) = stage.another(PresencedOptions::default()).await;
    let admin = Some(stage.admin.as_str());
    let phone = stage.join("ada").await;
    let laptop = stage.api.login("ada").await;
    let bob = stage.join("bob").await;
    let of = |tokens: &Tokens| format!("admin/users/{}/sessions/", tokens.user_id());
    let sid = text(&claims(&phone.access)["sid"]);
    problem(&another.delete(&format!("{}{sid}/", of(&bob)), admin).await, 404);
    assert_eq!(another.delete(&format!("{}{sid}/", of(&phone)), admin).await.0, 204);
    problem(&stage.api.heartbeat(&phone.access).await, 401);
    problem(&another.delete(&format!("{}{sid}/", of(&phone)), admin).await, 404);
    assert_eq!(stage.api.heartbeat(&laptop.access).await.0, 200);
    assert_eq!(another.delete(&of(&phone), admin).await.0, 204);
    problem(&stage.api.heartbeat(&laptop.access).await, 401);
    assert_eq!(stage.status(phone.user_id()).await, "offline");
    assert_eq!(stage.api.heartbeat(&bob.access).await.0, 200);
}

async fn a_token_with_somebody_elses_sid_speaks_for_its_own_user_alone(engine: Engine) {
    let stage = Stage::start(engine).await;
    let ada = stage.join("ada").await;
    let bob = stage.join("bob").await;
    let sid = text(&claims(&ada.access)["sid"]);
    let forged = crate::support::mint::access_token(bob.user_id(), &sid);
    let (status, body, _) = stage.api.get("me/", Some(&forged)).await;
    assert_eq!((status.as_u16(), &body["user"]["username"]), (200, &json!("bob")));
    let listed = stage.api.get("me/sessions/", Some(&forged)).await.1;
    assert!(!listed.to_string().contains(&sid), "{listed}");
    problem(&stage.api.delete(&format!("me/sessions/{sid}/"), Some(&forged)).await, 404);
    problem(&logout(&stage, &forged, &ada.refresh).await, 403);
    assert_eq!(stage.api.heartbeat(&ada.access).await.0, 200, "nothing of hers has ended");
    assert_eq!(refresh_status(&stage, &ada).await, 200);
}

async fn a_login_beyond_the_most_ends_the_oldest_session_everywhere(engine: Engine) {
    let stage = Stage::with(engine, setting("PRESENCE_MAX_SESSIONS", "3")).await;
    let (_another, another) = stage.another(setting("PRESENCE_MAX_SESSIONS", "3")).await;
    let mut sessions = vec![stage.join("ada").await];
    for _ in 1..3 {
        sessions.push(stage.api.login("ada").await);
    }
    for tokens in &sessions {
        assert_eq!(another.heartbeat(&tokens.access).await.0, 200);
    }
    sessions.push(another.login("ada").await);
    for api in [&stage.api, &another] {
        problem(&api.heartbeat(&sessions[0].access).await, 401);
    }
    assert_eq!(refresh_status(&stage, &sessions[0]).await, 401);
    for tokens in &sessions[1..] {
        assert_eq!(stage.api.heartbeat(&tokens.access).await.0, 200);
        assert_eq!(refresh_status(&stage, tokens).await, 200);
    }
    let listed = stage.api.get("me/sessions/", Some(&sessions[3].access)).await.1;
    assert_eq!(listed["pagination"]["total"], 3, "{listed}");
    let key = super::presence_key(sessions[0].user_id());
    let fields = stage.redis.cli(&["HKEYS", &key]);
    assert_eq!(fields.lines().filter(|field| field.starts_with("s:")).count(), 3, "{fields}");
    assert_eq!(stage.status(sessions[0].user_id()).await, "online");
}

async fn sessions_are_listed_by_pages(engine: Engine) {
    let stage = Stage::start(engine).await;
    let first = stage.join("ada").await;
    for _ in 0..2 {
        stage.api.login("ada").await;
    }
    let of_user = format!("admin/users/{}/sessions/", first.user_id());
    for (path, token) in [("me/sessions/", &first.access), (of_user.as_str(), &stage.admin)] {
        let page = async |query: &str| {
            let answer = stage.api.get(&format!("{path}?{query}"), Some(token)).await;
            assert_eq!(answer.0, 200, "{}", answer.1);
            answer.1
        };
        let all = page("").await;
        let sids = |page: &Value| super::column(page, "sessions", "sid");
        assert_eq!(sids(&all).len(), 3);
        let expected = json!({"page": 1, "per_page": 50, "total": 3, "total_pages": 1});
        assert_eq!(all["pagination"], expected);
        let (one, two, past) =
            (page("per_page=2").await, page("per_page=2&page=2").await, page("per_page=2&page=9").await);
        assert_eq!([sids(&one), sids(&two)].concat(), sids(&all));
        assert!(sids(&past).is_empty(), "{past}");
        assert_eq!(two["pagination"], json!({"page": 2, "per_page": 2, "total": 3, "total_pages": 2}));
        for (query, field) in [("page=0", "page"), ("per_page=1001", "per_page"), ("per_page=x", "per_page")]
        {
            let answer = stage.api.get(&format!("{path}?{query}"), Some(token)).await;
            super::complaint(&answer, 400, field);
        }
    }
}

async fn a_session_beyond_its_greatest_age_ends_at_its_refresh(engine: Engine) {
    let stage = Stage::with(engine, setting("PRESENCE_SESSION_MAX_AGE", "2s")).await;
    let tokens = stage.join("ada").await;
    assert_eq!(stage.api.heartbeat(&tokens.access).await.0, 200);
    let late = stage.api.login("ada").await;
    let began = std::time::Instant::now();
    assert_eq!(refresh_status(&stage, &stage.api.login("ada").await).await, 200, "one that is younger");
    eventually(SOON, async || {
        let age = began.elapsed();
        if age > Duration::from_millis(2_100) { Ok(()) } else { Err(age) }
    })
    .await;
    let refused = stage.api.post("token/refresh/", None, &json!({"refresh": tokens.refresh})).await;
    let said = problem(&refused, 401)["detail"].to_string();
    assert!(said.contains("greatest age"), "{said}");
    problem(&stage.api.heartbeat(&tokens.access).await, 401);
    assert_eq!(refresh_status(&stage, &tokens).await, 401);
    let id = tokens.user_id();
    assert_eq!(
        stage.api.heartbeat(&late.access).await.0,
        200,
        "another session goes on until its own refresh"
    );
    assert_eq!(refresh_status(&stage, &late).await, 401);
    problem(&stage.api.heartbeat(&late.access).await, 401);
    assert_eq!(stage.status(id).await, "online", "the younger one is alive");
}

async fn a_session_that_plain_sql_ends_is_refused_within_a_second(engine: Engine) {
    let stage = Stage::start(engine).await;
    let (_another, another) = stage.another(PresencedOptions::default()).await;
    let phone = stage.join("ada").await;
    let laptop = stage.api.login("ada").await;
    let sid = text(&claims(&phone.access)["sid"]);
    let end = format!("UPDATE login_sessions SET ended_at = created_at WHERE sid = '{sid}'");
    stage.sql.run(&end).await;
    refused(&stage, &another, &phone, 401).await;
    assert_eq!(another.heartbeat(&laptop.access).await.0, 200);
    assert_eq!(stage.status(phone.user_id()).await, "online");
}
