//! No secret in a log, an answer, an error or a help text, however much is logged.

use std::process::{Command, Stdio};

use reqwest::Method;
use serde_json::json;

use crate::support::http::{Api, send};
use crate::support::poll::eventually;
use crate::support::process::{Presenced, PresencedOptions};
use crate::support::redis::RedisServer;
use crate::support::tether;

const ADMIN: &str = "admin-secret-hunter2";
const PASSWORD: &str = "user-secret-hunter2-long";
const WRONG: &str = "wrong-secret-hunter2";
const JWT: &str = "jwt-secret-hunter2-that-is-long-enough-for-it";
const TRUSTED: &str = "trusted-secret-hunter2-long-enough-as-well";
const REDIS: &str = "redis-secret-hunter2";

/// All secrets above, and those that no list knows, hold this.
const MARK: &str = "hunter2";

fn assert_clean(text: &str, secrets: &[String]) {
    // How hashes begin stands in a statement; a hash goes on.
    let text = text.replace("$argon2id$v=19$m=19456,t=2,p=1$'", "");
    let marks = secrets.iter().map(String::as_str).chain([MARK, "$argon2id$"]);
    for secret in marks {
        let found: Vec<_> = text.lines().filter(|line| line.contains(secret)).take(3).collect();
        assert!(found.is_empty(), "a secret is shown: {found:#?}");
    }
}

fn env(more: &[(&str, &str)]) -> Vec<(String, String)> {
    let own = [
        ("PRESENCE_LOG", "trace"),
        ("PRESENCE_ADMIN_PASSWORD", ADMIN),
        ("PRESENCE_JWT_SECRET", JWT),
        ("PRESENCE_TRUSTED_SECRETS", TRUSTED),
    ];
    own.iter().chain(more).map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

#[tokio::test]
async fn a_whole_life_at_the_loudest_log_shows_no_secret() {
    let redis = RedisServer::start(&[]).await;
    redis.cli(&["CONFIG", "SET", "requirepass", REDIS]);
    let service = Presenced::start(PresencedOptions {
        redis_url: Some(redis.url().replace("redis://", &format!("redis://:{REDIS}@"))),
        env: env(&[]),
        ..PresencedOptions::default()
    })
    .await;
    let api = Api::new(service.base_url());
    let (mut secrets, mut answers) = (Vec::new(), Vec::new());
    let body = json!({"username": "ada", "email": "ada@example.org", "password": PASSWORD});
    eventually(std::time::Duration::from_secs(10), async || {
        let (status, body, _) = api.get("/readyz", None).await;
        if status == 200 { Ok(()) } else { Err(body) }
    })
    .await;
    let (status, answer, _) = api.post("register/", None, &body).await;
    assert_eq!(status, 201, "{answer}");
    answers.push(answer);
    let tokens = api.login_with("ada", PASSWORD).await;
    let (status, pair, _) = api.post("token/refresh/", None, &json!({"refresh": tokens.refresh})).await;
    assert_eq!(status, 200, "{pair}");
    let text = |field: &str| pair[field].as_str().unwrap().to_owned();
    secrets.extend([tokens.access.clone(), tokens.refresh.clone(), text("access"), text("refresh")]);
    for (path, token, body) in [
        ("login/", None, json!({"username": "ada", "password": WRONG})),
        ("login/", None, json!({"username": "nobody", "password": WRONG})),
        ("login/", None, json!({"username": WRONG, "passwrd": WRONG})),
        ("login/", None, json!({"username": 7, "password": [WRONG]})),
        ("token/refresh/", None, json!({"refresh": WRONG})),
        ("register/", None, json!({"username": "", "email": WRONG, "password": PASSWORD, "more": WRONG})),
        ("heartbeat/", Some(tokens.access.as_str()), json!({"status": WRONG})),
        ("heartbeat/", Some(WRONG), json!({})),
        ("logout/", Some(tokens.access.as_str()), json!({"refresh": WRONG})),
        ("logout/", Some(tokens.access.as_str()), json!({"refresh": text("refresh")})),
    ] {
        let (_, answer, _) = api.post(path, token, &body).await;
        answers.push(answer);
    }
    let torn = api.request(Method::POST, "login/", None).header("content-type", "application/json");
    answers.push(send(torn.body(format!("{{\"username\": \"ada\", \"password\": \"{WRONG}"))).await.1);
    let admin = api.login_with("admin", ADMIN).await;
    let change = json!({"password": PASSWORD});
    let (status, answer, _) = api.patch("admin/users/2/", Some(&admin.access), &change).await;
    assert_eq!(status, 200, "{answer}");
    answers.push(answer);
    secrets.extend([admin.access, admin.refresh]);
    redis.kill().await;
    for _ in 0..2 {
        answers.push(api.get("/readyz", None).await.1);
        answers.push(api.post("login/", None, &json!({"username": "ada", "password": PASSWORD})).await.1);
    }
    assert_eq!(service.terminate().await, 0);
    assert!(service.stderr().contains("TRACE"), "the loudest log");
    assert_clean(&service.stderr(), &secrets);
    assert_clean(&service.stdout(), &secrets);
    for answer in answers {
        assert_clean(&answer.to_string(), &secrets);
    }
}

#[tokio::test]
async fn servers_that_are_not_there_are_complained_of_without_their_passwords() {
    let (one, other) = (tether::free_port(), tether::free_port());
    let service = Presenced::start(PresencedOptions {
        database_url: Some(format!("postgres://user:hunter2@127.0.0.1:{one}/presence")),
        redis_url: Some(format!("redis://:hunter2@127.0.0.1:{other}")),
        env: env(&[]),
        ..PresencedOptions::default()
    })
    .await;
    let api = Api::new(service.base_url());
    let (status, body, _) = api.get("/readyz", None).await;
    assert_eq!(status, 503);
    assert_eq!(body["checks"]["redis"], "unreachable");
    // Whichever comes first: the refusal of the last attempt, or the end of the patience.
    let database = body["checks"]["database"].as_str().unwrap();
    assert!(["unreachable", "no answer in time"].contains(&database), "{body}");
    let (_, body, _) = api.post("login/", None, &json!({"username": "ada", "password": WRONG})).await;
    assert_clean(&body.to_string(), &[]);
    assert_eq!(service.terminate().await, 0);
    assert_clean(&(service.stderr() + &service.stdout()), &[]);
}

#[test]
fn bad_settings_and_the_help_show_no_secret() {
    let folder = tether::folder("help");
    let run = |env: &[(&str, &str)], arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_presenced"));
        command.env("PRESENCE_DATA_DIR", folder.path().join("data")).env("PRESENCE_LOG", "trace");
        command.envs(env.iter().copied()).args(arguments).stdin(Stdio::null());
        let output = command.output().unwrap();
        String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
    };
    let secrets = [
        ("DATABASE_URL", "postgres://user:hunter2@db.example.com/presence"),
        ("REDIS_URL", "redis://:hunter2@redis.example.com"),
        ("PRESENCE_JWT_SECRET", JWT),
        ("PRESENCE_TRUSTED_SECRETS", TRUSTED),
        ("PRESENCE_ADMIN_PASSWORD", ADMIN),
    ];
    for arguments in [&["--help"][..], &["-h"], &["serve", "--help"], &["migrate", "--frobnicate"]] {
        let said = run(&secrets, arguments);
        assert!(said.contains("Usage") || said.contains("frobnicate"), "{said}");
        assert_clean(&said, &[]);
    }
    let bad = [
        ("DATABASE_URL", "mysql://user:hunter2@db.example.com/presence"),
        ("DATABASE_URL", "postgres://user:hunter2@[nowhere/presence"),
        ("DATABASE_URL", "postgres://user:hunter2@host:port/presence"),
        ("DATABASE_URL", "hunter2"),
        ("REDIS_URL", "http://:hunter2@redis.example.com"),
        ("REDIS_URL", "redis://:hunter2@[nowhere"),
        ("REDIS_URL", "redis://:hunter2@host:port"),
        ("REDIS_URL", "redis://user:hunter2@host/not-a-number"),
        ("REDIS_URL", "hunter2"),
        ("PRESENCE_JWT_SECRET", "hunter2"),
        ("PRESENCE_TRUSTED_SECRETS", "hunter2,hunter2"),
    ];
    for (name, value) in bad {
        let said = run(&[(name, value)], &["serve"]);
        assert!(said.contains(name), "{name}={value}: {said}");
        assert_clean(&said, &[]);
    }
}
