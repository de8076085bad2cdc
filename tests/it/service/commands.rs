//! The command line: what each command prints, and how a bad setting ends the start.

use std::process::{Command, Output, Stdio};
use std::time::Duration;

use sqlx::{Connection, PgConnection};

use super::{Database, Scene};
use crate::support::mint::access_token;
use crate::support::poll::eventually;
use crate::support::tether;

pub fn presenced(data: &std::path::Path, env: &[(&str, &str)], arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_presenced"));
    for name in ["DATABASE_URL", "REDIS_URL"] {
        command.env_remove(name);
    }
    command.env("PRESENCE_DATA_DIR", data).envs(env.iter().copied()).args(arguments);
    command.stdin(Stdio::null()).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn migrate_and_create_user_make_a_database_that_is_ready() {
    let folder = tether::folder("commands");
    let migrated = presenced(folder.path(), &[], &["migrate"]);
    assert!(text(&migrated.stdout).contains("applied: 0001"), "{migrated:?}");
    assert!(text(&presenced(folder.path(), &[], &["migrate"]).stdout).contains("up to date"));
    let user = ["create-user", "--username", "ada", "--email", "ada@example.com", "--role", "admin"];
    let made = presenced(folder.path(), &[], &user);
    assert!(made.status.success(), "{made:?}");
    let said = text(&made.stdout);
    assert!(said.contains("created: ada (id 1, admin, active)") && said.contains("password: "), "{said}");
    let again = presenced(folder.path(), &[], &user);
    assert!(!again.status.success());
    assert!(text(&again.stderr).contains("taken"), "{again:?}");
    let bad = presenced(
        folder.path(),
        &[],
        &["create-user", "--username", "eve", "--email", "no", "--role", "king"],
    );
    assert!(!bad.status.success());
    assert!(text(&bad.stderr).contains("email"), "{bad:?}");
}

#[test]
fn a_bad_setting_ends_the_start_at_once_and_names_itself() {
    let folder = tether::folder("settings");
    for (name, value, must_say) in [
        ("PRESENCE_TTL", "0s", "from 1s to 1h"),
        ("PRESENCE_TTL", "soon", "from 1s to 1h"),
        ("PRESENCE_LISTEN", "nowhere", "such as 127.0.0.1:8000"),
        ("PRESENCE_LOG", "presenced=notalevel", "must be a filter"),
        ("DATABASE_URL", "postgres://h/db?passwrd=hunter2", "'passwrd'"),
        ("PRESENCE_SHARDS", "0", "1..=1024"),
        ("PRESENCE_JWT_SECRET", "short", "32 bytes"),
        ("PRESENCE_TRUSTED_SECRETS", "short", "32 bytes"),
        ("PRESENCE_ACCESS_TTL", "0", "from 1s"),
        ("PRESENCE_SHUTDOWN_TIMEOUT", "6m", "from 1s to 5m"),
        ("PRESENCE_THREADS", "0", "1..=1024"),
        ("PRESENCE_LAST_SEEN_FLUSH", "1ms", "0 to turn it off"),
        ("DATABASE_URL", "mysql://root:hunter2@localhost/x", "postgres://"),
        ("REDIS_URL", "http://:hunter2@localhost", "redis://"),
        ("PRESENCE_ADMIN_PASSWORD", "hunter2", "must be 8 to 128 characters long"),
        ("PRESENCE_ADMIN_PASSWORD", "12345678", "must not be a number alone"),
        ("PRESENCE_ADMIN_PASSWORD", "Password1", "is one that many people use"),
        ("PRESENCE_ADMIN_PASSWORD_FILE", "/nowhere", "cannot be read"),
        ("PRESENCE_RATE_LIMITS", "login:account=many", "such as 60/1m"),
        ("PRESENCE_RATE_LIMITS", "login=1/1m", "the limits are login:address"),
        ("PRESENCE_METRICS_LISTEN", "nowhere", "such as 127.0.0.1:8000"),
        ("PRESENCE_MAX_CONNECTIONS_PER_ADDRESS", "0", "1..=1000000"),
        ("PRESENCE_MAX_REQUESTS_PER_USER", "none", "invalid digit"),
        ("PRESENCE_MAX_SESSIONS", "0", "1..=1000"),
        ("PRESENCE_MAX_SESSIONS", "1001", "1..=1000"),
        ("PRESENCE_SESSION_MAX_AGE", "0", "from 1s to 3650d, such as 90s, 15m or 1h, or off"),
    ] {
        let output = presenced(folder.path(), &[("PRESENCE_LISTEN", "127.0.0.1:0"), (name, value)], &[]);
        let said = text(&output.stderr);
        assert!(!output.status.success(), "{name}={value}");
        assert!(said.contains(must_say), "{name}={value}: {said}");
        let flag = name.trim_start_matches("PRESENCE_").to_lowercase().replace('_', "-");
        assert!(said.contains(&format!("--{flag}")) || said.contains(name), "{name} is not named: {said}");
        assert!(!said.contains("hunter2") && !said.contains("short\n"), "a secret is shown: {said}");
    }
}

#[test]
fn help_names_every_variable_and_shows_no_secret() {
    let folder = tether::folder("help");
    let secret = "hunter2-hunter2-hunter2-hunter2-hunter2";
    let help = presenced(
        folder.path(),
        &[("PRESENCE_JWT_SECRET", secret), ("REDIS_URL", "redis://:hunter2@x")],
        &["--help"],
    );
    let said = text(&help.stdout);
    for name in [
        "PRESENCE_LISTEN",
        "DATABASE_URL",
        "REDIS_URL",
        "PRESENCE_DATA_DIR",
        "PRESENCE_TTL",
        "PRESENCE_SHARDS",
        "PRESENCE_JWT_SECRET",
        "PRESENCE_ACCESS_TTL",
        "PRESENCE_REFRESH_TTL",
        "PRESENCE_ADMIN_PASSWORD",
        "PRESENCE_LAST_SEEN_FLUSH",
        "PRESENCE_REFRESH_GRACE",
        "PRESENCE_TRUSTED_SECRETS",
        "PRESENCE_TOKEN_LEEWAY",
        "PRESENCE_SHUTDOWN_TIMEOUT",
        "PRESENCE_THREADS",
        "PRESENCE_RATE_LIMITS",
        "PRESENCE_METRICS_LISTEN",
        "PRESENCE_MAX_CONNECTIONS_PER_ADDRESS",
        "PRESENCE_MAX_REQUESTS_PER_USER",
        "PRESENCE_MAX_SESSIONS",
        "PRESENCE_SESSION_MAX_AGE",
    ] {
        assert!(said.contains(name), "{name}");
    }
    assert!(!said.contains("hunter2") && !said.contains("PRESENCE_PANIC_IN"), "{said}");
}

/// Of a database from before the keys; the doctor says the same.
#[tokio::test]
async fn accounts_that_share_a_login_name_are_named_by_the_migration() {
    let folder = tether::folder("clash");
    let old = tether::folder("migrations");
    for name in ["0001_schema.sql", "0002_doors.sql", "0003_counts.sql"] {
        std::fs::copy(format!("migrations/sqlite/{name}"), old.path().join(name)).unwrap();
    }
    let path = folder.path().join("presence.db");
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(&path).create_if_missing(true);
    let mut database = sqlx::SqliteConnection::connect_with(&options).await.unwrap();
    sqlx::migrate::Migrator::new(old.path())
        .await
        .unwrap()
        .run_direct(None, &mut database, false)
        .await
        .unwrap();
    sqlx::raw_sql(
        "INSERT INTO users (username, email, password_hash) VALUES ('someone', 'kim@outlook.com', 'x'), \
         ('\u{212a}im@outlook.com', 'stranger@example.com', 'x'), ('Ärger', 'anger@example.com', 'x')",
    )
    .execute(&mut database)
    .await
    .unwrap();
    database.close().await.unwrap();
    let migrated = presenced(folder.path(), &[], &["migrate"]);
    let said = text(&migrated.stdout);
    for line in [
        "applied: 0006 login names",
        "login names completed: 2 accounts",
        "clash: account 2 has the username '\u{212a}im@outlook.com', which is the same login name as the e-mail address \
         'kim@outlook.com' of account 1: a login by it means account 1",
    ] {
        assert!(migrated.status.success() && said.contains(line), "{line} in {migrated:?}");
    }
    let again = text(&presenced(folder.path(), &[], &["migrate"]).stdout);
    assert!(
        again.contains("up to date") && again.contains("clash: account 2") && !again.contains("completed")
    );
}

#[test]
fn an_address_in_use_is_said_before_anything_starts() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let folder = tether::folder("taken");
    let free = ("PRESENCE_LISTEN", "127.0.0.1:0");
    for (env, setting) in [
        (vec![("PRESENCE_LISTEN", address.as_str())], "set PRESENCE_LISTEN"),
        (vec![free, ("PRESENCE_METRICS_LISTEN", &address)], "set PRESENCE_METRICS_LISTEN"),
    ] {
        let output = presenced(folder.path(), &env, &["serve"]);
        assert!(!output.status.success());
        assert!(text(&output.stderr).contains(setting), "{output:?}");
        assert!(!folder.path().join("redis").exists());
    }
}

/// After a service that was killed, the command does what its sweeper and persister would have done.
#[tokio::test]
async fn check_offline_users_says_what_it_found_and_did() {
    let scene = Scene::start(Database::Postgres, 20, Duration::from_secs(1), &[]).await;
    for user in 2..=20 {
        assert_eq!(scene.api.heartbeat(&access_token(user, "phone")).await.0, 200);
    }
    scene.service.kill9().await;
    eventually(Duration::from_secs(5), async || {
        let now = chrono::Utc::now().timestamp_millis().to_string();
        let passed = scene.redis.cli(&["ZCOUNT", "presence:{0}:live", "-inf", &now]);
        if passed == scene.redis.cli(&["ZCARD", "presence:{0}:live"]) { Ok(()) } else { Err(passed) }
    })
    .await;
    let url = scene.database_url();
    let env = [("DATABASE_URL", url.as_str()), ("REDIS_URL", &scene.redis.url()), ("PRESENCE_TTL", "1s")];
    let folder = tether::folder("check");
    let output = presenced(folder.path(), &env, &["check-offline-users"]);
    let said = text(&output.stdout);
    assert!(output.status.success(), "{output:?}");
    let number = |label: &str| -> i64 {
        let line = said
            .lines()
            .find_map(|line| line.split_once(label))
            .unwrap_or_else(|| panic!("no {label} in {said}"));
        line.1.split(|c: char| !c.is_ascii_digit()).find(|word| !word.is_empty()).unwrap().parse().unwrap()
    };
    assert!(number("deadlines passed: ") >= 1, "{said}");
    assert!(number("taken offline now: ") >= 1, "{said}");
    assert_eq!(number("online now: "), 0, "{said}");
    eventually(Duration::from_secs(5), async || {
        let left =
            scene.sql.number("SELECT count(*)::text FROM users WHERE online_status <> 'offline'").await;
        if left == 0 { Ok(()) } else { Err(left) }
    })
    .await;
    super::assert_alternates(&scene.histories().await);
    let about = scene.redis.cli(&["XINFO", "CONSUMERS", "presence:{0}:transitions", "persist"]);
    let lines: Vec<&str> = about.lines().collect();
    let service = format!("-{}-", scene.service.pid());
    let left = lines.windows(2).find(|pair| pair[0] == "name" && !pair[1].contains(&service));
    assert_eq!(left, None, "the command leaves its name on the group");
    // Someone whom SQL calls online and Redis does not know: the legacy of another system, or of a lost Redis.
    scene
        .sql
        .run(
            "INSERT INTO presence_transitions (user_id, stream_id, from_status, to_status, reason, at) \
             VALUES (3, '9/1-0', 'offline', 'online', 'login', now() - interval '1 hour')",
        )
        .await;
    scene
        .sql
        .run(
            "UPDATE users SET online_status = 'online', last_seen = now() - interval '1 hour', \
             presence_writes = presence_writes + 1 WHERE id = 3",
        )
        .await;
    let output = presenced(folder.path(), &env, &["check-offline-users"]);
    let said = text(&output.stdout);
    assert!(said.contains("present in SQL: 1, unknown to Redis and declared offline: 1"), "{said}");
}

#[tokio::test]
async fn another_number_of_shards_is_refused() {
    let scene = Scene::start(Database::Sqlite, 1, Duration::from_mins(1), &[]).await;
    let (url, redis) = (scene.database_url(), scene.redis.url());
    let env = [("DATABASE_URL", url.as_str()), ("REDIS_URL", &redis), ("PRESENCE_SHARDS", "4")];
    let folder = tether::folder("shards");
    let env = [&env[..], &[("PRESENCE_LISTEN", "127.0.0.1:0")]].concat();
    let output = presenced(folder.path(), &env, &[]);
    assert!(!output.status.success());
    assert!(text(&output.stderr).contains("PRESENCE_SHARDS=1"), "{output:?}");
}

/// What a killed service had in hand is nobody's for 3 s; the command waits that long instead of leaving it.
#[tokio::test]
async fn check_offline_users_writes_what_a_killed_service_had_in_hand() {
    let scene = Scene::start(Database::Postgres, 5, Duration::from_mins(1), &[]).await;
    assert_eq!(scene.api.heartbeat(&access_token(3, "phone")).await.0, 200);
    eventually(Duration::from_secs(5), async || {
        let waiting = scene.redis.cli(&["XLEN", "presence:{0}:transitions"]);
        if waiting == "0" { Ok(()) } else { Err(waiting) }
    })
    .await;
    // Someone else holds the table while the persister wants it.
    let mut other = PgConnection::connect(&scene.database_url()).await.unwrap();
    sqlx::raw_sql("BEGIN; LOCK TABLE users IN ACCESS EXCLUSIVE MODE").execute(&mut other).await.unwrap();
    assert_eq!(scene.api.heartbeat(&access_token(2, "phone")).await.0, 200);
    eventually(Duration::from_secs(5), async || {
        let pending = scene.redis.cli(&["XPENDING", "presence:{0}:transitions", "persist"]);
        if pending.starts_with('1') { Ok(()) } else { Err(pending) }
    })
    .await;
    scene.service.kill9().await;
    sqlx::raw_sql("ROLLBACK").execute(&mut other).await.unwrap();
    let (url, redis) = (scene.database_url(), scene.redis.url());
    let env = [("DATABASE_URL", url.as_str()), ("REDIS_URL", &redis), ("PRESENCE_TTL", "1m")];
    let folder = tether::folder("check");
    let said = text(&presenced(folder.path(), &env, &["check-offline-users"]).stdout);
    assert!(said.contains("transitions written to SQL: 1, history rows added: 1"), "{said}");
    assert!(!said.contains("in hand"), "{said}");
    assert_eq!(scene.redis.cli(&["XLEN", "presence:{0}:transitions"]), "0");
}
