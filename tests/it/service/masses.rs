//! Invariant 6 where very many change at once: blocks are told first, and the size of one account delays no other.

use std::time::Duration;

use tokio::time::Instant;

use super::{Database, Scene};
use crate::support::http::Api;
use crate::support::mint::access_token;
use crate::support::poll::eventually;

/// What the contract allows.
const WITHIN: Duration = Duration::from_secs(1);
const TTL: Duration = Duration::from_mins(2);
/// Users that are not among the many.
const OTHERS: i64 = 300;
const MANY: i64 = 90_000;
/// The first of the others that are blocked while the many are being told, one after the other.
const FIRST: i64 = 10;

/// Changes the account and returns how long it took from before the statement until every instance answers the token so.
async fn lag(scene: &Scene, apis: &[Api], user: i64, assignment: &str, sid: &str, expected: u16) -> Duration {
    let token = access_token(user, sid);
    let began = Instant::now();
    scene.sql.run(&format!("UPDATE users SET {assignment} WHERE id = {user}")).await;
    for api in apis {
        eventually(Duration::from_secs(30), async || {
            let (status, body, _) = api.heartbeat(&token).await;
            if status == expected { Ok(()) } else { Err((user, status, body)) }
        })
        .await;
    }
    began.elapsed()
}

async fn present(scene: &Scene, users: std::ops::Range<i64>, sid: &str) {
    for user in users {
        assert_eq!(scene.api.heartbeat(&access_token(user, sid)).await.0, 200);
    }
}

fn shown(what: &str, lags: &[Duration]) {
    let worst = lags.iter().max().expect("some blocks");
    println!("{what}: {} blocks, worst {worst:?}", lags.len());
    assert!(*worst < WITHIN, "{what}: {lags:?}");
}

/// Blocks one after the other for as long as `busy` says so, ten at least.
async fn block_meanwhile(scene: &Scene, apis: &[Api], mut busy: impl AsyncFnMut() -> bool) -> Vec<Duration> {
    let mut lags = Vec::new();
    for user in FIRST..FIRST + 100 {
        if !busy().await && lags.len() >= 10 {
            break;
        }
        lags.push(lag(scene, apis, user, "status = 'suspended'", "phone", 403).await);
    }
    lags
}

async fn many_accounts_at_once(database: Database, name: &str) {
    let scene = Scene::start(database, OTHERS + MANY, TTL, &[]).await;
    let another = scene.start_another(TTL).await;
    let apis = [scene.api.clone(), Api::new(another.base_url())];
    present(&scene, FIRST..FIRST + 100, "phone").await;
    present(&scene, OTHERS + 1..OTHERS + 20, "phone").await;
    // One member is the mark of a whole set.
    let blocked = || scene.redis.cli(&["SCARD", "presence:{0}:blocked"]).parse::<i64>().unwrap() - 1;

    scene.sql.run(&format!("UPDATE users SET status = 'banned' WHERE id > {OTHERS}")).await;
    let lags = block_meanwhile(&scene, &apis, async || blocked() < MANY).await;
    shown(&format!("{name}: while {MANY} are blocked by one statement"), &lags);
    eventually(Duration::from_secs(30), async || if blocked() >= MANY { Ok(()) } else { Err(blocked()) })
        .await;
    assert_eq!(scene.api.heartbeat(&access_token(OTHERS + 1, "phone")).await.0, 403);

    // And while they are let in again: nothing of that is urgent.
    let before = blocked();
    scene.sql.run(&format!("UPDATE users SET status = 'active' WHERE id > {OTHERS}")).await;
    scene.sql.run(&format!("UPDATE users SET status = 'active' WHERE id < {OTHERS}")).await;
    let mut lags = Vec::new();
    for user in FIRST + 100..FIRST + 110 {
        lags.push(lag(&scene, &apis, user, "status = 'suspended'", "phone", 403).await);
    }
    shown(&format!("{name}: while {before} are let in by one statement"), &lags);
    eventually(Duration::from_secs(30), async || if blocked() == 10 { Ok(()) } else { Err(blocked()) }).await;
}

#[tokio::test]
async fn a_block_waits_for_no_other_where_many_accounts_change_at_once_on_postgres() {
    Box::pin(many_accounts_at_once(Database::Postgres, "PostgreSQL")).await;
}

#[tokio::test]
async fn a_block_waits_for_no_other_where_many_accounts_change_at_once_on_sqlite() {
    Box::pin(many_accounts_at_once(Database::Sqlite, "SQLite")).await;
}

/// Sessions of one user, as a version without a bound has left them.
async fn with_sessions(scene: &Scene, database: Database, user: i64, count: i64) {
    let numbers = match database {
        Database::Postgres => format!("generate_series(1, {count}) AS n(n)"),
        Database::Sqlite => format!(
            "(WITH RECURSIVE n(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < {count}) SELECT n FROM n)"
        ),
    };
    let at = "'2026-01-15T10:30:00.000Z'";
    let insert = "INSERT INTO login_sessions (sid, user_id, created_at, last_used_at)";
    scene.sql.run(&format!("{insert} SELECT 'u{user}s' || n, {user}, {at}, {at} FROM {numbers}")).await;
}

async fn very_many_sessions(database: Database, name: &str) {
    const SESSIONS: i64 = 80_000;
    let scene = Scene::start(database, OTHERS, TTL, &[]).await;
    let another = scene.start_another(TTL).await;
    let apis = [scene.api.clone(), Api::new(another.base_url())];
    with_sessions(&scene, database, 2, SESSIONS).await;
    for user in 3..6 {
        with_sessions(&scene, database, user, 1).await;
        present(&scene, user..user + 1, &format!("u{user}s1")).await;
    }
    present(&scene, 2..3, "u2s77777").await;
    present(&scene, FIRST..FIRST + 100, "phone").await;
    let ended = || {
        let count = "local ended = 0 for _, session in ipairs(redis.call('ZRANGE', 'presence:{0}:ended', 0, -1)) do \
                     if session:find('^2:u2s') then ended = ended + 1 end end return ended";
        scene.redis.cli(&["EVAL", count, "0"]).parse::<i64>().unwrap()
    };

    let own = lag(&scene, &apis, 2, "status = 'banned'", "u2s77777", 403).await;
    println!("{name}: the block of the account itself: {own:?}");
    let began = Instant::now();
    let lags = block_meanwhile(&scene, &apis, async || ended() < SESSIONS).await;
    shown(&format!("{name}: while {SESSIONS} sessions of one account end"), &lags);
    // Nor does it hold up the ends of another account's sessions.
    for user in 3..6 {
        let lag = lag(&scene, &apis, user, "password_hash = 'x'", &format!("u{user}s1"), 401).await;
        assert!(lag < WITHIN, "{lag:?}");
    }
    // Let in again, its tokens from before are refused within a second or so.
    scene.sql.run("UPDATE users SET status = 'active' WHERE id = 2").await;
    eventually(Duration::from_mins(2), async || {
        let all = (
            ended(),
            scene.sql.number("SELECT CAST(count(*) AS text) FROM login_sessions WHERE end_untold").await,
        );
        if all == (SESSIONS, 0) { Ok(()) } else { Err(all) }
    })
    .await;
    println!("{name}: all of {SESSIONS} ends are told after {:?}", began.elapsed());
    eventually(WITHIN, async || {
        let (status, body, _) = scene.api.heartbeat(&access_token(2, "")).await;
        if status == 200 { Ok(()) } else { Err((status, body)) }
    })
    .await;
    assert_eq!(scene.api.heartbeat(&access_token(2, "u2s77777")).await.0, 401);
    let history = scene.history(2).await;
    assert_eq!(history[1][2], "blocked", "{history:?}");

    // And now that they are old, a block of that account is one like any other.
    scene.redis.cli(&[
        "EVAL",
        "for _, key in ipairs(redis.call('KEYS', 'presence:{0}:ended:*')) do redis.call('DEL', key) end",
        "0",
    ]);
    let own = lag(&scene, &apis, 2, "status = 'banned'", "", 403).await;
    shown(&format!("{name}: the block of an account with {SESSIONS} old sessions"), &[own]);
}

#[tokio::test]
async fn an_account_with_very_many_sessions_delays_no_block_on_postgres() {
    Box::pin(very_many_sessions(Database::Postgres, "PostgreSQL")).await;
}

#[tokio::test]
async fn an_account_with_very_many_sessions_delays_no_block_on_sqlite() {
    Box::pin(very_many_sessions(Database::Sqlite, "SQLite")).await;
}
