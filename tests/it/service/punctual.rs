//! Invariant 4: an expiry is recorded within a second of its deadline, whatever else Redis holds; and what makes it so.

use std::fmt::Write as _;
use std::process::{Command, Stdio};
use std::time::Duration;

use super::{Database, Scene};
use crate::support::mint::access_token;
use crate::support::poll::eventually;

const OTHERS: i64 = 100_000;
const WATCHED: i64 = 200;

/// A hundred thousand other live users whose TTL ends in an hour, as the service would write them.
fn add_others(scene: &Scene) {
    let mut input = String::new();
    let now = chrono::Utc::now().timestamp_millis();
    let deadline = now + 3_600_000;
    for user in 1_000_000..1_000_000 + OTHERS {
        let key = format!("presence:{{0}}:user:{user}");
        writeln!(input, "HSET {key} status online since {now} s:phone {now}").unwrap();
        writeln!(input, "PEXPIREAT {key} {deadline}").unwrap();
        writeln!(input, "ZADD presence:{{0}}:live {deadline} {user}").unwrap();
    }
    let folder = crate::support::tether::folder("others");
    let file = folder.path().join("commands");
    std::fs::write(&file, input).unwrap();
    let loaded = Command::new("redis-cli")
        .args(["-p", &scene.redis.port().to_string(), "--pipe"])
        .stdin(std::fs::File::open(&file).unwrap())
        .stdout(Stdio::null())
        .status()
        .unwrap();
    assert!(loaded.success());
    assert_eq!(scene.redis.cli(&["ZCOUNT", "presence:{0}:live", "(0", "+inf"]), OTHERS.to_string());
}

async fn come_online(scene: &Scene) {
    for user in 1..=WATCHED {
        assert_eq!(scene.api.heartbeat(&access_token(user, "phone")).await.0, 200);
    }
}

#[tokio::test]
async fn an_expiry_is_recorded_within_a_second_among_a_hundred_thousand_others() {
    let scene = Scene::start(Database::Postgres, WATCHED, Duration::from_secs(2), &[]).await;
    add_others(&scene);
    come_online(&scene).await;
    eventually(Duration::from_secs(15), async || {
        let query = "SELECT count(*)::text FROM presence_transitions WHERE reason = 'expired'";
        let expired = scene.sql.number(query).await;
        if expired == WATCHED { Ok(()) } else { Err(expired) }
    })
    .await;
    let mut lags: Vec<i64> = scene
        .histories()
        .await
        .iter()
        .filter(|row| row[3] == "expired")
        .map(|row| row[5].parse::<i64>().unwrap() - row[4].parse::<i64>().unwrap())
        .collect();
    lags.sort_unstable();
    println!(
        "deadline to SQL among {OTHERS} others, ms: median {}, most {}",
        lags[lags.len() / 2],
        lags[lags.len() - 1]
    );
    assert!(lags[lags.len() * 99 / 100 - 1] <= 1_000, "{lags:?}");
}

#[tokio::test]
async fn without_the_sweeper_it_is_not_and_a_touched_key_is_heard_of_at_once() {
    let without = [("PRESENCE_WITHOUT_SWEEPER", "true")];
    let scene = Scene::start(Database::Postgres, WATCHED, Duration::from_secs(1), &without).await;
    add_others(&scene);
    eventually(Duration::from_secs(5), async || {
        let log = scene.service.stderr();
        if log.contains("expiry events are on") { Ok(()) } else { Err(log) }
    })
    .await;
    come_online(&scene).await;
    let count = "SELECT count(*)::text FROM presence_transitions WHERE reason = 'expired'";
    // Four seconds past the last deadline: Redis has sampled hardly any of the keys that have expired.
    let last =
        scene.redis.cli(&["ZSCORE", "presence:{0}:live", &WATCHED.to_string()]).parse::<i64>().unwrap();
    eventually(Duration::from_secs(10), async || {
        if chrono::Utc::now().timestamp_millis() > last + 4_000 { Ok(()) } else { Err(()) }
    })
    .await;
    let expired = scene.sql.number(count).await;
    println!("without the sweeper {expired} of {WATCHED} were recorded 4 s after the last deadline");
    assert!(expired < WATCHED / 2, "{expired}");
    // The listener does its part: the touch that the sweeper would give makes Redis publish, and the claim follows.
    for user in 1..=WATCHED {
        scene.redis.cli(&["EXISTS", &format!("presence:{{0}}:user:{user}")]);
    }
    eventually(Duration::from_secs(5), async || {
        let expired = scene.sql.number(count).await;
        if expired == WATCHED { Ok(()) } else { Err(expired) }
    })
    .await;
}

#[tokio::test]
async fn where_config_is_refused_the_sweeper_goes_on_alone() {
    let folder = crate::support::tether::folder("refused");
    let url = format!("sqlite://{}", folder.path().join("presence.db").display());
    let redis = crate::support::redis::RedisServer::start(&["--rename-command", "CONFIG", ""]).await;
    let service = crate::support::process::Presenced::start(crate::support::process::PresencedOptions {
        database_url: Some(url.clone()),
        redis_url: Some(redis.url()),
        ttl: Some(Duration::from_secs(1)),
        env: vec![crate::support::mint::secret_variable()],
        ..Default::default()
    })
    .await;
    let api = crate::support::http::Api::new(service.base_url());
    assert_eq!(api.heartbeat(&access_token(1, "phone")).await.0, 200);
    eventually(Duration::from_secs(5), async || {
        let log = service.stderr();
        if log.contains("the sweeper goes on alone") { Ok(()) } else { Err(log) }
    })
    .await;
    let sql = crate::support::sql::Sql::open(&url).await;
    eventually(Duration::from_secs(4), async || {
        let rows = sql
            .rows("SELECT to_status, reason FROM presence_transitions WHERE user_id = 1 ORDER BY id")
            .await;
        if rows.len() == 2 && rows[1] == ["offline", "expired"] { Ok(()) } else { Err(rows) }
    })
    .await;
}
