//! An upgrade from the version before: its schema, its rows and its keys, and users who are present while it happens.

use std::path::Path;
use std::time::Duration;

use sqlx::migrate::Migrator;

use super::assert_alternates;
use crate::support::http::Api;
use crate::support::mint::{access_token, secret_variable};
use crate::support::poll::eventually;
use crate::support::postgres::Postgres;
use crate::support::process::{Presenced, PresencedOptions};
use crate::support::redis::RedisServer;
use crate::support::sql::Sql;

const TTL: Duration = Duration::from_secs(20);
const TTL_MS: i64 = 20_000;
/// The migrations that the version before had.
const BEFORE: [&str; 3] = ["0001_schema.sql", "0002_doors.sql", "0003_counts.sql"];

/// The schema as the version before left it.
async fn former_schema(url: &str) -> Sql {
    let database = if url.starts_with("postgres") { "postgres" } else { "sqlite" };
    let folder = tempfile::tempdir().unwrap();
    let migrations = Path::new(env!("CARGO_MANIFEST_DIR")).join("migrations").join(database);
    for file in BEFORE {
        std::fs::copy(migrations.join(file), folder.path().join(file)).unwrap();
    }
    let migrator = Migrator::new(folder.path()).await.unwrap();
    let sql = Sql::open(url).await;
    match &sql {
        Sql::Postgres(pool) => migrator.run(pool).await.unwrap(),
        Sql::Sqlite(pool) => migrator.run(pool).await.unwrap(),
    }
    sql
}

/// The keys as the version before left them: users 2 to 4 present, 2 about to expire, 3 by two sessions, 4 in the stream
/// alone, 5 blocked, and a session of 6 that has ended.
fn former_keys(redis: &RedisServer, now: i64) {
    let run_id = redis.cli(&["INFO", "server"]);
    let run_id = run_id.lines().find_map(|line| line.strip_prefix("run_id:")).unwrap().trim().to_owned();
    let cli = |command: &str| drop(redis.cli(&command.split(' ').collect::<Vec<_>>()));
    cli("SET presence:{0}:shards 1");
    redis.cli(&["SET", "presence:{0}:fence", &format!("{run_id} 0")]);
    redis.cli(&["SET", "presence:{0}:epoch", &format!("{run_id} {}", now - 3_600_000)]);
    cli(&format!("SET presence:{{0}}:heard {now}"));
    cli(&format!("SET presence:{{0}}:moves {}", now * 1_000));
    cli("SADD presence:{0}:blocked 5");
    redis.cli(&["SET", "presence:{0}:ended:gone", &now.to_string(), "PX", "900000"]);
    for (user, fields, seen) in
        [(2, "s:phone", now - TTL_MS + 3_000), (3, "s:phone", now), (4, "s:desk", now)]
    {
        let key = format!("presence:{{0}}:user:{user}");
        cli(&format!("HSET {key} status online since {} {fields} {seen}", now - 60_000));
        cli(&format!("PEXPIREAT {key} {}", seen + TTL_MS));
        cli(&format!("ZADD presence:{{0}}:live {} {user}", seen + TTL_MS));
    }
    cli(&format!("HSET presence:{{0}}:user:3 s:laptop {}", now - 5_000));
    cli(&format!(
        "XADD presence:{{0}}:transitions {now}-0 user 4 to online reason heartbeat at {now} seen {now}"
    ));
    cli("XGROUP CREATE presence:{0}:transitions persist 0");
}

async fn upgrade(url: String) {
    let redis = RedisServer::start(&[]).await;
    let sql = former_schema(&url).await;
    sql.seed(1, 6).await;
    let now = chrono::Utc::now().timestamp_millis();
    let at = |ms: i64| {
        chrono::DateTime::from_timestamp_millis(ms).unwrap().format("%Y-%m-%dT%H:%M:%S%.3fZ").to_string()
    };
    sql.run("UPDATE users SET status = 'suspended' WHERE id = 5").await;
    sql.run(&format!(
        "INSERT INTO login_sessions (sid, user_id, created_at, last_used_at, ended_at) VALUES ('gone', 6, '{0}', '{0}', '{0}')",
        at(now - 1_000)
    ))
    .await;
    for user in [2, 3] {
        let (since, version) = (now - 60_000, (now - 60_000) << 20);
        sql.run(&format!(
            "INSERT INTO presence_transitions (stream_id, user_id, from_status, to_status, reason, at) \
             VALUES ('0/{since}-{user}', {user}, 'offline', 'online', 'login', '{}')",
            at(since)
        ))
        .await;
        sql.run(&format!(
            "UPDATE users SET online_status = 'online', last_seen = '{}', presence_version = {version} WHERE id = {user}",
            at(since)
        ))
        .await;
    }
    former_keys(&redis, now);

    let service = Presenced::start(PresencedOptions {
        database_url: Some(url),
        redis_url: Some(redis.url()),
        ttl: Some(TTL),
        env: vec![secret_variable()],
        ..PresencedOptions::default()
    })
    .await;
    let api = Api::new(service.base_url());
    let steady = [(3, "phone"), (4, "desk")].map(|(user, sid)| access_token(user, sid));
    for token in &steady {
        assert_eq!(api.heartbeat(token).await.0, 200, "who is present goes on from the first request on");
    }
    let newcomer = access_token(1, "new");
    eventually(Duration::from_secs(10), async || match api.heartbeat(&newcomer).await.0.as_u16() {
        200 => Ok(()),
        other => Err(other),
    })
    .await;
    assert_eq!(api.heartbeat(&access_token(5, "phone")).await.0, 403, "a blocked account stays out");
    assert_eq!(api.heartbeat(&access_token(6, "gone")).await.0, 401, "an ended session stays ended");
    assert_eq!(api.heartbeat(&access_token(6, "other")).await.0, 200);

    // The one who went silent before the upgrade expires at the deadline of then; the entry in the stream is recorded.
    let deadline = now + 3_000;
    let history = eventually(Duration::from_secs(15), async || {
        for token in steady.iter().chain([&newcomer]) {
            assert_eq!(api.heartbeat(token).await.0, 200);
        }
        let at = sql.ms("at");
        let query = format!(
            "SELECT CAST(user_id AS text), from_status, to_status, reason, {at} FROM presence_transitions ORDER BY user_id, id"
        );
        let rows = sql.rows(&query).await;
        let has = |user: &str, to: &str| rows.iter().any(|row| row[0] == user && row[2] == to);
        if has("2", "offline") && has("4", "online") { Ok(rows) } else { Err(rows) }
    })
    .await;
    assert_alternates(&history);
    let expired: Vec<_> = history.iter().filter(|row| row[2] == "offline").collect();
    assert_eq!(expired.len(), 1, "nobody else was taken offline: {history:?}");
    assert_eq!((expired[0][0].as_str(), expired[0][4].parse::<i64>().unwrap()), ("2", deadline));
    eventually(Duration::from_secs(5), async || {
        let fence = redis.cli(&["GET", "presence:{0}:fence"]);
        let marks = [
            redis.cli(&["SISMEMBER", "presence:{0}:blocked", "0"]),
            redis.cli(&["ZSCORE", "presence:{0}:live", "0"]),
            redis.cli(&["ZSCORE", "presence:{0}:ended", "0"]),
        ];
        if marks == ["1", "0", "0"] { Ok(()) } else { Err((fence, marks)) }
    })
    .await;
}

#[tokio::test]
async fn an_upgrade_loses_nobody_and_nothing_on_postgres() {
    let database = Postgres::database().await;
    upgrade(database.url.clone()).await;
}

#[tokio::test]
async fn an_upgrade_loses_nobody_and_nothing_on_sqlite() {
    let folder = crate::support::tether::folder("upgrade");
    let path = folder.path().join("presence.db");
    std::fs::File::create(&path).unwrap();
    upgrade(format!("sqlite://{}", path.display())).await;
}
