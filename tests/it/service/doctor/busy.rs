//! Nothing is wrong where instances are at work.

use std::time::Duration;

use serde_json::json;

use super::super::{Database, Scene, assert_alternates};
use super::run;
use crate::support::http::Api;
use crate::support::mint::{access_token, secret_variable};
use crate::support::process::{Presenced, PresencedOptions};

/// Users come, idle, fall silent and come back, accounts are suspended and let in again, through two instances; meanwhile
/// the doctor looks twenty times, and finds nothing.
#[tokio::test]
async fn nothing_is_wrong_where_two_instances_are_busy_as_in_a_storm() {
    const USERS: i64 = 240;
    const TTL: Duration = Duration::from_secs(1);
    let scene = Scene::start(Database::Postgres, USERS, TTL, &[("PRESENCE_LAST_SEEN_FLUSH", "1s")]).await;
    let other = Presenced::start(PresencedOptions {
        database_url: Some(scene.database_url()),
        redis_url: Some(scene.redis.url()),
        ttl: Some(TTL),
        env: vec![secret_variable()],
        ..PresencedOptions::default()
    })
    .await;
    let apis = [scene.api.clone(), Api::new(other.base_url())];
    let began = tokio::time::Instant::now();
    let crowd = async |first: i64| -> usize {
        for round in 0_i64.. {
            for user in (first..=USERS).step_by(8) {
                // One in four is silent at a time, for longer than the TTL; and one of four words says away.
                let phase = i64::try_from(began.elapsed().as_millis() / 1_500).unwrap();
                if (user / 8 + phase) % 4 == 0 {
                    continue;
                }
                let status = if (user + round) % 4 == 1 { "away" } else { "online" };
                let api = &apis[usize::try_from((user + round) % 2).unwrap()];
                let token = access_token(user, "phone");
                let (code, body, _) = api.post("heartbeat/", Some(&token), &json!({"status": status})).await;
                assert!(code == 200 || code == 403, "{body}");
            }
        }
        0
    };
    let accounts = async {
        for round in 0_i64.. {
            let user = 2 + round % 40;
            for status in ["suspended", "active"] {
                let change = format!("UPDATE users SET status = '{status}' WHERE id = {user}");
                scene.sql.run(&change).await;
            }
        }
        0
    };
    let doctors = async {
        let mut looks = 0;
        for _ in 0..5 {
            let (database, redis) = (scene.database_url(), scene.redis.url());
            let four = (0..4).map(|number| {
                let (database, redis) = (database.clone(), redis.clone());
                // One of the four would mend, too.
                let arguments = if number == 0 { &["--repair"][..] } else { &[] };
                tokio::task::spawn_blocking(move || {
                    let env = [("DATABASE_URL", &*database), ("REDIS_URL", &*redis), ("PRESENCE_TTL", "1s")];
                    run(&env, arguments)
                })
            });
            for look in futures_util::future::join_all(four).await {
                let (code, said) = look.unwrap();
                assert_eq!(code, 0, "{said}");
                assert!(!said.contains("disagreement"), "{said}");
                looks += 1;
            }
        }
        looks
    };
    let looks = tokio::select! {
        looks = doctors => looks,
        _ = futures_util::future::join_all((1..=8).map(crowd)) => 0,
        never = accounts => never,
    };
    assert_eq!(looks, 20);
    for (reason, at_least) in [("heartbeat", USERS * 4), ("expired", USERS / 2), ("blocked", 20)] {
        let query =
            format!("SELECT CAST(count(*) AS text) FROM presence_transitions WHERE reason = '{reason}'");
        let rows = scene.sql.number(&query).await;
        assert!(rows >= at_least, "the crowd was no crowd: {rows} rows of {reason}");
    }
    assert_alternates(&scene.histories().await);
}
