//! Other applications on the same database: rows that they hold, rows that they save, triggers that they switch off.

use std::time::Duration;

use sqlx::{AssertSqlSafe, Connection, PgConnection};
use tokio::time::Instant;

use super::{Database, Scene, assert_alternates};
use crate::support::mint::access_token;
use crate::support::poll::eventually;

/// What must be so within a few seconds.
const SOON: Duration = Duration::from_secs(5);
const STREAM: &str = "presence:{0}:transitions";

async fn holds(scene: &Scene, condition: &str) -> PgConnection {
    let mut other = PgConnection::connect(&scene.database_url()).await.unwrap();
    let script = format!("BEGIN; UPDATE users SET email = email WHERE {condition}");
    sqlx::raw_sql(AssertSqlSafe(script)).execute(&mut other).await.unwrap();
    other
}

async fn beat(scene: &Scene, user: i64) {
    assert_eq!(scene.api.heartbeat(&access_token(user, "phone")).await.0, 200, "user {user}");
}

fn waiting(scene: &Scene) -> String {
    scene.redis.cli(&["XLEN", STREAM])
}

/// The user of each transition that SQL lacks. (After the start of a Redis the service appends the status
/// of present users once more, so that SQL can correct its copy.)
fn users_waiting(scene: &Scene) -> Vec<String> {
    let entries = scene.redis.cli(&["XRANGE", STREAM, "-", "+"]);
    let lines: Vec<&str> = entries.lines().collect();
    lines.windows(2).filter(|pair| pair[0] == "user").map(|pair| pair[1].to_owned()).collect()
}

async fn is_recorded(scene: &Scene, user: i64, rows: usize) {
    eventually(SOON, async || {
        let history = scene.history(user).await;
        if history.len() >= rows { Ok(()) } else { Err((user, history)) }
    })
    .await;
}

#[tokio::test]
async fn a_row_that_another_application_holds_delays_no_other_user() {
    let scene = Scene::start(Database::Postgres, 20, Duration::from_secs(2), &[]).await;
    let other = holds(&scene, "id = 2").await;
    beat(&scene, 2).await;
    // Comings and goings of the others while the row is held; the user who waits comes and goes, too.
    for user in 3..=8 {
        beat(&scene, user).await;
        is_recorded(&scene, user, 1).await;
    }
    for user in 3..=8 {
        is_recorded(&scene, user, 2).await;
    }
    beat(&scene, 2).await;
    let commands = || -> f64 {
        let info = scene.redis.cli(&["INFO", "stats"]);
        let line =
            info.lines().find(|line| line.starts_with("total_commands_processed:")).unwrap().to_owned();
        line.split(':').nth(1).unwrap().trim().parse().unwrap()
    };
    let (before, began) = (commands(), Instant::now());
    for user in 9..=12 {
        beat(&scene, user).await;
        is_recorded(&scene, user, 1).await;
    }
    eventually(SOON, async || if began.elapsed() > Duration::from_secs(3) { Ok(()) } else { Err(()) }).await;
    let a_second = (commands() - before) / began.elapsed().as_secs_f64();
    assert!(a_second < 400.0, "{a_second} commands a second while one row is held");
    assert!(scene.history(2).await.is_empty());
    eventually(SOON, async || {
        let waits = users_waiting(&scene);
        if waits.len() >= 3 && waits.iter().all(|user| user == "2") { Ok(()) } else { Err(waits) }
    })
    .await;
    assert!(scene.service.stderr().contains("another transaction in the database holds rows"));
    other.close().await.unwrap();
    let freed = Instant::now();
    eventually(SOON, async || {
        let left = waiting(&scene);
        if left == "0" { Ok(()) } else { Err(left) }
    })
    .await;
    assert!(freed.elapsed() < Duration::from_secs(3), "{:?}", freed.elapsed());
    is_recorded(&scene, 2, 3).await;
    assert_alternates(&scene.histories().await);
}

/// More transitions wait than a batch holds, and new ones get past them.
#[tokio::test]
async fn thousands_of_transitions_that_wait_keep_no_new_one_waiting() {
    const CROWD: i64 = 9_000;
    let scene = Scene::start(Database::Postgres, CROWD + 100, Duration::from_mins(5), &[]).await;
    let crowd = holds(&scene, &format!("id BETWEEN 2 AND {}", CROWD + 1)).await;
    let script = "for user = 2, tonumber(ARGV[1]) do redis.call('XADD', KEYS[1], '*', 'user', user, 'to', 'online', \
                  'reason', 'login', 'at', 1768473000120, 'seen', 1768473000120) end return 'done'";
    assert_eq!(scene.redis.cli(&["EVAL", script, "1", STREAM, &(CROWD + 1).to_string()]), "done");
    let single = holds(&scene, &format!("id = {}", CROWD + 2)).await;
    beat(&scene, CROWD + 2).await;
    for user in CROWD + 3..CROWD + 20 {
        let began = Instant::now();
        beat(&scene, user).await;
        is_recorded(&scene, user, 1).await;
        assert!(began.elapsed() < Duration::from_secs(3), "user {user}: {:?}", began.elapsed());
    }
    single.close().await.unwrap();
    is_recorded(&scene, CROWD + 2, 1).await;
    crowd.close().await.unwrap();
    eventually(Duration::from_secs(30), async || {
        let left = waiting(&scene);
        if left == "0" { Ok(()) } else { Err(left) }
    })
    .await;
    let rows =
        scene.sql.number("SELECT count(*)::text FROM presence_transitions WHERE reason = 'login'").await;
    assert_eq!(rows, CROWD);
    assert_alternates(&scene.histories().await);
}

#[tokio::test]
async fn a_service_that_stops_while_a_row_is_held_leaves_the_rest_in_redis() {
    let mut scene = Scene::start(Database::Postgres, 10, Duration::from_mins(5), &[]).await;
    let other = holds(&scene, "id = 2").await;
    for user in 2..=5 {
        beat(&scene, user).await;
    }
    for user in 3..=5 {
        is_recorded(&scene, user, 1).await;
    }
    let began = Instant::now();
    scene.service.terminate().await;
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    let waits = users_waiting(&scene);
    assert!(!waits.is_empty() && waits.iter().all(|user| user == "2"), "{waits:?}");
    other.close().await.unwrap();
    scene.service = scene.start_another(Duration::from_mins(5)).await;
    is_recorded(&scene, 2, 1).await;
}

/// An ORM saves the row as it read it, status columns and all, at every step of a user's presence.
async fn stale_saves(database: Database) {
    let scene =
        Scene::start(database, 5, Duration::from_secs(2), &[("PRESENCE_LAST_SEEN_FLUSH", "1s")]).await;
    let save = async |status: &str, seen: &str| {
        let change = format!(
            "UPDATE users SET email = 'x' || id, online_status = '{status}', last_seen = {seen} WHERE id = 2"
        );
        assert_eq!(scene.sql.run(&change).await, 1);
    };
    let is = async |status: &str| {
        eventually(SOON, async || {
            let found = scene.status_in_sql(2).await;
            if found == status { Ok(()) } else { Err(found) }
        })
        .await;
    };
    for round in 1..=2 {
        beat(&scene, 2).await;
        is("online").await;
        save("offline", "NULL").await;
        is("online").await;
        beat(&scene, 2).await;
        is_recorded(&scene, 2, round * 2).await;
        is("offline").await;
        save("online", "'2036-01-15T10:30:00.120Z'").await;
        is("offline").await;
    }
    let history: Vec<String> = scene.history(2).await.iter().map(|row| row[..3].join(" ")).collect();
    let once = ["offline online heartbeat", "online offline expired"];
    assert_eq!(history, [once, once].concat(), "each coming and going once");
    let future = scene
        .sql
        .rows("SELECT CAST(id AS text) FROM users WHERE last_seen > '2036-01-01T00:00:00.000Z'")
        .await;
    assert!(future.is_empty());
}

#[tokio::test]
async fn stale_saves_of_whole_rows_change_no_presence_on_sqlite() {
    stale_saves(Database::Sqlite).await;
}

#[tokio::test]
async fn stale_saves_of_whole_rows_change_no_presence_on_postgres() {
    stale_saves(Database::Postgres).await;
}

/// What no trigger has seen is found by comparison.
async fn bypassed(database: Database) {
    let scene = Scene::start(database, 5, Duration::from_mins(5), &[]).await;
    beat(&scene, 2).await;
    is_recorded(&scene, 2, 1).await;
    let bypass = "UPDATE users SET presence_writes = presence_writes + 1, online_status =";
    scene.sql.run(&format!("{bypass} 'away' WHERE id = 2")).await;
    scene.sql.run(&format!("{bypass} 'online' WHERE id = 3")).await;
    eventually(SOON, async || {
        let found = (scene.status_in_sql(2).await, scene.status_in_sql(3).await);
        if found == ("online".into(), "offline".into()) { Ok(()) } else { Err(found) }
    })
    .await;
}

#[tokio::test]
async fn a_copy_that_was_changed_past_the_triggers_is_right_again_within_seconds_on_sqlite() {
    bypassed(Database::Sqlite).await;
}

#[tokio::test]
async fn a_copy_that_was_changed_past_the_triggers_is_right_again_within_seconds_on_postgres() {
    bypassed(Database::Postgres).await;
    let scene = Scene::start(Database::Postgres, 5, Duration::from_mins(5), &[]).await;
    beat(&scene, 2).await;
    is_recorded(&scene, 2, 1).await;
    scene.sql.run("ALTER TABLE users DISABLE TRIGGER ALL").await;
    scene.sql.run("UPDATE users SET online_status = 'offline'").await;
    scene.sql.run("INSERT INTO users (id, username, email, password_hash) VALUES (900, 'x', 'x', 'x')").await;
    eventually(SOON, async || {
        let off = scene.sql.rows("SELECT trigger::text FROM presence_triggers_off()").await;
        let found = scene.status_in_sql(2).await;
        if off.is_empty() && found == "online" { Ok(()) } else { Err((off, found)) }
    })
    .await;
    scene.api.register("after").await;
    assert_eq!(scene.sql.number("SELECT id::text FROM users WHERE username = 'after'").await, 901);
}

#[tokio::test]
async fn a_ban_that_arrives_in_a_replica_session_takes_the_user_offline_on_postgres() {
    let scene = Scene::start(Database::Postgres, 5, Duration::from_mins(5), &[]).await;
    beat(&scene, 2).await;
    let mut replica = PgConnection::connect(&scene.database_url()).await.unwrap();
    let ban = "SET session_replication_role = replica; UPDATE users SET status = 'banned' WHERE id = 2";
    sqlx::raw_sql(ban).execute(&mut replica).await.unwrap();
    eventually(Duration::from_secs(2), async || {
        let status = scene.api.heartbeat(&access_token(2, "phone")).await.0;
        if [401, 403].contains(&status.as_u16()) { Ok(()) } else { Err(status) }
    })
    .await;
    is_recorded(&scene, 2, 2).await;
}

/// The accounts of the last hour are gone, and the sequence of ids is where it was an hour ago.
async fn ids_set_back(database: Database) {
    let scene = Scene::start(database, 5, Duration::from_mins(5), &[]).await;
    scene.api.register("newcomer").await;
    let id = scene.sql.number("SELECT CAST(id AS text) FROM users WHERE username = 'newcomer'").await;
    // Two looks of the upkeep.
    let begun = Instant::now();
    eventually(SOON, async || if begun.elapsed() > Duration::from_secs(3) { Ok(()) } else { Err(()) }).await;
    scene.sql.run("DELETE FROM users WHERE username = 'newcomer'").await;
    match database {
        Database::Sqlite => {
            scene.sql.run("UPDATE sqlite_sequence SET seq = 5 WHERE name = 'users'").await;
        }
        Database::Postgres => drop(scene.sql.rows("SELECT setval('users_id_seq', 5)::text").await),
    }
    eventually(
        SOON,
        async || {
            if scene.service.stderr().contains("raised past them") { Ok(()) } else { Err(()) }
        },
    )
    .await;
    scene.api.register("another").await;
    let next = scene.sql.number("SELECT CAST(id AS text) FROM users WHERE username = 'another'").await;
    assert!(next > id, "{next} is not given to two accounts");
}

#[tokio::test]
async fn no_id_is_given_twice_after_the_sequence_was_set_back_on_sqlite() {
    ids_set_back(Database::Sqlite).await;
}

#[tokio::test]
async fn no_id_is_given_twice_after_the_sequence_was_set_back_on_postgres() {
    ids_set_back(Database::Postgres).await;
}
