//! What a token must say: ids of 64 bits, sessions of bounded names, and times by clocks that differ.

use serde_json::{Value, json};

use super::{Engine, Stage, mint, on_both_databases, presence_key, problem, setting, text};
use crate::support::mint::SECRET;
use crate::support::process::PresencedOptions;

on_both_databases!(
    an_id_above_2_53_is_that_account_and_no_neighbour,
    a_session_id_of_elsewhere_is_bounded_before_it_is_part_of_a_key,
);

/// With claims beside those that every token needs.
fn token(more: &Value) -> String {
    let mut claims = json!({"token_type": "access", "user_id": 1});
    claims.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    mint(SECRET, claims)
}

async fn an_id_above_2_53_is_that_account_and_no_neighbour(engine: Engine) {
    let stage = Stage::start(engine).await;
    // Each beside the number that a floating-point one would take it for.
    let pairs: [[i64; 2]; 3] = [
        [(1 << 53) + 1, 1 << 53],
        [1_234_567_890_123_456_789, 1_234_567_890_123_456_768],
        [i64::MAX - 1, i64::MAX - 1023],
    ];
    for id in pairs.concat() {
        stage.sql.seed(id, 1).await;
    }
    let exists = |id: i64| stage.redis.cli(&["EXISTS", &presence_key(id)]).trim() == "1";
    for [id, neighbour] in pairs {
        for written in [json!(id), json!(id.to_string())] {
            let (status, body, _) = stage.api.heartbeat(&token(&json!({"user_id": written}))).await;
            assert_eq!(status, 200, "{body}");
        }
        assert!(exists(id) && !exists(neighbour), "{id}");
    }
    for bad in
        ["9223372036854775808", "1234567890123456789.0", "1e3", "0", "-1", "null", "true", "\"1.0\"", "[1]"]
    {
        let token = token(&json!({"user_id": serde_json::from_str::<Value>(bad).unwrap()}));
        let detail = text(&problem(&stage.api.heartbeat(&token).await, 401)["detail"]);
        assert!(
            detail.contains("user id must be a whole number from 1 to 9223372036854775807"),
            "{bad}: {detail}"
        );
    }
}

async fn a_session_id_of_elsewhere_is_bounded_before_it_is_part_of_a_key(engine: Engine) {
    let stage = Stage::start(engine).await;
    let long = "x".repeat(128);
    for good in ["a", "{0}:ended:{1}", "%s'\"\\*?[a]", long.as_str()] {
        assert_eq!(stage.api.heartbeat(&token(&json!({"sid": good}))).await.0, 200, "{good}");
        let field = stage.redis.cli(&["HEXISTS", &presence_key(1), &format!("s:{good}")]);
        assert_eq!(field.trim(), "1", "{good}");
    }
    let too_long = "x".repeat(129);
    let bad = [
        json!(""),
        json!(" "),
        json!("a b"),
        json!("a\nb"),
        json!("a\r\nb"),
        json!("a\u{0}b"),
        json!("\u{1b}[2J"),
        json!("\u{7f}"),
        json!("é"),
        json!("\u{202e}a"),
        json!(too_long),
        json!("x".repeat(5_000)),
        json!(5),
        json!({}),
        json!(["a"]),
    ];
    for sid in bad {
        let detail = text(&problem(&stage.api.heartbeat(&token(&json!({"sid": sid}))).await, 401)["detail"]);
        assert!(
            detail.contains("session id must be a text of 1 to 128 visible ASCII characters"),
            "{sid}: {detail}"
        );
    }
}

#[tokio::test]
async fn a_token_of_a_clock_that_is_a_few_seconds_ahead_is_taken() {
    let stage = Stage::start(Engine::Sqlite).await;
    let ahead = |seconds: i64| {
        let then = chrono::Utc::now().timestamp() + seconds;
        token(&json!({"nbf": then, "iat": then}))
    };
    assert_eq!(stage.api.heartbeat(&ahead(4)).await.0, 200);
    let detail = text(&problem(&stage.api.heartbeat(&ahead(60)).await, 401)["detail"]);
    assert!(detail.contains("not valid yet"), "{detail}");
    let (_patient, patient) = stage.another(setting("PRESENCE_TOKEN_LEEWAY", "2m")).await;
    assert_eq!(patient.heartbeat(&ahead(60)).await.0, 200);
    let (_strict, strict) = stage.another(setting("PRESENCE_TOKEN_LEEWAY", "0")).await;
    problem(&strict.heartbeat(&ahead(4)).await, 401);
    // The end of a token is its end, for the ends of sessions are remembered no longer.
    let now = chrono::Utc::now().timestamp();
    let (_last, patient) = stage.another(PresencedOptions::default()).await;
    for api in [&stage.api, &patient] {
        problem(&api.heartbeat(&token(&json!({"exp": now - 1}))).await, 401);
    }
}
