//! What one user may cost others: requests at once, and searches at once.

use std::time::{Duration, Instant};

use serde_json::json;
use tokio::task::JoinSet;

use super::{Database, Scene};
use crate::support::http::PASSWORD;
use crate::support::mint::access_token;
use crate::support::poll::eventually;

const TTL: Duration = Duration::from_mins(1);

#[tokio::test]
async fn one_user_has_so_many_requests_at_once_and_heartbeats_besides() {
    let scene = Scene::start(Database::Sqlite, 3, TTL, &[("PRESENCE_MAX_REQUESTS_PER_USER", "8")]).await;
    let (eve, ada) = (access_token(2, "laptop"), access_token(3, "phone"));
    for token in [&eve, &ada] {
        assert_eq!(scene.api.heartbeat(token).await.0, 200);
    }
    // Nothing is answered while Redis hangs, so all are under way at once.
    scene.redis.pause();
    let mut asked = JoinSet::new();
    for number in 0..24 {
        let (api, eve) = (scene.api.clone(), eve.clone());
        // Sessions of the same user, paths of all kinds.
        let path = ["me/", "all-users/", "me/sessions/", "admin/users/"][number % 4];
        asked.spawn(async move { api.get(path, Some(&eve)).await });
    }
    let mut refused = 0;
    while refused < 16 {
        let (status, body, headers) = asked.join_next().await.expect("sixteen are refused").unwrap();
        assert_eq!(status, 429, "{body}");
        assert_eq!(headers["retry-after"], "1");
        refused += 1;
    }
    // Others are let in, and a heartbeat is none of those.
    let (others, beat) = tokio::join!(scene.api.get("me/", Some(&ada)), scene.api.heartbeat(&eve));
    assert!(others.0 != 429 && beat.0 != 429, "{others:?} {beat:?}");
    scene.redis.resume();
    while let Some(answer) = asked.join_next().await {
        let (status, body, _) = answer.unwrap();
        assert_ne!(status, 429, "the first eight are answered: {body}");
    }
    eventually(Duration::from_secs(10), async || {
        let (status, body, _) = scene.api.get("me/", Some(&eve)).await;
        if status == 200 { Ok(()) } else { Err(body) }
    })
    .await;
    // Clients that hang up give their places back.
    scene.redis.pause();
    for _ in 0..3 {
        let asked = (0..8).map(|_| scene.api.get("me/", Some(&eve)));
        let asked = futures_util::future::join_all(asked);
        assert!(tokio::time::timeout(Duration::from_millis(100), asked).await.is_err());
    }
    scene.redis.resume();
    eventually(Duration::from_secs(10), async || {
        let asked = futures_util::future::join_all((0..8).map(|_| scene.api.get("me/", Some(&eve)))).await;
        if asked.iter().all(|(status, ..)| *status == 200) { Ok(()) } else { Err(asked) }
    })
    .await;
}

/// One user searches for something else all the time, on 64 connections.
async fn searches(database: Database) {
    const SEEKERS: usize = 64;
    let scene = Scene::start(database, 60_000, TTL, &[]).await;
    if database == Database::Postgres {
        scene.sql.run("ALTER TABLE users ALTER COLUMN id RESTART WITH 100000").await;
    }
    scene.api.register("ada").await;
    let tokens = scene.api.login("ada").await;
    let eve = access_token(2, "laptop");
    let mut seekers = JoinSet::new();
    for seeker in 0..SEEKERS {
        let (api, eve) = (scene.api.clone(), eve.clone());
        seekers.spawn(async move {
            let (mut found, mut refused) = (0, 0);
            let until = Instant::now() + Duration::from_secs(6);
            for number in 0.. {
                if Instant::now() > until {
                    break;
                }
                let path = format!("all-users/?per_page=1&search={seeker}x{number}");
                match api.get(&path, Some(&eve)).await.0.as_u16() {
                    200 => found += 1,
                    // Too many of the user's own; or the one before takes too long on a machine that is busy.
                    429 | 503 => refused += 1,
                    other => panic!("{path}: {other}"),
                }
            }
            (found, refused)
        });
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    for _ in 0..5 {
        let (status, body, _) =
            scene.api.post("login/", None, &json!({"username": "ada", "password": PASSWORD})).await;
        assert_eq!(status, 200, "a login meanwhile: {body}");
    }
    // Another user's search has its turn.
    let (status, body, _) = scene.api.get("all-users/?search=ada", Some(&tokens.access)).await;
    assert_eq!((status.as_u16(), &body["pagination"]["total"]), (200, &json!(1)), "{body}");
    // Many who ask for the same share it, though they are one user on many devices.
    let same = (0..40).map(|_| scene.api.get("all-users/?search=ada&per_page=7", Some(&tokens.access)));
    for (status, body, _) in futures_util::future::join_all(same).await {
        assert_eq!((status.as_u16(), &body["pagination"]["total"]), (200, &json!(1)), "{body}");
    }
    // The account rule holds.
    let blocked = Instant::now();
    scene.sql.run("UPDATE users SET status = 'suspended' WHERE username = 'ada'").await;
    eventually(Duration::from_secs(5), async || {
        let (status, body, _) = scene.api.heartbeat(&tokens.access).await;
        if status == 403 { Ok(()) } else { Err(body) }
    })
    .await;
    let took = blocked.elapsed();
    let (mut found, mut refused) = (0, 0);
    while let Some(done) = seekers.join_next().await {
        let (one, other) = done.unwrap();
        (found, refused) = (found + one, refused + other);
    }
    println!("{found} searches, {refused} refused; a block took {took:?}");
    assert!(took < Duration::from_secs(1), "{took:?} to a block");
    assert!(found > 5, "the user's own searches go on, one at a time");
    assert!(refused > SEEKERS, "{refused} refused");
}

#[tokio::test]
async fn one_user_who_searches_without_end_makes_no_other_wait_on_sqlite() {
    searches(Database::Sqlite).await;
}

#[tokio::test]
async fn one_user_who_searches_without_end_makes_no_other_wait_on_postgres() {
    searches(Database::Postgres).await;
}

#[tokio::test]
async fn a_search_ends_in_the_database_when_its_client_hangs_up() {
    let scene = Scene::start(Database::Postgres, 2_000, TTL, &[]).await;
    let eve = access_token(2, "laptop");
    assert_eq!(scene.api.heartbeat(&eve).await.0, 200);
    // Every account that is found costs a while of computing.
    scene.sql.run("ALTER TABLE users RENAME TO all_users").await;
    scene
        .sql
        .run(
            "CREATE VIEW users AS SELECT u.* FROM all_users u WHERE \
             (SELECT count(*) FROM generate_series(1, 400000 + u.id % 2) AS n WHERE n <> u.id) > 0",
        )
        .await;
    let computing = async || {
        let active = "SELECT count(*)::text FROM pg_stat_activity WHERE state = 'active' \
                      AND query LIKE '%matching AS MATERIALIZED%' AND datname = current_database() AND pid <> pg_backend_pid()";
        scene.sql.number(active).await
    };
    let asked = scene.api.get("all-users/?search=u", Some(&eve));
    let hung_up = async {
        eventually(Duration::from_secs(2), async || match computing().await {
            0 => Err("it has not begun"),
            _ => Ok(()),
        })
        .await;
        Instant::now()
    };
    // The client goes away as soon as the database computes.
    let since = tokio::select! {
        since = hung_up => since,
        answer = asked => panic!("{answer:?}"),
    };
    eventually(Duration::from_secs(2), async || match computing().await {
        0 => Ok(()),
        still => Err(still),
    })
    .await;
    let took = since.elapsed();
    assert!(took < Duration::from_millis(1_500), "{took:?}: before the statement's own bound");
}
