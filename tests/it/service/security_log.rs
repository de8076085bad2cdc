//! Who signed in, who failed to, and what administrators did: a line in the log, a number in the metrics.

use std::time::Duration;

use reqwest::Method;
use serde_json::{Value, json};

use super::{Database, Scene};
use crate::support::http::{Answer, PASSWORD, send};
use crate::support::metrics::Scrape;
use crate::support::mint::access_token;
use crate::support::poll::eventually;

const SOON: Duration = Duration::from_secs(10);
const TTL: Duration = Duration::from_mins(1);
const PROXY: (&str, &str) = ("PRESENCE_TRUSTED_PROXIES", "127.0.0.1");

/// A request that a proxy passes on for a client of this address.
async fn from(scene: &Scene, address: &str, method: Method, path: &str, token: &str, body: Value) -> Answer {
    let request = scene.api.request(method, path, Some(token).filter(|token| !token.is_empty()));
    send(request.header("x-forwarded-for", address).json(&body)).await
}

async fn log_in(scene: &Scene, address: &str, name: &str, password: &str) -> Answer {
    from(scene, address, Method::POST, "login/", "", json!({"username": name, "password": password})).await
}

/// The lines of the log that hold all of these.
fn lines(scene: &Scene, parts: &[&str]) -> Vec<String> {
    let log = scene.service.stderr();
    let holds = |line: &&str| parts.iter().all(|part| line.contains(part));
    log.lines().filter(holds).map(str::to_owned).collect()
}

/// Waits until that many lines hold all of these.
async fn logged(scene: &Scene, count: usize, parts: &[&str]) {
    eventually(SOON, async || {
        let found = lines(scene, parts);
        if found.len() == count { Ok(()) } else { Err((found, scene.service.stderr())) }
    })
    .await;
}

/// Counts are whole numbers, and compared as such.
#[allow(clippy::cast_possible_truncation)]
async fn count(scene: &Scene, series: &str) -> i64 {
    Scrape::of(&scene.api).await.value(series) as i64
}

#[tokio::test]
async fn every_login_leaves_a_line_and_a_number_and_nothing_that_was_typed() {
    let limits = ("PRESENCE_RATE_LIMITS", "login:account=2/1h,register:address=1/1h");
    let scene = Scene::start(Database::Sqlite, 3, TTL, &[PROXY, limits]).await;
    let register = json!({"username": "ada", "email": "ada@example.org", "password": PASSWORD});
    assert_eq!(from(&scene, "203.0.113.1", Method::POST, "register/", "", register.clone()).await.0, 201);
    assert_eq!(from(&scene, "203.0.113.1", Method::POST, "register/", "", register).await.0, 429);
    let (status, body, _) = log_in(&scene, "203.0.113.2", "ada", PASSWORD).await;
    assert_eq!(status, 200, "{body}");
    let (access, refresh) = (body["access"].as_str().unwrap(), body["refresh"].as_str().unwrap());
    assert_eq!(log_in(&scene, "203.0.113.3", "ada", "wrong password").await.0, 401);
    assert_eq!(log_in(&scene, "203.0.113.4", "my secret passphrase", "ada").await.0, 401);
    assert_eq!(log_in(&scene, "203.0.113.5", "Ada", "wrong password").await.0, 401);
    assert_eq!(log_in(&scene, "203.0.113.6", "ADA", "wrong password").await.0, 429);
    let body = json!({"refresh": refresh});
    assert_eq!(
        from(&scene, "203.0.113.7", Method::POST, "logout/", access, json!({"refresh": "x"})).await.0,
        400
    );
    assert_eq!(from(&scene, "203.0.113.8", Method::POST, "logout/", access, body).await.0, 200);
    for (count, parts) in [
        (1, [" INFO registration ", "user=4", "203.0.113.1"]),
        (1, [" WARN registration failed ", "rate_limited", "203.0.113.1"]),
        (1, [" INFO login ", "user=4", "203.0.113.2"]),
        (1, [" WARN login failed ", "\"wrong_credentials\" user=4", "203.0.113.3"]),
        (1, [" WARN login failed ", "\"wrong_credentials\" address=", "203.0.113.4"]),
        (1, [" WARN login failed ", "\"wrong_credentials\" user=4", "203.0.113.5"]),
        (1, [" WARN login failed ", "\"rate_limited\" address=", "203.0.113.6"]),
        (1, [" WARN logout failed ", "user=4", "203.0.113.7"]),
        (1, [" INFO logout ", "user=4", "203.0.113.8"]),
    ] {
        logged(&scene, count, &parts).await;
    }
    for (outcome, expected) in [("ok", 1), ("wrong_credentials", 3), ("rate_limited", 1), ("blocked", 0)] {
        assert_eq!(count(&scene, &format!("presence_logins_total{{outcome=\"{outcome}\"}}")).await, expected);
    }
    let log = scene.service.stderr();
    for typed in ["secret", "passphrase", "wrong password", "ada", "ADA", "example.org", PASSWORD] {
        assert!(!log.contains(typed), "{typed} is in the log: {log}");
    }
}

#[tokio::test]
async fn blocked_accounts_reused_tokens_and_a_redis_that_is_away_are_told_apart() {
    let scene = Scene::start(Database::Sqlite, 1, TTL, &[PROXY, ("PRESENCE_REFRESH_GRACE", "0s")]).await;
    scene.api.register("ada").await;
    let tokens = scene.api.login("ada").await;
    let refresh = async |address| {
        let body = json!({"refresh": tokens.refresh});
        from(&scene, address, Method::POST, "token/refresh/", "", body).await.0.as_u16()
    };
    assert_eq!([refresh("203.0.113.1").await, refresh("203.0.113.2").await], [200, 401]);
    logged(&scene, 1, &[" WARN a refresh token was used twice", "user=2", "203.0.113.2"]).await;
    assert_eq!(count(&scene, "presence_refresh_tokens_reused_total").await, 1);
    scene.sql.run("UPDATE users SET status = 'banned' WHERE id = 2").await;
    assert_eq!(log_in(&scene, "203.0.113.3", "ada", PASSWORD).await.0, 403);
    logged(&scene, 1, &[" WARN login failed ", "\"blocked\" user=2", "203.0.113.3"]).await;
    scene.sql.run("UPDATE users SET status = 'active' WHERE id = 2").await;
    scene.redis.pause();
    assert_eq!(log_in(&scene, "203.0.113.4", "ada", PASSWORD).await.0, 503);
    logged(&scene, 1, &[" WARN login failed ", "\"unavailable\" user=2", "203.0.113.4"]).await;
    scene.redis.resume();
}

#[tokio::test]
async fn a_flood_of_failed_logins_does_not_flood_the_log() {
    const FLOOD: usize = 400;
    // The limit refuses a login before its password is hashed, so that the flood is fast.
    let limits = ("PRESENCE_RATE_LIMITS", "login:address=1/1h");
    let scene = Scene::start(Database::Sqlite, 1, TTL, &[limits]).await;
    let begun = tokio::time::Instant::now();
    let body = json!({"username": "nobody", "password": "wrong password"});
    for _ in 0..FLOOD / 20 {
        let tries = (0..20).map(|_| scene.api.post("login/", None, &body));
        for (status, body, _) in futures_util::future::join_all(tries).await {
            assert!(status == 401 || status == 429, "{body}");
        }
    }
    let seconds = usize::try_from(begun.elapsed().as_secs()).unwrap() + 1;
    let series =
        ["wrong_credentials", "rate_limited"].map(|it| format!("presence_logins_total{{outcome=\"{it}\"}}"));
    let counted = count(&scene, &series[0]).await + count(&scene, &series[1]).await;
    assert_eq!(usize::try_from(counted).unwrap(), FLOOD, "the metrics count all");
    // All are in a line of their own, or in the number of those that were left out.
    eventually(SOON, async || {
        let written = lines(&scene, &["login failed"]).len();
        let summaries = lines(&scene, &["left_out="]);
        let number = |line: &String| line.split("left_out=").nth(1)?.split(' ').next()?.parse::<usize>().ok();
        let left_out: usize = summaries.iter().filter_map(number).sum();
        if written + left_out == FLOOD { Ok((written, summaries)) } else { Err((written, summaries)) }
    })
    .await;
    let written = lines(&scene, &["login failed"]).len();
    assert!(written <= 10 * (seconds + 1), "{written} lines in {seconds} s");
    // What succeeds is logged all the same.
    assert!(lines(&scene, &["left_out="]).len() <= seconds + 1);
}

#[tokio::test]
async fn everything_that_an_administrator_changes_leaves_a_line_whatever_comes_of_it() {
    let scene = Scene::start(Database::Sqlite, 9, TTL, &[PROXY]).await;
    let (admin, user) = (access_token(1, "office"), access_token(2, "phone"));
    let new = json!({"username": "new", "email": "new@example.org", "password": PASSWORD});
    for (number, (method, path, body, status, line)) in [
        (Method::POST, "users/", new.clone(), 201, "\"create_user\" admin=1 "),
        (Method::POST, "users/", new, 409, "\"create_user\" caller=1 "),
        (Method::PATCH, "users/3/", json!({"status": "banned"}), 200, "\"update_user\" admin=1 user=3 "),
        (Method::PATCH, "users/77/", json!({"status": "banned"}), 404, "\"update_user\" caller=1 user=77 "),
        (
            Method::POST,
            "users/4/set-online-status/",
            json!({"status": "away"}),
            200,
            "\"set_online_status\" admin=1 user=4 ",
        ),
        (Method::DELETE, "users/5/sessions/", Value::Null, 204, "\"end_sessions\" admin=1 user=5 "),
        (Method::DELETE, "users/6/", Value::Null, 204, "\"delete_user\" admin=1 user=6 "),
    ]
    .into_iter()
    .enumerate()
    {
        let address = format!("203.0.113.{}", number + 1);
        let answer = from(&scene, &address, method, &format!("admin/{path}"), &admin, body).await;
        assert_eq!(answer.0, status, "{path}: {}", answer.1);
        let (level, status) = (if status < 400 { " INFO " } else { " WARN " }, format!("status={status}"));
        logged(&scene, 1, &[level, "administration", line, &address, &status]).await;
    }
    // A caller who is no administrator is logged, whatever the path; other reads are not.
    for (method, path) in [(Method::GET, "users/"), (Method::GET, "users/1/"), (Method::DELETE, "users/1/")] {
        assert_eq!(
            from(&scene, "203.0.113.99", method, &format!("admin/{path}"), &user, Value::Null).await.0,
            403
        );
    }
    assert_eq!(
        from(&scene, "203.0.113.98", Method::DELETE, "admin/users/1/", "x.y.z", Value::Null).await.0,
        401
    );
    assert_eq!(from(&scene, "203.0.113.97", Method::GET, "admin/users/", &admin, Value::Null).await.0, 200);
    logged(&scene, 3, &[" WARN administration refused", "caller=2", "203.0.113.99", "status=403"]).await;
    logged(&scene, 1, &[" WARN administration refused", "203.0.113.98", "status=401"]).await;
    assert!(lines(&scene, &["203.0.113.97"]).is_empty());
    for (action, expected) in [
        ("create_user", 1),
        ("update_user", 1),
        ("delete_user", 1),
        ("set_online_status", 1),
        ("end_sessions", 1),
        ("other", 0),
        ("refused", 3),
    ] {
        let series = format!("presence_admin_actions_total{{action=\"{action}\"}}");
        assert_eq!(count(&scene, &series).await, expected, "{action}");
    }
}

/// What is carried to its end is logged, though the client has hung up.
#[tokio::test]
async fn a_client_that_hangs_up_hides_nothing() {
    let scene = Scene::start(Database::Sqlite, 40, TTL, &[]).await;
    let admin = access_token(1, "office");
    for user in 2..=40 {
        let path = format!("admin/users/{user}/");
        let edit = json!({"status": "suspended"});
        let asked = scene.api.patch(&path, Some(&admin), &edit);
        let _ = tokio::time::timeout(Duration::from_millis(user % 12), asked).await;
    }
    eventually(SOON, async || {
        let done =
            scene.sql.number("SELECT CAST(count(*) AS text) FROM users WHERE status = 'suspended'").await;
        let logged = lines(&scene, &["administration", "update_user", "status=200"]).len();
        if i64::try_from(logged).unwrap() == done && done > 0 { Ok(()) } else { Err((done, logged)) }
    })
    .await;
}
