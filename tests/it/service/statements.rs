//! Invariant 2: a steady heartbeat costs no SQL at all.

use std::time::Duration;

use presenced::live::LiveSet;
use presenced::model::{HeartbeatWord, SessionId, SessionKey};
use presenced::presence::PresenceService;
use presenced::store::{NewAccount, Options, PasswordHash};
use presenced::tasks::{Context, Tasks};
use tokio::time::Instant;

use crate::support::http::Api;
use crate::support::mint::{access_token, secret_variable};
use crate::support::poll::eventually;
use crate::support::postgres::PrivatePostgres;
use crate::support::process::{Presenced, PresencedOptions};
use crate::support::redis::RedisServer;
use crate::support::sql::Sql;

const USERS: i64 = 1_000;

/// What the server's log holds of statements, one each, in its own words.
fn statements(log: &str) -> Vec<String> {
    log.lines()
        .filter_map(|line| line.split_once("LOG:  execute ").or_else(|| line.split_once("LOG:  statement: ")))
        .map(|(_, statement)| statement.to_owned())
        .collect()
}

/// The server itself says which statements it was sent, a minute long.
#[tokio::test]
async fn a_thousand_users_who_stay_online_for_a_minute_cost_no_sql_but_the_write_behind() {
    let server = PrivatePostgres::start().await;
    let database = server.database().await;
    let redis = RedisServer::start(&[]).await;
    let store = presenced::store::open(&database.url, &Options::default()).await.unwrap();
    store.migrate().await.unwrap();
    drop(store);
    let sql = Sql::open(&database.url).await;
    sql.seed(1, USERS).await;
    sql.run("ALTER SYSTEM SET log_statement = 'all'").await;
    sql.rows("SELECT pg_reload_conf()::text").await;
    let service = Presenced::start(PresencedOptions {
        database_url: Some(database.url.clone()),
        redis_url: Some(redis.url()),
        ttl: Some(Duration::from_secs(10)),
        env: vec![secret_variable(), ("PRESENCE_LAST_SEEN_FLUSH".into(), "20s".into())],
        ..PresencedOptions::default()
    })
    .await;
    let api = Api::new(service.base_url());
    let tokens: Vec<_> = (1..=USERS).map(|user| access_token(user, "phone")).collect();
    let round = async || {
        let api = &api;
        let beats = tokens.chunks(50).map(|tokens| async move {
            for token in tokens {
                assert_eq!(api.heartbeat(token).await.0, 200);
            }
        });
        futures_util::future::join_all(beats).await;
    };
    let begun = Instant::now();
    round().await;
    eventually(Duration::from_secs(10), async || {
        let online = sql.number("SELECT count(*)::text FROM users WHERE online_status = 'online'").await;
        if online == USERS { Ok(()) } else { Err(online) }
    })
    .await;
    // The reconciler looks once when Redis has been heard for a TTL; that belongs to the start.
    // As real clients do: several heartbeats within a TTL, and pauses between them.
    let mut pace = tokio::time::interval(Duration::from_secs(2));
    while begun.elapsed() < Duration::from_secs(12) {
        pace.tick().await;
        round().await;
    }
    let before = statements(&server.output()).len();
    let steady = Instant::now();
    let mut beats = 0;
    while steady.elapsed() < Duration::from_mins(1) {
        pace.tick().await;
        round().await;
        beats += USERS;
    }
    let sent = statements(&server.output())[before..].to_vec();
    println!("{beats} heartbeats, {} statements", sent.len());
    // The upkeep's looks come at a fixed pace, whatever users do.
    let (looks, sent): (Vec<_>, Vec<_>) = sent.into_iter().partition(|one| {
        ["presence_triggers_off", "WITH page AS", "max(id), 0) FROM account_changes"]
            .iter()
            .any(|part| one.contains(part))
    });
    assert!(looks.len() <= 68, "two statements every two seconds, four looks at the log: {}", looks.len());
    let (behind, others): (Vec<_>, Vec<_>) = sent
        .into_iter()
        .partition(|statement| ["last_seen", "BEGIN", "COMMIT"].iter().any(|part| statement.contains(part)));
    assert!(others.is_empty(), "{others:#?}");
    assert!(!behind.is_empty() && behind.len() <= 12, "three or four flushes of one batch: {behind:#?}");
}

/// A list is one statement, whoever asks, and those who ask at once share it.
#[tokio::test]
async fn a_list_costs_one_statement() {
    let server = PrivatePostgres::start().await;
    let database = server.database().await;
    let redis = RedisServer::start(&[]).await;
    let store = presenced::store::open(&database.url, &Options::default()).await.unwrap();
    store.migrate().await.unwrap();
    drop(store);
    let sql = Sql::open(&database.url).await;
    sql.seed(1, USERS).await;
    let service = Presenced::start(PresencedOptions {
        database_url: Some(database.url.clone()),
        redis_url: Some(redis.url()),
        env: vec![secret_variable(), ("PRESENCE_LAST_SEEN_FLUSH".into(), "0".into())],
        ..PresencedOptions::default()
    })
    .await;
    let api = Api::new(service.base_url());
    let (admin, user) = (access_token(1, "phone"), access_token(2, "phone"));
    for token in [&admin, &user] {
        assert_eq!(api.heartbeat(token).await.0, 200);
    }
    eventually(Duration::from_secs(10), async || {
        let online = sql.number("SELECT count(*)::text FROM users WHERE online_status = 'online'").await;
        if online == 2 { Ok(()) } else { Err(online) }
    })
    .await;
    sql.run("ALTER SYSTEM SET log_statement = 'all'").await;
    sql.rows("SELECT pg_reload_conf()::text").await;
    eventually(Duration::from_secs(10), async || {
        sql.rows("SELECT 'now it is logged'").await;
        let log = statements(&server.output());
        if log.iter().any(|sent| sent.contains("now it is logged")) { Ok(()) } else { Err(log) }
    })
    .await;
    // What asks for users; the loops of the service look elsewhere.
    let sent = || statements(&server.output()).iter().filter(|sent| sent.contains("FROM users u")).count();
    for (path, token) in [
        ("all-users/?per_page=1000", &admin),
        ("all-users/?per_page=50", &user),
        ("all-users/?per_page=50&page=12", &user),
        ("all-users/?search=a", &user),
        ("all-users/?search=a&online_status=online", &admin),
        ("admin/users/?status=active", &admin),
        ("admin/users/online/", &admin),
    ] {
        let before = sent();
        let (status, body, _) = api.get(path, Some(token)).await;
        assert_eq!(status, 200, "{path}: {body}");
        assert_eq!(sent() - before, 1, "{path}");
        let cursor = body["pagination"]["next_cursor"].as_str().map(str::to_owned);
        if let (Some(cursor), false) = (cursor, path.contains("page=12")) {
            let before = sent();
            assert_eq!(api.get(&format!("{path}&cursor={cursor}"), Some(token)).await.0, 200);
            assert_eq!(sent() - before, 1, "{path}, further on");
        }
    }
    let before = sent();
    let tokens: Vec<_> = (1..=10).map(|user| access_token(user, "phone")).collect();
    let crowd = (0..300).map(|number| {
        let (api, token) = (&api, &tokens[number % tokens.len()]);
        async move { api.get("all-users/?per_page=1000", Some(token)).await.0 }
    });
    let answers = futures_util::future::join_all(crowd).await;
    assert!(answers.iter().all(|status| *status == 200));
    let shared = sent() - before;
    println!("{shared} statements for 300 lists");
    assert!((1..=150).contains(&shared), "{shared} statements for 300 lists at once");
}

/// The same by the store's own count, through the service's parts, on SQLite and without the write-behind.
#[tokio::test]
async fn steady_heartbeats_send_sqlite_nothing() {
    let folder = crate::support::tether::folder("sqlite");
    let redis = RedisServer::start(&[]).await;
    let url = format!("sqlite://{}", folder.path().join("presence.db").display());
    let store = presenced::store::open(&url, &Options::default()).await.unwrap();
    store.migrate().await.unwrap();
    let account = store
        .create_account(
            &NewAccount {
                username: "ada".into(),
                email: "ada@example.com".into(),
                password_hash: PasswordHash("-".into()),
                role: presenced::model::Role::User,
                status: presenced::model::AccountStatus::Active,
            },
            None,
        )
        .await
        .unwrap();
    let ttl = Duration::from_secs(1);
    let live = LiveSet::open(presenced::live::Options {
        url: redis.url(),
        ttl,
        prefix: "presence".into(),
        shards: 1,
        max_sessions: 50,
        ended_ttl: Duration::from_mins(15),
        instance: "test".into(),
        command_timeout: Duration::from_millis(1_500),
    })
    .unwrap();
    live.ready().await.unwrap();
    live.belong_to(&store.installation().await.unwrap()).await.unwrap();
    let presence = PresenceService::new(live.clone(), store.clone(), Duration::from_mins(15));
    let context = Context {
        live: live.clone(),
        store: store.clone(),
        presence: presence.clone(),
        last_seen_flush: Duration::ZERO,
        counts: presenced::tasks::Counts::default(),
        sweep: true,
    };
    let tasks = Tasks::start(&context);
    let who = SessionKey { user: account.id, sid: SessionId::parse("phone") };
    let steady = async |span: Duration| {
        let begun = Instant::now();
        let mut pace = tokio::time::interval(Duration::from_millis(2));
        while begun.elapsed() < span {
            pace.tick().await;
            presence.heartbeat(&who, HeartbeatWord::Online).await.unwrap();
        }
    };
    // Past the start: the transition persisted, the reconciler's look after one TTL.
    steady(Duration::from_secs(3)).await;
    let before = store.statements();
    steady(Duration::from_secs(3)).await;
    assert_eq!(store.statements(), before);
    let soon = tokio::time::Instant::now() + Duration::from_secs(5);
    tasks.stop(soon, soon).await;
}
