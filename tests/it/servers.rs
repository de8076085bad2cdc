//! The test support itself: the servers start, obey, and are gone afterwards.

use std::time::Duration;

use sqlx::{Connection, PgConnection, PgPool, Row};

use crate::support::{
    poll::eventually,
    postgres::{Postgres, PrivatePostgres},
    redis::RedisServer,
    tether,
};

/// For what takes milliseconds.
const SOON: Duration = Duration::from_secs(20);

/// Long enough to see that nobody answers.
const SILENCE: Duration = Duration::from_millis(300);

#[tokio::test]
async fn a_redis_server_answers_and_ends_with_its_value() {
    let redis = RedisServer::start(&[]).await;
    assert_eq!(redis.cli(&["PING"]), "PONG");
    assert_eq!(redis.cli(&["CONFIG", "GET", "appendonly"]), "appendonly\nno");
    let pid = redis.pid();
    assert!(tether::is_alive(pid));
    drop(redis);
    assert!(!tether::is_alive(pid));
}

#[tokio::test]
async fn a_paused_redis_server_is_silent_until_it_is_resumed() {
    let redis = RedisServer::start(&[]).await;
    redis.pause();
    let late = tokio::process::Command::new("redis-cli")
        .args(["-p", &redis.port().to_string(), "PING"])
        .kill_on_drop(true)
        .output();
    assert!(tokio::time::timeout(SILENCE, late).await.is_err(), "a paused server has answered");
    redis.resume();
    assert_eq!(redis.cli(&["PING"]), "PONG");
}

#[tokio::test]
async fn a_killed_redis_server_comes_back_on_its_port_without_its_data() {
    let mut redis = RedisServer::start(&[]).await;
    redis.cli(&["SET", "key", "value"]);
    let (port, pid) = (redis.port(), redis.pid());
    redis.kill().await;
    assert!(redis.cli(&["PING"]).contains("Connection refused"));
    redis.restart().await;
    assert_eq!(redis.port(), port);
    assert_ne!(redis.pid(), pid);
    assert_eq!(redis.cli(&["GET", "key"]), "");
}

#[tokio::test]
async fn a_redis_server_with_a_log_keeps_its_data_until_the_disk_is_lost() {
    let mut redis = RedisServer::start(&["--appendonly", "yes", "--appendfsync", "always"]).await;
    redis.cli(&["SET", "key", "value"]);
    redis.kill().await;
    redis.restart().await;
    assert_eq!(redis.cli(&["GET", "key"]), "value");
    redis.restart_empty().await;
    assert_eq!(redis.cli(&["GET", "key"]), "");
}

#[tokio::test]
async fn two_databases_know_nothing_of_each_other() {
    let (one, two) = tokio::join!(Postgres::database(), Postgres::database());
    assert_ne!(one.url, two.url);
    for database in [&one, &two] {
        let pool = PgPool::connect(&database.url).await.unwrap();
        sqlx::raw_sql("CREATE TABLE things (name text)").execute(&pool).await.unwrap();
        let tables = sqlx::query("SELECT count(*) FROM things").fetch_one(&pool).await.unwrap();
        assert_eq!(tables.get::<i64, _>(0), 0);
    }
}

#[tokio::test]
async fn the_case_of_letters_beyond_ascii_is_known() {
    let database = Postgres::database().await;
    let mut connection = PgConnection::connect(&database.url).await.unwrap();
    let row = sqlx::query("SELECT lower('ÄÉ')").fetch_one(&mut connection).await.unwrap();
    assert_eq!(row.get::<String, _>(0), "äé");
}

#[tokio::test]
async fn a_database_is_dropped_with_its_value() {
    let database = Postgres::database().await;
    let pool = PgPool::connect(&database.url).await.unwrap();
    let url = database.url.clone();
    drop(database);
    assert!(sqlx::query("SELECT 1").execute(&pool).await.is_err(), "the open connection still works");
    assert!(PgConnection::connect(&url).await.is_err());
}

#[tokio::test]
async fn a_private_postgres_obeys() {
    let mut postgres = PrivatePostgres::start().await;
    let database = postgres.database().await;
    let mut connection = PgConnection::connect(&database.url).await.unwrap();
    sqlx::raw_sql("CREATE TABLE things (name text)").execute(&mut connection).await.unwrap();

    postgres.pause();
    let late = sqlx::raw_sql("SELECT 1").execute(&mut connection);
    assert!(tokio::time::timeout(SILENCE, late).await.is_err(), "a paused backend has answered");
    postgres.resume();
    eventually(SOON, async || PgConnection::connect(&database.url).await.map(drop)).await;

    // A restart keeps the port and what was written; the connections of the life before are gone.
    let pid = postgres.pid();
    postgres.restart().await;
    assert!(!tether::is_alive(pid));
    let mut connection = PgConnection::connect(&database.url).await.unwrap();
    sqlx::raw_sql("SELECT * FROM things").execute(&mut connection).await.unwrap();

    postgres.kill().await;
    assert!(PgConnection::connect(&database.url).await.is_err());
    postgres.restart().await;
    let mut connection = PgConnection::connect(&database.url).await.unwrap();
    sqlx::raw_sql("SELECT * FROM things").execute(&mut connection).await.unwrap();

    let pid = postgres.pid();
    postgres.pause();
    drop(postgres);
    assert!(!tether::is_alive(pid), "a server that was paused has outlived its value");
}
