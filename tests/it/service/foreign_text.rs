//! Text from outside, wherever it comes in, is escaped in the log and on terminals.

use std::path::Path;
use std::time::Duration;

use reqwest::Method;
use reqwest::header::HeaderValue;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::commands::presenced;
use super::{Database, Scene};
use crate::support::http::{PASSWORD, send};
use crate::support::mint::access_token;
use crate::support::poll::eventually;
use crate::support::tether;

/// Clears a terminal, begins a line of its own and turns the direction of what follows. 'forged' makes it recognisable.
const HARM: &str = "\u{1b}[2J\u{9b}31m\r\n2026-01-15T10:30:00Z ERROR forged\u{202e}\u{2066}\u{200b}\u{7}";

/// Fails where a text holds what could do harm.
#[track_caller]
fn assert_harmless(what: &str, text: &str) {
    let harmful = |sign: char| {
        (sign.is_control() && sign != '\n')
            || ['\u{202e}', '\u{2066}', '\u{200b}', '\u{2028}'].contains(&sign)
    };
    let place = text.find(harmful);
    assert!(place.is_none(), "{what}: {:?}", &text[place.unwrap()..].chars().take(60).collect::<String>());
    for line in text.lines() {
        assert!(!line.starts_with("2026-01-15T10:30:00Z"), "{what}: a forged line: {text}");
    }
}

#[tokio::test]
async fn no_text_from_outside_does_harm_in_the_log() {
    let env = [("PRESENCE_LOG", "debug"), ("PRESENCE_TRUSTED_PROXIES", "127.0.0.1")];
    let scene = Scene::start(Database::Sqlite, 5, Duration::from_secs(3), &env).await;
    let (admin, user) = (access_token(1, "office"), access_token(2, "phone"));
    let quoted = HARM.replace('\'', "''");

    // Bodies, names and passwords.
    for body in [
        json!({"username": HARM, "email": format!("{HARM}@example.org"), "password": PASSWORD}),
        json!({"username": HARM, "password": HARM}),
        json!({"refresh": HARM}),
        json!({"status": HARM}),
        json!({HARM: HARM}),
    ] {
        for path in ["register/", "login/", "token/refresh/", "logout/", "heartbeat/", "admin/users/"] {
            scene.api.post(path, Some(&admin), &body).await;
        }
        scene.api.patch("admin/users/3/", Some(&admin), &body).await;
        scene.api.post("admin/users/3/set-online-status/", Some(&admin), &body).await;
    }
    // Paths, parameters and tokens.
    let encoded: String = form_urlencoded::byte_serialize(HARM.as_bytes()).collect();
    for path in [
        format!("/{encoded}"),
        format!("all-users/?search={encoded}"),
        format!("all-users/?{encoded}=1"),
        format!("admin/users/{encoded}/"),
        format!("me/sessions/{encoded}/"),
    ] {
        scene.api.get(&path, Some(&admin)).await;
        scene.api.delete(&path, Some(&user)).await;
    }
    // Headers: HTTP itself keeps line ends out of them, and lets all other bytes in.
    let header = HeaderValue::from_bytes("\u{9b}2J\u{202e}forged\u{2066}".as_bytes()).unwrap();
    for name in [
        "user-agent",
        "x-forwarded-for",
        "authorization",
        "x-presence-activity",
        "origin",
        "if-none-match",
        "host",
    ] {
        let login = json!({"username": "nobody", "password": PASSWORD});
        let request = scene.api.request(Method::POST, "login/", None).json(&login);
        send(request.header(name, header.clone())).await;
        send(scene.api.request(Method::GET, "all-users/", None).header(name, header.clone())).await;
    }
    // What is no HTTP at all, or has raw bytes in its target.
    let address = scene.service.base_url().trim_start_matches("http://").to_owned();
    for bytes in [
        format!("{HARM}\r\n\r\n"),
        "GET /\u{202e}\u{9b}2J HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".to_owned(),
        format!("GET / HTTP/1.1\r\nx: \u{1b}[2J\r\n{HARM}: x\r\n\r\n"),
    ] {
        let mut client = tokio::net::TcpStream::connect(&address).await.unwrap();
        client.write_all(bytes.as_bytes()).await.unwrap();
        let _ = client.shutdown().await;
        let _ = client.read_to_end(&mut Vec::new()).await;
    }
    // What others write into Redis and SQL.
    let key = |name: &str| format!("presence:{{0}}:{name}");
    scene.redis.cli(&["XADD", &key("transitions"), "*", "user", HARM, "to", HARM]);
    scene.redis.cli(&["ZADD", &key("live"), "1000", HARM]);
    scene.redis.cli(&["HSET", &key("user:4"), "status", HARM, "since", HARM]);
    scene.redis.cli(&["ZADD", &key("live"), "9999999999999", "4"]);
    scene
        .sql
        .run(&format!("UPDATE users SET username = '{quoted}', password_hash = 'odd${quoted}' WHERE id = 5"))
        .await;
    scene.api.post("login/", None, &json!({"username": HARM, "password": PASSWORD})).await;
    scene.api.post("login/", None, &json!({"username": "u5@x.example", "password": PASSWORD})).await;
    scene.api.patch("admin/users/5/", Some(&admin), &json!({"status": "banned"})).await;
    scene.api.get("admin/users/4/", Some(&admin)).await;
    scene.api.get("admin/users/", Some(&admin)).await;
    // The loops have met what lies there.
    eventually(Duration::from_secs(10), async || {
        let log = scene.service.stderr();
        let met = ["entries that are no transitions", "administration", "login failed"];
        if met.iter().all(|line| log.contains(line)) { Ok(()) } else { Err(log) }
    })
    .await;
    scene.service.terminate().await;
    assert_harmless("the log", &scene.service.stderr());
    assert_harmless("standard output", &scene.service.stdout());
}

fn run(data: &Path, env: &[(&str, &str)], arguments: &[&str]) -> String {
    let output = presenced(data, env, arguments);
    String::from_utf8([output.stdout, output.stderr].concat()).expect("UTF-8")
}

#[tokio::test]
async fn no_text_from_outside_does_harm_on_the_terminal_of_a_command() {
    let folder = tether::folder("foreign");
    let data = folder.path().join("data");
    // An operator's script that passes on what a client has typed.
    let user = ["create-user", "--username", HARM, "--email", HARM, "--role", HARM, "--status", HARM];
    let said = run(&data, &[], &user);
    assert!(said.contains("username"), "{said}");
    assert_harmless("create-user", &said);

    let csv = folder.path().join("users.csv");
    std::fs::write(&csv, format!("username,email,{}\n", HARM.replace(['\r', '\n'], ""))).unwrap();
    assert_harmless("a column of a file", &run(&data, &[], &["import-users", csv.to_str().unwrap()]));
    let rows = format!("username,email,password,role\n\"{HARM}\",\"{HARM}@x\",\"odd${HARM}\",\"{HARM}\"\n");
    std::fs::write(&csv, rows).unwrap();
    let said = run(&data, &[], &["import-users", csv.to_str().unwrap()]);
    assert!(said.contains("refused"), "{said}");
    assert_harmless("the rows of a file", &said);
    let json_file = folder.path().join("users.json");
    let rows: Value = json!([{"username": HARM, "email": HARM, HARM: HARM}]);
    std::fs::write(&json_file, rows.to_string()).unwrap();
    assert_harmless("a file of JSON", &run(&data, &[], &["import-users", json_file.to_str().unwrap()]));

    let scene = Scene::start(Database::Sqlite, 5, Duration::from_mins(1), &[]).await;
    let key = |name: &str| format!("presence:{{0}}:{name}");
    assert_eq!(scene.api.heartbeat(&access_token(3, "phone")).await.0, 200);
    scene.redis.cli(&["ZADD", &key("live"), "9999999999999", HARM]);
    scene.redis.cli(&["HSET", &key("user:3"), "status", HARM, &format!("s:{HARM}"), "1"]);
    scene.redis.cli(&["HSET", &key("user:4"), "status", HARM, "since", HARM]);
    scene.redis.cli(&["ZADD", &key("live"), "9999999999999", "4"]);
    scene.redis.cli(&["SADD", &key("blocked"), HARM]);
    scene.service.kill9().await;
    let (url, redis) = (scene.database_url(), scene.redis.url());
    let env = [("DATABASE_URL", url.as_str()), ("REDIS_URL", &redis)];
    for arguments in [&["doctor"][..], &["doctor", "--repair"], &["check-offline-users"]] {
        let said = run(&data, &env, arguments);
        assert!(
            arguments.len() > 1 || said.contains("disagreement") || said.contains("taken offline"),
            "{said}"
        );
        assert_harmless(&arguments.join(" "), &said);
    }
    let quoted = HARM.replace('\'', "''");
    scene.sql.run("UPDATE users SET role = 'user'").await;
    // A word that this version does not know, in an error's text.
    let _ = scene.sql.try_run(&format!("UPDATE users SET status = '{quoted}' WHERE id = 5")).await;
    let _ = scene.sql.try_run(&format!("UPDATE users SET online_status = '{quoted}' WHERE id = 5")).await;
    assert_harmless("doctor on odd rows", &run(&data, &env, &["doctor"]));
}
