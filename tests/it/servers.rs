//! The test support itself: the servers start, obey, and are gone afterwards.

use std::time::Duration;

use sqlx::{Connection, PgConnection, PgPool, Row};

use crate::support::{
    poll::eventually,
    postgres::{Postgres, PrivatePostgres},
    process::{Presenced, PresencedOptions},
    redis::RedisServer,
    tether::{self, Start, Tether},
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

#[tokio::test]
async fn a_tethered_process_gives_its_exit_code_and_output() {
    let folder = tether::folder("plain");
    let start = |script: &str| {
        let command = ["sh", "-c", script].map(ToOwned::to_owned);
        let env = [("WORD".to_owned(), "hello".to_owned())];
        Tether::start(&Start {
            folder: folder.path(),
            signal: "KILL",
            user: None,
            env: &env,
            command: &command,
        })
    };
    let ended = start("echo $WORD; echo $$ >&2; exit 3");
    assert_eq!(ended.ended(SOON).await, 3);
    assert_eq!(
        (ended.read("stdout"), ended.read("stderr")),
        ("hello\n".into(), format!("{}\n", ended.pid()))
    );

    let obedient = start("trap 'exit 7' TERM; echo ready; while :; do sleep 0.01; done");
    eventually(SOON, async || if obedient.read("stdout") == "ready\n" { Ok(()) } else { Err(()) }).await;
    assert_eq!(obedient.exit_code(), None);
    obedient.signal("TERM");
    assert_eq!(obedient.ended(SOON).await, 7);

    let stubborn = start("exec sleep 600");
    stubborn.signal("KILL");
    assert_eq!(stubborn.ended(SOON).await, 128 + 9);
}

/// Runs itself a second time as a process that starts servers and waits, and kills that.
#[tokio::test]
async fn servers_end_with_a_test_that_is_killed() {
    const NAME: &str = "servers::servers_end_with_a_test_that_is_killed";
    const VICTIM: &str = "TEST_IS_THE_VICTIM";
    if std::env::var_os(VICTIM).is_some() {
        let (redis, postgres) = tokio::join!(RedisServer::start(&[]), PrivatePostgres::start());
        // The shared server too, which belongs to this process where no runner is its parent.
        let shared = Postgres::database().await;
        let mut connection = PgConnection::connect(&shared.url).await.unwrap();
        let row =
            sqlx::query("SELECT current_setting('data_directory')").fetch_one(&mut connection).await.unwrap();
        let data: String = row.get(0);
        let shared_pid = std::fs::read_to_string(format!("{data}/postmaster.pid")).unwrap();
        println!("servers: {} {} {}", redis.pid(), postgres.pid(), shared_pid.lines().next().unwrap());
        postgres.pause();
        return std::future::pending().await;
    }
    let command: Vec<String> =
        [std::env::current_exe().unwrap().to_str().unwrap(), NAME, "--exact", "--nocapture"]
            .map(Into::into)
            .into();
    let folder = tether::folder("victim");
    let env = [(VICTIM.to_owned(), "1".to_owned()), ("NEXTEST_RUN_ID".to_owned(), String::new())];
    let start = Start { folder: folder.path(), signal: "KILL", user: None, env: &env, command: &command };
    let victim = Tether::start(&start);
    let servers: Vec<u32> = eventually(SOON, async || {
        let output = victim.read("stdout");
        let line = output.lines().find_map(|line| line.split_once("servers: "));
        let pids: Vec<u32> =
            line.into_iter().flat_map(|(_, pids)| pids.split(' ')).flat_map(str::parse).collect();
        if pids.len() == 3 { Ok(pids) } else { Err(victim.output()) }
    })
    .await;
    assert!(servers.iter().all(|pid| tether::is_alive(*pid)), "{servers:?}");
    victim.signal("KILL");
    // A PostgreSQL that ends gives children that were stopped 5 s of its own, and on a busy machine comes late to it.
    eventually(SOON * 3, async || {
        let alive: Vec<u32> = servers.iter().copied().filter(|pid| tether::is_alive(*pid)).collect();
        if alive.is_empty() { Ok(()) } else { Err(alive) }
    })
    .await;
}

#[tokio::test]
async fn a_service_is_started_and_ended_from_outside() {
    // A stand-in for the binary, so that this is about the support alone.
    let script = |script: &str| PresencedOptions {
        program: Some("sh".into()),
        arguments: vec!["-c".into(), script.into()],
        ttl: Some(Duration::from_secs(2)),
        redis_url: Some("redis://elsewhere".into()),
        ..PresencedOptions::default()
    };
    let serves = "trap 'exit 0' TERM; echo \"address: http://$PRESENCE_LISTEN\"; echo 'admin password: abc'; \
        echo \"$PRESENCE_TTL $REDIS_URL\" >&2; while :; do sleep 0.01; done";
    let service = Presenced::start(script(serves)).await;
    assert_eq!(service.base_url(), "http://127.0.0.1:0");
    eventually(SOON, async || service.printed("admin password: ").filter(|said| said == "abc").ok_or(()))
        .await;
    eventually(SOON, async || {
        let log = service.stderr();
        if log == "2000ms redis://elsewhere\n" { Ok(()) } else { Err(log) }
    })
    .await;
    assert_eq!(service.terminate().await, 0);

    let service = Presenced::start(script(serves)).await;
    service.kill9().await;
    assert!(!tether::is_alive(service.pid()));

    let (code, output) =
        Presenced::try_start(script("echo 'no such setting' >&2; exit 2")).await.unwrap_err();
    assert_eq!(code, 2);
    assert!(output.contains("no such setting"), "{output}");
}
