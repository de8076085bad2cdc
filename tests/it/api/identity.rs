//! Accounts, logins and tokens.

use std::time::{Duration, Instant};

use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::{AT_ONCE, Engine, SOON, Stage, TTL_MS, access, claims, complaint, instant_ms, mint, problem};
use super::{on_both_databases, setting, text};
use crate::support::{
    http::{Api, PASSWORD},
    mint::SECRET,
    poll::eventually,
    process::PresencedOptions,
};

on_both_databases!(
    a_new_account_is_offline_until_it_logs_in,
    a_wrong_password_and_an_unknown_name_are_the_same_answer_after_the_same_time,
    a_stored_hash_that_cannot_be_read_lets_nobody_in,
    a_new_password_keeps_the_old_one_out_though_it_was_being_checked,
    a_refresh_token_is_spent_once_and_two_tabs_may_spend_it_together,
    a_token_minted_elsewhere_is_as_good_and_a_forged_one_is_not,
    a_change_of_role_counts_for_tokens_already_issued,
);

async fn a_new_account_is_offline_until_it_logs_in(engine: Engine) {
    let stage = Stage::start(engine).await;
    let api = &stage.api;
    let ada = api.register("Ada").await;
    let id = ada["id"].as_i64().unwrap();
    let expected = json!({
        "id": id, "username": "Ada", "email": "Ada@example.org", "role": "user", "status": "active", "is_active": true,
        "online_status": "offline", "last_seen": null, "is_online": false,
    });
    assert_eq!(ada, expected);
    assert_eq!(stage.user(id).await, expected);

    let taken = [
        ("Ada", "new@example.org", "username"),
        ("aDA", "new@example.org", "username"),
        ("new", "Ada@example.org", "email"),
        ("new", "ADA@EXAMPLE.ORG", "email"),
    ];
    for (username, email, field) in taken {
        let body = json!({"username": username, "email": email, "password": PASSWORD});
        complaint(&api.post("register/", None, &body).await, 409, field);
    }

    // Of many who want one name at the same moment one gets it.
    let mut crowd = JoinSet::new();
    for number in 0..8 {
        let api = api.clone();
        let body =
            json!({"username": "bob", "email": format!("bob{number}@example.org"), "password": PASSWORD});
        crowd.spawn(async move { api.post("register/", None, &body).await.0.as_u16() });
    }
    let mut statuses = crowd.join_all().await;
    statuses.sort_unstable();
    assert_eq!(statuses, [201, 409, 409, 409, 409, 409, 409, 409]);

    for name in ["Ada", "ada", "ADA", "Ada@example.org", "aDA@Example.ORG"] {
        let tokens = api.login(name).await;
        let user = &tokens.user;
        assert_eq!(user["online_status"], "online");
        let last_seen = instant_ms(&user["last_seen"]);
        assert_eq!(stage.deadline_ms(id), last_seen + TTL_MS, "the time of that very step");
        let mut expected = expected.clone();
        for field in ["online_status", "last_seen", "is_online"] {
            expected[field] = user[field].clone();
        }
        assert_eq!((user, &user["is_online"]), (&expected, &json!(true)));
        assert_eq!(stage.user(id).await, expected, "and everybody sees it at once");
        check_claims(&tokens.access, "access", id, 15 * 60);
        check_claims(&tokens.refresh, "refresh", id, 7 * 86_400);
        assert_eq!(claims(&tokens.access)["sid"], claims(&tokens.refresh)["sid"]);
        assert_ne!(claims(&tokens.access)["jti"], claims(&tokens.refresh)["jti"]);
    }
}

#[track_caller]
fn check_claims(token: &str, kind: &str, user: i64, ttl_s: i64) {
    let key = DecodingKey::from_secret(SECRET.as_bytes());
    let claims: Value = jsonwebtoken::decode(token, &key, &Validation::new(Algorithm::HS256)).unwrap().claims;
    assert_eq!((&claims["user_id"], &claims["sub"]), (&json!(user), &json!(user.to_string())));
    assert_eq!(claims["token_type"], kind);
    assert!(claims["sid"].is_string() && claims["jti"].is_string(), "{claims}");
    let (iat, exp) = (claims["iat"].as_i64().unwrap(), claims["exp"].as_i64().unwrap());
    assert_eq!(exp - iat, ttl_s);
    assert!((chrono::Utc::now().timestamp() - iat).abs() < 60);
}

async fn a_wrong_password_and_an_unknown_name_are_the_same_answer_after_the_same_time(engine: Engine) {
    let stage = Stage::start(engine).await;
    stage.api.register("ada").await;
    let (mut known, mut unknown) = (Duration::MAX, Duration::MAX);
    let mut answers = Vec::new();
    for _ in 0..12 {
        for (name, least) in [("ada", &mut known), ("nobody", &mut unknown)] {
            let begun = Instant::now();
            let answer = stage.api.post("login/", None, &json!({"username": name, "password": "no"})).await;
            *least = (*least).min(begun.elapsed());
            answers.push(problem(&answer, 401).clone());
        }
    }
    assert!(answers.iter().all(|answer| *answer == answers[0]), "{answers:?}");
    // The least of some: what else the machine does only adds. A hash takes many times what all the rest does.
    assert!(unknown * 2 > known && known * 2 > unknown, "known {known:?}, unknown {unknown:?}");
    for (name, password) in [("", ""), ("ada", ""), ("", PASSWORD), ("ada\0", PASSWORD), (" ada", PASSWORD)] {
        let body = json!({"username": name, "password": password});
        problem(&stage.api.post("login/", None, &body).await, 401);
    }
}

/// The id of a new account `ada`.
async fn registered(api: &Api) -> i64 {
    api.register("ada").await["id"].as_i64().expect("an id")
}

async fn a_stored_hash_that_cannot_be_read_lets_nobody_in(engine: Engine) {
    let stage = Stage::start(engine).await;
    let id = registered(&stage.api).await;
    for hash in ["!", "", "pbkdf2_sha256$600000$abc$def"] {
        stage.sql.run(&format!("UPDATE users SET password_hash = '{hash}' WHERE id = {id}")).await;
        let body = json!({"username": "ada", "password": PASSWORD});
        problem(&stage.api.post("login/", None, &body).await, 401);
    }
}

async fn a_new_password_keeps_the_old_one_out_though_it_was_being_checked(engine: Engine) {
    let stage = Stage::start(engine).await;
    let id = registered(&stage.api).await;
    let mut passwords = (PASSWORD.to_owned(), "the password after that".to_owned());
    for round in 0..12 {
        let old = json!({"username": "ada", "password": passwords.0});
        let path = format!("admin/users/{id}/");
        let new = json!({"password": passwords.1});
        let login = async {
            // Before, while and after the new one is made.
            tokio::time::interval_at(tokio::time::Instant::now() + Duration::from_millis(round * 5), SOON)
                .tick()
                .await;
            stage.api.post("login/", None, &old).await
        };
        let (changed, (status, body, _)) =
            tokio::join!(stage.api.patch(&path, Some(&stage.admin), &new), login);
        assert_eq!(changed.0, 200, "{}", changed.1);
        if status == 200 {
            let answer = stage.api.heartbeat(body["access"].as_str().unwrap()).await;
            problem(&answer, 401);
        }
        problem(&stage.api.post("login/", None, &old).await, 401);
        passwords = (passwords.1.clone(), format!("the password of round {round}"));
    }
}

async fn refresh(api: &Api, token: &str) -> (u16, Value) {
    let answer = api.post("token/refresh/", None, &json!({"refresh": token})).await;
    if answer.0 != 200 {
        problem(&answer, answer.0.as_u16());
    }
    (answer.0.as_u16(), answer.1)
}

async fn refreshed(api: &Api, token: &str) -> (String, String) {
    let (status, body) = refresh(api, token).await;
    assert_eq!(status, 200, "{body}");
    assert_eq!(body.as_object().unwrap().len(), 2, "{body}");
    (text(&body["access"]), text(&body["refresh"]))
}

async fn a_refresh_token_is_spent_once_and_two_tabs_may_spend_it_together(engine: Engine) {
    let stage = Stage::start(engine).await;
    let api = &stage.api;
    let phone = stage.join("ada").await;
    let laptop = api.login("ada").await;
    let id = phone.user_id();

    // Two tabs wake up with the same token. Each goes on by itself, more than once.
    let (one, other) = tokio::join!(refreshed(api, &phone.refresh), refreshed(api, &phone.refresh));
    let third = refreshed(api, &phone.refresh).await;
    assert!(one.1 != other.1 && other.1 != third.1);
    let mut accesses = vec![phone.access.clone()];
    let mut newest = Vec::new();
    for (access, token) in [one, other, third] {
        assert_eq!(claims(&access)["sid"], claims(&phone.access)["sid"]);
        let (second_access, token) = refreshed(api, &token).await;
        let (third_access, token) = refreshed(api, &token).await;
        accesses.extend([access, second_access, third_access]);
        newest.push(token);
    }
    for access in &accesses {
        assert_eq!(api.heartbeat(access).await.0, 200);
    }
    assert_eq!(api.get("me/sessions/", Some(&phone.access)).await.1["sessions"].as_array().unwrap().len(), 2);

    // For an instance without any grace, a second use is late.
    let (_strict, strict) = stage.another(setting("PRESENCE_REFRESH_GRACE", "0s")).await;
    assert_eq!(refresh(&strict, &phone.refresh).await.0, 401);
    for api in [api, &strict] {
        for access in &accesses {
            problem(&api.heartbeat(access).await, 401);
            problem(&api.get("me/", Some(access)).await, 401);
        }
        for token in &newest {
            assert_eq!(refresh(api, token).await.0, 401);
        }
    }
    assert_eq!(stage.status(id).await, "online", "the other session is not meant");
    assert_eq!(api.heartbeat(&laptop.access).await.0, 200);

    // The thief's last session takes the user offline.
    let (_, successor) = refreshed(&strict, &laptop.refresh).await;
    assert_eq!(refresh(&strict, &laptop.refresh).await.0, 401);
    assert_eq!(stage.status(id).await, "offline");
    assert_eq!(refresh(api, &successor).await.0, 401);

    for bad in ["", "nonsense", "a.b.c", &phone.access, &access(id)] {
        assert_eq!(refresh(api, bad).await.0, 401, "{bad}");
    }
}

async fn a_token_minted_elsewhere_is_as_good_and_a_forged_one_is_not(engine: Engine) {
    const TRUSTED: &str = "another secret of a service that is to be trusted";
    let stage = Stage::with(engine, setting("PRESENCE_TRUSTED_SECRETS", TRUSTED)).await;
    let api = &stage.api;
    let id = api.register("ada").await["id"].as_i64().unwrap();
    let now = chrono::Utc::now().timestamp();

    let good = [
        json!({"user_id": id, "token_type": "access"}),
        json!({"user_id": id.to_string(), "token_type": "access"}),
        json!({"user_id": id, "token_type": "access", "sid": "made-elsewhere", "jti": "x", "iss": "y", "roles": [1]}),
    ];
    for (claims, secret) in good.iter().flat_map(|claims| [(claims, SECRET), (claims, TRUSTED)]) {
        let token = mint(secret, claims.clone());
        let (status, body, _) = api.heartbeat(&token).await;
        assert_eq!((status.as_u16(), &body["online_status"]), (200, &json!("online")), "{claims}");
        assert_eq!(api.get("me/", Some(&token)).await.1["user"]["id"], id);
        assert_eq!(stage.set_status(id, "offline").await.0, 200);
    }

    let plain = json!({"user_id": id, "token_type": "access", "exp": now + 60});
    let signed = |algorithm| {
        let key = EncodingKey::from_secret(SECRET.as_bytes());
        jsonwebtoken::encode(&Header::new(algorithm), &plain, &key).unwrap()
    };
    let genuine = signed(Algorithm::HS256);
    let (head, rest) = genuine.split_once('.').unwrap();
    let (body, signature) = rest.split_once('.').unwrap();
    let other_body = mint(SECRET, json!({"user_id": 1, "token_type": "access"}));
    let with = |more: Value| {
        let mut claims = plain.clone();
        claims.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        mint(SECRET, claims)
    };
    let bad = [
        String::new(),
        "nonsense".into(),
        "a.b.c".into(),
        format!("{head}.{body}."),
        format!("{head}.{body}.{}", signature.chars().rev().collect::<String>()),
        format!("{head}.{}.{signature}", other_body.split('.').nth(1).unwrap()),
        // {"alg":"none"}
        format!("eyJhbGciOiJub25lIn0.{body}."),
        signed(Algorithm::HS512),
        mint("a secret of somebody who is not to be trusted", plain.clone()),
        with(json!({"exp": now - 1})),
        with(json!({"exp": "never"})),
        with(json!({"nbf": now + 60})),
        with(json!({"token_type": "refresh"})),
        with(json!({"token_type": null})),
        with(json!({"user_id": null})),
        with(json!({"user_id": -1})),
        with(json!({"user_id": 0})),
        with(json!({"user_id": 1.5})),
        with(json!({"user_id": "ada"})),
        with(json!({"user_id": "99999999999999999999999"})),
        with(json!({"sid": 5})),
    ];
    for token in &bad {
        problem(&api.heartbeat(token).await, 401);
        problem(&api.get("me/", Some(token)).await, 401);
    }
    problem(&api.get("me/", None).await, 401);
    assert_eq!(stage.status(id).await, "offline", "none of them was an activity");
}

async fn a_change_of_role_counts_for_tokens_already_issued(engine: Engine) {
    let stage = Stage::start(engine).await;
    let (_another, another) = stage.another(PresencedOptions::default()).await;
    let ada = stage.join("ada").await;
    let id = ada.user_id();
    let token = Some(ada.access.as_str());
    let is_admin = async |expected: bool| {
        for api in [&stage.api, &another] {
            eventually(AT_ONCE, async || {
                let (status, body, _) = api.get("admin/users/", token).await;
                let everybody = api.get("all-users/", token).await.1;
                let sees_mail = everybody["results"][0].get("email").is_some();
                let seen = (status.as_u16(), sees_mail);
                if seen == (if expected { 200 } else { 403 }, expected) { Ok(()) } else { Err((seen, body)) }
            })
            .await;
        }
    };
    is_admin(false).await;
    assert_eq!(stage.patch(id, json!({"role": "admin"})).await["role"], "admin");
    is_admin(true).await;
    stage.patch(id, json!({"role": "user"})).await;
    is_admin(false).await;
    stage.sql.run(&format!("UPDATE users SET role = 'admin' WHERE id = {id}")).await;
    is_admin(true).await;
    stage.sql.run(&format!("UPDATE users SET role = 'user' WHERE id = {id}")).await;
    is_admin(false).await;

    // A new password ends the sessions, and the old one is good for nothing.
    stage.patch(id, json!({"password": "another passphrase"})).await;
    problem(&stage.api.get("me/", token).await, 401);
    assert_eq!(refresh(&stage.api, &ada.refresh).await.0, 401);
    let body = json!({"username": "ada", "password": PASSWORD});
    problem(&stage.api.post("login/", None, &body).await, 401);
    stage.api.login_with("ada", "another passphrase").await;
    eventually(SOON, async || {
        let reasons: Vec<String> = stage.history(id).await.into_iter().map(|row| row.reason).collect();
        if reasons == ["login", "logout", "login"] { Ok(()) } else { Err(reasons) }
    })
    .await;
}
