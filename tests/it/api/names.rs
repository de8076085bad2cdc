//! Login names: a name is one account's in every spelling, and nothing tells which names belong together.

use serde_json::json;

use super::{AT_ONCE, Engine, Stage, column, complaint, on_both_databases, problem, setting};
use crate::support::http::{Answer, PASSWORD};
use crate::support::poll::eventually;

on_both_databases!(
    a_name_is_one_account_s_in_every_spelling,
    a_name_that_could_be_taken_for_another_is_refused,
    names_that_plain_sql_writes_are_found_within_a_second,
);

async fn register(stage: &Stage, username: &str, email: &str) -> Answer {
    let body = json!({"username": username, "email": email, "password": PASSWORD});
    stage.api.post("register/", None, &body).await
}

async fn a_name_is_one_account_s_in_every_spelling(engine: Engine) {
    let stage = Stage::start(engine).await;
    let api = &stage.api;
    assert_eq!(register(&stage, "Straße", "kim@outlook.com").await.0, 201);
    let other = api.register("other").await["id"].as_i64().unwrap();
    for (username, email, field) in [
        ("STRASSE", "x@example.com", "username"),
        ("Ｓtrasse", "x@example.com", "username"),
        ("x", "KIM@OUTLOOK.COM", "email"),
        ("x", "\u{212a}im@outloo\u{212a}.com", "email"),
        ("kim@outlook.com", "\u{212a}im@outloo\u{212a}.com", "username"),
    ] {
        complaint(&register(&stage, username, email).await, 409, field);
        let body = json!({"username": username, "email": email, "password": PASSWORD, "role": "user"});
        complaint(&api.post("admin/users/", Some(&stage.admin), &body).await, 409, field);
    }
    let path = format!("admin/users/{other}/");
    for email in ["\u{212a}im@outlook.com", "Kim@Outlook.com"] {
        complaint(&api.patch(&path, Some(&stage.admin), &json!({"email": email})).await, 409, "email");
    }
    for name in ["Straße", "strasse", "STRAẞE", "kim@outlook.com", "\u{212a}IM@OUTLOOK.COM"] {
        assert_eq!(api.login(name).await.user["username"], "Straße", "{name}");
    }
    let (_, body, _) = api.get("all-users/?search=TRASSE", Some(&stage.admin)).await;
    assert_eq!(column(&body, "results", "username"), [json!("Straße")], "{body}");
    // What is kept is the ordinary spelling.
    let (status, body, _) = register(&stage, "Ａda\u{3000}Ｌovelace", "ada@example.com").await;
    assert_eq!((status.as_u16(), &body["user"]["username"]), (201, &json!("Ada Lovelace")), "{body}");
    api.login("ADA LOVELACE").await;
}

async fn a_name_that_could_be_taken_for_another_is_refused(engine: Engine) {
    let stage = Stage::start(engine).await;
    for name in [
        "ad\u{200b}min",
        "admin\u{ad}",
        "\u{2060}admin",
        "adm\u{200d}in",
        "\u{3164}",
        "\u{2800}",
        "a\u{a0}b",
        "a\u{fe0f}",
        "\u{212a}im",
        "ﬁn",
        "🦀",
        "a  b",
        " a",
        "bob@example.com",
        "bob\u{fe6b}example.com",
        "abcمرحبا",
    ] {
        let answer = register(&stage, name, "x@example.com").await;
        complaint(&answer, 422, "username");
        let said = answer.1["errors"]["username"].to_string();
        assert!(
            !said.chars().any(|c| matches!(c, '\u{ad}' | '\u{200b}'..='\u{200f}' | '\u{2060}')),
            "{said}"
        );
    }
    for email in ["a\u{200b}da@example.com", "ada@exam\u{ad}ple.com", "a\u{ff20}b@c", "a b@c", "a\u{a0}b@c"] {
        complaint(&register(&stage, "ada", email).await, 422, "email");
    }
}

async fn names_that_plain_sql_writes_are_found_within_a_second(engine: Engine) {
    let stage = Stage::start(engine).await;
    let hash = "SELECT password_hash FROM users WHERE username = 'admin'";
    stage
        .sql
        .run(&format!(
            "INSERT INTO users (username, email, password_hash) SELECT 'Ärger', 'ÖL@example.com', ({hash})"
        ))
        .await;
    // At once, whatever the spelling.
    let user = stage.api.login("ÄRGER").await.user_id();
    let finds = async |text: &str, expected: bool| {
        eventually(AT_ONCE * 3, async || {
            let path = format!("admin/users/?search={text}");
            let (_, body, _) = stage.api.get(&path, Some(&stage.admin)).await;
            if column(&body, "results", "id").contains(&json!(user)) == expected { Ok(()) } else { Err(body) }
        })
        .await;
    };
    finds("%C3%A4RG", true).await;
    finds("%C3%B6l%40", true).await;
    stage.sql.run(&format!("UPDATE users SET username = 'Übel' WHERE id = {user}")).await;
    assert_eq!(stage.api.login("übel").await.user_id(), user);
    finds("%C3%BCbel", true).await;
    finds("%C3%A4RG", false).await;
    let body = json!({"username": "ärger", "password": PASSWORD});
    problem(&stage.api.post("login/", None, &body).await, 401);
}

/// By the answers alone nobody learns that a name and an address are of one account, or that a name is known at all.
#[tokio::test]
async fn a_refusal_never_proves_whose_address_belongs_to_which_name() {
    let stage =
        Stage::with(Engine::Sqlite, setting("PRESENCE_RATE_LIMITS", "login:address=off,login:account=3/1h"))
            .await;
    stage.api.register("ada").await;
    let attempt = async |name: &str| {
        let body = json!({"username": name, "password": "no password of anybody"});
        let (status, body, headers) = stage.api.post("login/", None, &body).await;
        (status.as_u16(), body["title"].clone(), headers.contains_key("retry-after"))
    };
    // Known and unknown: a name, then the address that may be of the same account.
    for (name, address) in [("ada", "ada@example.org"), ("nobody", "nobody@example.org")] {
        let mut answers = Vec::new();
        for login in [name, name, &name.to_uppercase(), name, address, address, address, address, name] {
            answers.push(attempt(login).await.0);
        }
        assert_eq!(answers, [401, 401, 401, 429, 401, 401, 401, 429, 429], "{name}");
        assert_eq!(attempt(name).await, attempt(address).await);
    }
    assert_eq!(attempt("ada").await, attempt("nobody").await);
}
