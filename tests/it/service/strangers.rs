//! What nobody expects in Redis or SQL: it is counted and set aside, and blocks nothing.

use std::time::Duration;

use super::{Database, Scene};
use crate::support::mint::access_token;
use crate::support::poll::eventually;

async fn strangers(database: Database) {
    let scene = Scene::start(database, 10, Duration::from_secs(2), &[]).await;
    // A user id in the live set that nobody knows, one that is no id, and an entry that is no transition.
    scene.redis.cli(&["ZADD", "presence:{0}:live", "1000", "424242"]);
    scene.redis.cli(&["ZADD", "presence:{0}:live", "1000", "nobody"]);
    scene.redis.cli(&["XADD", "presence:{0}:transitions", "*", "what", "ever"]);
    // A well-signed token of an account that does not exist is taken without asking SQL; what follows is set aside.
    let (status, ..) = scene.api.heartbeat(&access_token(777, "phone")).await;
    assert!(status == 200 || status == 403, "{status}");
    // Someone real in the same batch.
    assert_eq!(scene.api.heartbeat(&access_token(2, "phone")).await.0, 200);
    eventually(Duration::from_secs(5), async || {
        let rows = scene.history(2).await;
        if rows.first().is_some_and(|row| row[1] == "online") { Ok(()) } else { Err(rows) }
    })
    .await;
    let unknown = eventually(Duration::from_secs(5), async || {
        let query = "SELECT DISTINCT CAST(user_id AS text) FROM presence_set_aside ORDER BY 1";
        let users = scene.sql.rows(query).await.concat();
        if users.len() == 2 { Ok(users) } else { Err(users) }
    })
    .await;
    assert_eq!(unknown, ["424242", "777"]);
    // They are fenced off: no account, no presence.
    eventually(Duration::from_secs(5), async || {
        let (status, body, _) = scene.api.heartbeat(&access_token(777, "phone")).await;
        let live = scene.redis.cli(&["ZRANGE", "presence:{0}:live", "0", "-1"]);
        let gone = !live.lines().any(|user| ["777", "424242", "nobody"].contains(&user));
        if status == 403 && gone { Ok(()) } else { Err((status, body, live)) }
    })
    .await;
    let log = scene.service.stderr();
    assert!(log.contains("users of whom SQL knows nothing"), "{log}");
    assert!(log.contains("entries that are no transitions"), "{log}");
    let pending = scene.redis.cli(&["XPENDING", "presence:{0}:transitions", "persist"]);
    assert!(pending.starts_with('0'), "{pending}");
    // An account that comes with that id may be present.
    scene.sql.seed(777, 1).await;
    eventually(Duration::from_secs(2), async || {
        let (status, body, _) = scene.api.heartbeat(&access_token(777, "phone")).await;
        if status == 200 { Ok(()) } else { Err(body) }
    })
    .await;
}

#[tokio::test]
async fn strangers_are_set_aside_on_sqlite() {
    strangers(Database::Sqlite).await;
}

#[tokio::test]
async fn strangers_are_set_aside_on_postgres() {
    strangers(Database::Postgres).await;
}

#[tokio::test]
async fn a_deleted_user_with_a_live_key_is_out_within_a_second() {
    let scene = Scene::start(Database::Postgres, 10, Duration::from_mins(1), &[]).await;
    let token = access_token(5, "phone");
    assert_eq!(scene.api.heartbeat(&token).await.0, 200);
    scene.sql.run("DELETE FROM users WHERE id = 5").await;
    eventually(Duration::from_secs(1), async || {
        let live = scene.redis.cli(&["EXISTS", "presence:{0}:user:5"]);
        let (status, ..) = scene.api.heartbeat(&token).await;
        if live == "0" && status == 403 { Ok(()) } else { Err((live, status)) }
    })
    .await;
    assert_eq!(scene.api.heartbeat(&access_token(6, "phone")).await.0, 200);
}
