//! How often somebody may try: what is refused, until when, and what a limit leaves alone.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{Engine, Stage, problem, setting};
use crate::support::http::{Answer, PASSWORD};
use crate::support::metrics::Scrape;
use crate::support::poll::eventually;
use crate::support::process::PresencedOptions;

fn limits(figures: &str) -> PresencedOptions {
    setting("PRESENCE_RATE_LIMITS", figures)
}

async fn login(stage: &Stage, name: &str, password: &str) -> Answer {
    stage.api.post("login/", None, &json!({"username": name, "password": password})).await
}

/// The seconds that a refusal names, in its header and in its text.
#[track_caller]
fn seconds(answer: &Answer) -> u64 {
    let body = problem(answer, 429);
    let seconds = answer.2["retry-after"].to_str().unwrap().parse().unwrap();
    assert!(body["detail"].as_str().unwrap().contains(&format!("in {seconds} second")), "{body}");
    seconds
}

#[tokio::test]
async fn logins_from_one_address_are_limited_whoever_they_are_for() {
    let stage = Stage::with(Engine::Sqlite, limits("login:address=3/1h")).await;
    stage.api.register("ada").await;
    problem(&login(&stage, "nobody", "no").await, 401);
    assert_eq!(login(&stage, "ada", PASSWORD).await.0, 200);
    problem(&login(&stage, "ada", "no").await, 401);
    let refused = login(&stage, "ada", PASSWORD).await;
    assert!((1_190..=1_200).contains(&seconds(&refused)), "{refused:?}");
    assert_eq!(stage.redis.cli(&["EXISTS", "presence:limit:login:address:127.0.0.1"]), "1");
    let metrics = Scrape::of(&stage.api).await;
    assert!((metrics.value("presence_rate_limited_total{limit=\"login:address\"}") - 1.0).abs() < 0.1);
}

/// Refused before its password is looked at, known or not, and told the truth about when to come again.
#[tokio::test]
async fn tries_on_one_account_are_limited_and_the_time_that_is_told_is_the_truth() {
    let stage = Stage::with(Engine::Sqlite, limits("login:address=off,login:account=3/9s")).await;
    let id = stage.api.register("ada").await["id"].as_i64().unwrap();
    for name in ["ada", "ADA", "Ada", "nobody", "Nobody", "nobody"] {
        problem(&login(&stage, name, "no").await, 401);
    }
    let began = Instant::now();
    let right = login(&stage, "ada", PASSWORD).await;
    let unknown = login(&stage, "nobody", PASSWORD).await;
    let wait = Duration::from_secs(seconds(&right));
    assert!(wait <= Duration::from_secs(3));
    assert_eq!(problem(&unknown, 429)["title"], problem(&right, 429)["title"]);
    assert_eq!(stage.redis.cli(&["KEYS", "presence:limit:login:account:name-*"]).lines().count(), 2);
    for path in ["me/", "heartbeat/"] {
        assert_ne!(stage.api.get(path, Some(&super::access(id))).await.0, 429, "who is in is not locked out");
    }
    eventually(wait + Duration::from_secs(5), async || {
        if began.elapsed() >= wait { Ok(()) } else { Err(began.elapsed()) }
    })
    .await;
    assert_eq!(login(&stage, "ada", PASSWORD).await.0, 200, "after that time it succeeds");
    // And the owner has all his tries again.
    for _ in 0..3 {
        problem(&login(&stage, "ada", "no").await, 401);
    }
    seconds(&login(&stage, "ada", "no").await);
}

/// Each correct login begins a session: one account does not begin them without end, from however many addresses.
#[tokio::test]
async fn correct_logins_of_one_account_are_limited_too() {
    let stage = Stage::with(Engine::Sqlite, limits("login:address=off,login:total=4/1h")).await;
    stage.api.register("ada").await;
    stage.api.register("bob").await;
    for _ in 0..3 {
        assert_eq!(login(&stage, "ada", PASSWORD).await.0, 200);
    }
    problem(&login(&stage, "Ada", "no").await, 401);
    // Right or wrong, which of the two it is is not told.
    for password in [PASSWORD, "no"] {
        let refused = login(&stage, "ada", password).await;
        assert!((890..=900).contains(&seconds(&refused)), "{refused:?}");
    }
    assert_eq!(login(&stage, "bob", PASSWORD).await.0, 200, "another account is another count");
    assert_eq!(stage.redis.cli(&["KEYS", "presence:limit:login:total:name-*"]).lines().count(), 2);
}

#[tokio::test]
async fn registrations_and_refreshes_are_limited_each_by_itself() {
    let figures = "login:address=off,register:address=1/1h,refresh:address=4/1h,refresh:account=2/1h";
    let stage = Stage::with(Engine::Sqlite, limits(figures)).await;
    stage.api.register("ada").await;
    let body = json!({"username": "bob", "email": "bob@example.org", "password": PASSWORD});
    seconds(&stage.api.post("register/", None, &body).await);

    let refresh =
        async |token: &str| stage.api.post("token/refresh/", None, &json!({"refresh": token})).await;
    let mut token = stage.api.login("ada").await.refresh;
    let other = stage.api.login_with("admin", PASSWORD).await.refresh;
    for _ in 0..2 {
        let (status, body, _) = refresh(&token).await;
        assert_eq!(status, 200, "{body}");
        token = super::text(&body["refresh"]);
    }
    seconds(&refresh(&token).await);
    assert_eq!(refresh(&other).await.0, 200, "another account is another count");
    seconds(&refresh(&other).await);
    // What was refused was not spent.
    stage.redis.cli(&["DEL", "presence:limit:refresh:address:127.0.0.1"]);
    let id = super::claims(&token)["user_id"].clone();
    stage.redis.cli(&["DEL", &format!("presence:limit:refresh:account:{id}")]);
    assert_eq!(refresh(&token).await.0, 200);
}

#[tokio::test]
async fn instances_share_their_counts_and_the_default_is_generous_to_an_office() {
    let stage = Stage::with(Engine::Sqlite, limits("on")).await;
    let (_other, other) = stage.another(limits("on")).await;
    stage.api.register("ada").await;
    let body = json!({"username": "ada", "password": "no"});
    let mut refused = 0;
    for index in 0..14 {
        let api = if index % 2 == 0 { &stage.api } else { &other };
        refused += u32::from(api.post("login/", None, &body).await.0 == 429);
    }
    // One is given back every 6 s, by which a slow machine may get some more.
    assert!((1..=4).contains(&refused), "{refused}");
    let tokens = super::access(2);
    for _ in 0..100 {
        assert_eq!(stage.api.heartbeat(&tokens).await.0, 200, "heartbeats are not limited");
    }
}

/// Redis dead, hung, and back: nobody waits for it, and nobody is locked out or let in without end.
#[tokio::test]
async fn without_redis_the_process_counts_by_itself_and_nobody_waits() {
    let mut stage =
        Stage::with(Engine::Sqlite, limits("login:account=off,refresh:account=3/1h,register:address=4/1h"))
            .await;
    let tokens = stage.join("ada").await;
    let mut token = tokens.refresh;
    let refresh = async |stage: &Stage, token: &mut String| {
        let began = Instant::now();
        let answer = stage.api.post("token/refresh/", None, &json!({"refresh": *token})).await;
        if let Value::String(next) = &answer.1["refresh"] {
            *token = next.clone();
        }
        (answer, began.elapsed())
    };
    stage.redis.pause();
    for _ in 0..3 {
        let ((status, body, _), took) = refresh(&stage, &mut token).await;
        assert_eq!(status, 200, "{body}");
        assert!(took < Duration::from_secs(2), "{took:?}");
    }
    seconds(&refresh(&stage, &mut token).await.0);
    stage.redis.resume();
    stage.redis.kill().await;
    let (refused, took) = refresh(&stage, &mut token).await;
    seconds(&refused);
    assert!(took < Duration::from_millis(500), "{took:?}");
    stage.api.register("bob").await;
    stage.redis.restart().await;
    // Shared counts again: there are none in this Redis.
    eventually(Duration::from_secs(20), async || {
        let ((status, body, _), _) = refresh(&stage, &mut token).await;
        if status == 200 { Ok(()) } else { Err(body) }
    })
    .await;
}

/// Each client behind a trusted proxy has a count of its own, and nobody chooses his by a header.
#[tokio::test]
async fn clients_behind_a_trusted_proxy_are_counted_apart() {
    let mut options = limits("login:address=2/1h");
    options.env.push(("PRESENCE_TRUSTED_PROXIES".to_owned(), "127.0.0.1".to_owned()));
    let stage = Stage::with(Engine::Sqlite, options).await;
    let attempt = async |forwarded: &str| {
        let request =
            stage.api.request(reqwest::Method::POST, "login/", None).header("x-forwarded-for", forwarded);
        crate::support::http::send(request.json(&json!({"username": "nobody", "password": "no"}))).await
    };
    for client in ["192.0.2.1", "192.0.2.2", "2001:db8:1:2::1"] {
        for _ in 0..2 {
            problem(&attempt(client).await, 401);
        }
        seconds(&attempt(client).await);
        // What a client writes before the proxy's own word does not count.
        seconds(&attempt(&format!("198.51.100.9, {client}")).await);
    }
    seconds(&attempt("2001:db8:1:2:ffff::9").await);
    problem(&attempt("2001:db8:1:3::1").await, 401);
}
