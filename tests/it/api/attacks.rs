//! Strings that mean something to SQL, to Redis, to Lua or to a terminal, in every field; and bodies that mean nothing.
//!
//! Tokens that are forged have their own table in [`super::identity`] and [`super::issuers`].

use std::collections::BTreeSet;
use std::sync::Arc;

use reqwest::Method;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::{Engine, Stage, access, column, on_both_databases, problem};
use crate::support::dice::Dice;
use crate::support::http::{Answer, PASSWORD, send};

on_both_databases!(no_string_is_more_than_a_string);

/// Strings that some layer below might take for its own language. Each must come back as it went in, or be refused.
const STRINGS: [&str; 31] = [
    "{0}",
    "a{b}c",
    "{",
    "}",
    "*",
    "?",
    "[a-z]",
    "presence:{0}:live",
    "presence:{0}:user:1",
    "7:phone",
    "' OR '1'='1",
    "'; DROP TABLE users; --",
    "\"; DELETE FROM users WHERE \"\"=\"",
    "x'); SELECT pg_sleep(10); --",
    "$1",
    "?1",
    ":name",
    "%",
    "_",
    "\\",
    "\\'; --",
    "%00",
    "%s%n%x",
    "${jndi:ldap://127.0.0.1/a}",
    "<script>alert(1)</script>",
    "redis.call('FLUSHALL')",
    "FLUSHALL",
    "0",
    "-1",
    "null",
    "مرحبا",
];

/// Strings that no name may hold: they would break a line, turn the direction of what stands around them, or look like
/// another name.
const REFUSED: [&str; 13] = [
    "🦀 e\u{301}\u{327}",
    "Ⅳ ﬃ ß İ",
    "\u{200d}joined\u{200d}",
    "a\0b",
    "a\nb",
    "a\r\nSET x y\r\n",
    "a\tb",
    "\u{1b}[2J",
    "a\u{85}b",
    "\u{202e}nimda",
    "admin\u{200f}",
    "admin\u{2066}",
    "\u{61c}admin",
];

/// What must not have changed, whatever anybody sent: the keys of Redis by their shape, and the tables.
async fn surroundings(stage: &Stage) -> (BTreeSet<String>, Vec<Vec<String>>) {
    let keys = stage.redis.cli(&["KEYS", "*"]);
    let shape = |key: &str| key.trim_end_matches(|c: char| c.is_ascii_digit()).to_owned();
    // The proof of expiry events and the turn of a task come and go by themselves; the count of what the blocklist was told comes with
    // the first account that changes after the fence stands.
    let comes_and_goes =
        |key: &&str| key.contains(":canary:") || key.ends_with(":verify") || key.ends_with(":moves");
    let keys = keys.lines().filter(|key| !comes_and_goes(key)).map(shape).collect();
    let tables =
        ["login_sessions", "refresh_tokens", "presence_transitions", "account_changes", "admin_actions"];
    let mut counts = Vec::new();
    for table in tables {
        // A table that is gone is an error here.
        stage.sql.rows(&format!("SELECT CAST(count(*) AS text) FROM {table}")).await;
        counts.push(vec![table.to_owned()]);
    }
    counts.extend(stage.sql.rows("SELECT username FROM users WHERE id = 1").await);
    (keys, counts)
}

async fn no_string_is_more_than_a_string(engine: Engine) {
    let stage = Stage::start(engine).await;
    let api = &stage.api;
    let ada = stage.join("ada").await;
    let before = surroundings(&stage).await;
    for (number, string) in STRINGS.into_iter().enumerate() {
        // As a name, a password and, where it may be one, a part of an address.
        let email = format!("user{number}@example.com");
        let password = format!("{string} and more of it");
        let body = json!({"username": string, "email": email, "password": password});
        let (status, body, _) = api.post("register/", None, &body).await;
        assert_eq!((status.as_u16(), &body["user"]["username"]), (201, &json!(string)), "{body}");
        let id = body["user"]["id"].as_i64().unwrap();
        let tokens = api.login_with(string, &password).await;
        assert_eq!(tokens.user_id(), id, "{string}");
        assert_eq!(api.heartbeat(&tokens.access).await.0, 200);
        // Found by its own text, and by nobody else's.
        let encoded: String = form_urlencoded::byte_serialize(string.as_bytes()).collect();
        let path = format!("admin/users/?per_page=1000&search={encoded}");
        let (_, found, _) = api.get(&path, Some(&stage.admin)).await;
        assert!(column(&found, "results", "id").contains(&json!(id)), "{string}: {found}");
        for user in found["results"].as_array().unwrap() {
            let holds =
                |field: &str| user[field].as_str().unwrap().to_lowercase().contains(&string.to_lowercase());
            assert!(holds("username") || holds("email"), "{string} found {user}");
        }
        assert_eq!(stage.set_status(id, "offline").await.0, 200);

        everywhere(&stage, &ada.access, string).await;
    }
    for string in REFUSED {
        let body = json!({"username": string, "email": "x@example.com", "password": PASSWORD});
        problem(&api.post("register/", None, &body).await, 422);
        everywhere(&stage, &ada.access, string).await;
    }
    let (keys, tables) = surroundings(&stage).await;
    assert_eq!(keys, before.0);
    assert_eq!(tables, before.1);
    let passwords = stage.sql.rows("SELECT password_hash FROM users").await;
    assert!(passwords.iter().all(|row| row[0].starts_with("$argon2id$")), "{passwords:?}");
    assert_eq!(api.heartbeat(&ada.access).await.0, 200, "nobody was logged out by it");
}

/// The string in each field in which it can only be wrong: it is refused as such.
async fn everywhere(stage: &Stage, access: &str, string: &str) {
    let api = &stage.api;
    let id = "admin/users/2/";
    let refused = [
        api.post("login/", None, &json!({"username": string, "password": "no password of anybody"})).await,
        api.post("login/", None, &json!({"username": "ada", "password": string})).await,
        api.post("token/refresh/", None, &json!({"refresh": string})).await,
        api.post("logout/", Some(access), &json!({"refresh": string})).await,
        api.post("heartbeat/", Some(access), &json!({"status": string})).await,
        api.post("heartbeat/", Some(access), &json!({string: "away"})).await,
        api.patch(id, Some(&stage.admin), &json!({"role": string})).await,
        api.patch(id, Some(&stage.admin), &json!({"status": string})).await,
        api.patch(id, Some(&stage.admin), &json!({"email": string})).await,
        api.patch(id, Some(&stage.admin), &json!({"is_active": string})).await,
        stage.set_status(2, string).await,
    ];
    for answer in refused {
        let status = answer.0.as_u16();
        assert!((400..500).contains(&status), "{string:?}: {status} {}", answer.1);
        problem(&answer, status);
    }
    let encoded: String =
        form_urlencoded::byte_serialize(string.as_bytes()).collect::<String>().replace('+', "%20");
    for (method, path) in [
        (Method::GET, format!("admin/users/{encoded}/online-status/")),
        (Method::DELETE, format!("me/sessions/{encoded}/")),
        (Method::DELETE, format!("admin/users/2/sessions/{encoded}/")),
        (Method::GET, format!("admin/users/?status={encoded}")),
        (Method::GET, format!("admin/users/?page={encoded}&per_page={encoded}")),
        (Method::GET, format!("admin/audit/?user={encoded}&admin={encoded}&action={encoded}")),
        (Method::GET, format!("all-users/?search={encoded}&online_status={encoded}")),
    ] {
        let answer = send(api.request(method, &path, Some(&stage.admin))).await;
        assert!(answer.0.as_u16() < 500, "{path}: {}", answer.1);
    }
    // Header values take no control characters; the client would not send them.
    if let Ok(value) = reqwest::header::HeaderValue::from_bytes(string.as_bytes()) {
        for name in ["user-agent", "x-forwarded-for", "accept", "origin"] {
            let request = api.request(Method::POST, "heartbeat/", Some(access)).header(name, value.clone());
            assert_eq!(send(request).await.0, 200, "{name}: {string:?}");
        }
        let request = api.request(Method::POST, "heartbeat/", None).header("authorization", value);
        problem(&send(request).await, 401);
    }
}

/// How many random bodies are sent.
const BODIES: u64 = 10_000;
const CLIENTS: u64 = 8;
const SEED: u64 = 20_261_122;

#[tokio::test]
async fn ten_thousand_random_bodies_produce_no_500() {
    let stage = Arc::new(Stage::start(Engine::Sqlite).await);
    let ada = stage.join("ada").await.user_id();
    let mut clients = JoinSet::new();
    for client in 0..CLIENTS {
        let (stage, mut dice) = (stage.clone(), Dice::new(SEED).split(client));
        clients.spawn(async move {
            let mut taken = 0;
            for _ in 0..BODIES / CLIENTS {
                let (method, path) = target(&mut dice, ada);
                let body = body(&mut dice);
                let (status, answer, headers) = post(&stage, method, &path, body.clone(), &mut dice).await;
                let code = status.as_u16();
                assert!(code < 500, "{path} {code} {answer}: {}", String::from_utf8_lossy(&body));
                if code < 300 {
                    taken += 1;
                } else {
                    problem(&(status, answer, headers), code);
                }
            }
            taken
        });
    }
    let taken: u64 = clients.join_all().await.into_iter().sum();
    // Some are good by chance, or this would only try the parser.
    assert!(taken > 100, "{taken} of {BODIES} were taken");
    assert_eq!(stage.api.heartbeat(&access(1)).await.0, 200, "and the service is well");
    assert_eq!(stage.sql.rows("SELECT role FROM users WHERE id = 1").await, [["admin"]]);
}

async fn post(stage: &Stage, method: Method, path: &str, body: Vec<u8>, dice: &mut Dice) -> Answer {
    let mut request = stage.api.request(method, path, Some(&stage.admin)).body(body);
    request = match dice.roll(20) {
        0 => request,
        1 => request.header("content-type", "text/plain"),
        2 => request.header("content-type", "application/json; charset=latin1"),
        _ => request.header("content-type", "application/json"),
    };
    send(request).await
}

fn target(dice: &mut Dice, user: i64) -> (Method, String) {
    match dice.roll(8) {
        0 => (Method::POST, "register/".into()),
        1 => (Method::POST, "login/".into()),
        2 => (Method::POST, "token/refresh/".into()),
        3 => (Method::POST, "logout/".into()),
        4 => (Method::POST, "heartbeat/".into()),
        5 => (Method::POST, "admin/users/".into()),
        6 => (Method::PATCH, format!("admin/users/{user}/")),
        _ => (Method::POST, format!("admin/users/{user}/set-online-status/")),
    }
}

/// A body: mostly an object of the service's own fields with values of every kind, often broken afterwards.
fn body(dice: &mut Dice) -> Vec<u8> {
    const FIELDS: [&str; 10] = [
        "username",
        "email",
        "password",
        "refresh",
        "status",
        "role",
        "is_active",
        "online_status",
        "id",
        "__proto__",
    ];
    let mut object = serde_json::Map::new();
    for _ in 0..dice.roll(5) {
        let field = FIELDS[usize::try_from(dice.roll(10)).unwrap()];
        object.insert(field.to_owned(), value(dice, 0));
    }
    let mut bytes = serde_json::to_vec(&object).unwrap();
    if dice.percent(40) {
        for _ in 0..=dice.roll(4) {
            let at = usize::try_from(dice.roll(bytes.len() as u64 + 1)).unwrap();
            let byte = u8::try_from(dice.roll(256)).unwrap();
            match dice.roll(3) {
                0 => bytes.insert(at, byte),
                1 if at < bytes.len() => bytes[at] = byte,
                _ => bytes.truncate(at),
            }
        }
    }
    bytes
}

fn value(dice: &mut Dice, depth: u32) -> Value {
    let strings =
        ["online", "away", "offline", "active", "banned", "user", "ada", "x@example.com", PASSWORD, ""];
    match dice.roll(12) {
        0 => Value::Null,
        1 => json!(dice.percent(50)),
        2 => json!(dice.between(-5, 5)),
        3 => json!(1.0e300),
        4 => json!(u64::MAX),
        5 => json!(STRINGS[usize::try_from(dice.roll(STRINGS.len() as u64)).unwrap()]),
        6 => json!(REFUSED[usize::try_from(dice.roll(REFUSED.len() as u64)).unwrap()]),
        7 => json!("x".repeat(usize::try_from(dice.roll(2_000)).unwrap())),
        8 if depth < 4 => json!([value(dice, depth + 1), value(dice, depth + 1)]),
        9 if depth < 4 => json!({"status": value(dice, depth + 1)}),
        _ => json!(strings[usize::try_from(dice.roll(strings.len() as u64)).unwrap()]),
    }
}
