//! `presenced doctor`: what is wrong is named with its cause, `--repair` puts it right, and nothing is wrong where instances
//! are at work.

use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::json;

use super::{Database, Scene, assert_alternates};
use crate::support::http::Api;
use crate::support::mint::{access_token, secret_variable};
use crate::support::poll::eventually;
use crate::support::process::{Presenced, PresencedOptions};
use crate::support::tether;

const LIVE: &str = "presence:{0}:live";
const STREAM: &str = "presence:{0}:transitions";
/// Long enough for nobody to expire while a test goes on.
const LONG: Duration = Duration::from_mins(10);

/// Exit code and output. The data folder is one that must not be made.
fn run(env: &[(&str, &str)], arguments: &[&str]) -> (i32, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_presenced"));
    for name in ["DATABASE_URL", "REDIS_URL"] {
        command.env_remove(name);
    }
    let output = command.arg("doctor").args(arguments).envs(env.iter().copied()).stdin(Stdio::null());
    let output = output.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    (output.status.code().unwrap(), said)
}

impl Scene {
    fn doctor(&self, ttl: &str, arguments: &[&str]) -> (i32, String) {
        let (database, redis) = (self.database_url(), self.redis.url());
        run(&[("DATABASE_URL", &database), ("REDIS_URL", &redis), ("PRESENCE_TTL", ttl)], arguments)
    }

    async fn say(&self, users: impl IntoIterator<Item = i64>, status: &str) {
        for user in users {
            let (code, body, _) = self
                .api
                .post("heartbeat/", Some(&access_token(user, "phone")), &json!({"status": status}))
                .await;
            assert_eq!(code, 200, "{body}");
        }
    }

    /// Waits until SQL has all that the stream held.
    async fn recorded(&self) {
        eventually(Duration::from_secs(10), async || {
            let left = self.redis.cli(&["XLEN", STREAM]);
            if left == "0" { Ok(()) } else { Err(left) }
        })
        .await;
    }

    /// Lets this Redis have been heard for long, so that who is missing can be told.
    fn age_epoch(&self) {
        let epoch = self.redis.cli(&["GET", "presence:{0}:epoch"]);
        let (run_id, since) = epoch.split_once(' ').unwrap();
        let long_ago = since.parse::<i64>().unwrap() - 3_600_000;
        self.redis.cli(&["SET", "presence:{0}:epoch", &format!("{run_id} {long_ago}")]);
    }

    /// All that Redis holds, to show that a look changes nothing.
    fn in_redis(&self) -> String {
        let dump = "local all = {} for _, key in ipairs(redis.call('KEYS', '*')) do \
                    all[#all + 1] = key .. redis.sha1hex(redis.call('DUMP', key)) .. redis.call('PEXPIRETIME', key) end \
                    table.sort(all) return all";
        self.redis.cli(&["EVAL", dump, "0"])
    }

    async fn status_in_sql(&self, user: i64) -> String {
        self.sql.rows(&format!("SELECT online_status FROM users WHERE id = {user}")).await[0][0].clone()
    }
}

fn key(user: i64) -> String {
    format!("presence:{{0}}:user:{user}")
}

fn assert_named(said: &str, needles: &[&str]) {
    for needle in needles {
        assert!(said.contains(needle), "'{needle}' is not in:\n{said}");
    }
}

#[tokio::test]
async fn each_disagreement_is_named_and_mended_on_sqlite() {
    each_disagreement(Database::Sqlite).await;
}

#[tokio::test]
async fn each_disagreement_is_named_and_mended_on_postgres() {
    each_disagreement(Database::Postgres).await;
}

async fn each_disagreement(database: Database) {
    let scene = Scene::start(database, 40, LONG, &[("PRESENCE_LAST_SEEN_FLUSH", "0")]).await;
    scene.say(2..=20, "online").await;
    for status in ["away", "online", "away"] {
        scene.say([16, 17], status).await;
    }
    scene.recorded().await;
    scene.age_epoch();
    let (code, said) = scene.doctor("10m", &[]);
    assert_eq!(code, 0, "{said}");
    assert_named(&said, &["all is well", "40 accounts, 19 members of the live set"]);

    scene.service.kill9().await;
    let redis = |arguments: &[&str]| scene.redis.cli(arguments);
    redis(&["DEL", &key(2)]);
    redis(&["ZREM", LIVE, "3"]);
    redis(&["EXPIRE", &key(4), "5000"]);
    redis(&["PERSIST", &key(5)]);
    redis(&["DEL", &key(6)]);
    redis(&["SET", &key(6), "online"]);
    redis(&["HSET", &key(7), "status", "away"]);
    redis(&["HDEL", &key(8), "s:phone"]);
    redis(&["ZADD", LIVE, "inf", "9"]);
    redis(&["ZADD", LIVE, "99999999999999", "hello"]);
    scene.sql.run("UPDATE users SET online_status = 'offline' WHERE id = 10").await;
    scene.sql.run("DELETE FROM presence_transitions WHERE user_id = 11").await;
    scene.sql.run("UPDATE users SET online_status = 'offline' WHERE id = 11").await;
    redis(&["DEL", &key(12)]);
    redis(&["ZREM", LIVE, "12"]);
    scene.sql.run("UPDATE users SET status = 'suspended' WHERE id IN (13, 30)").await;
    redis(&["SADD", "presence:{0}:blocked", "31"]);
    redis(&["EVAL", "redis.call('ZADD', KEYS[1], redis.call('ZSCORE', KEYS[1], '14'), '999')", "1", LIVE]);
    redis(&["COPY", &key(14), &key(999)]);
    let ids = scene.sql.rows("SELECT CAST(id AS text) FROM presence_transitions WHERE user_id = 16 ORDER BY id").await;
    scene.sql.run(&format!("DELETE FROM presence_transitions WHERE id = {}", ids[1][0])).await;
    let ids = scene.sql.rows("SELECT CAST(id AS text) FROM presence_transitions WHERE user_id = 17 ORDER BY id").await;
    scene
        .sql
        .run(&format!("UPDATE presence_transitions SET from_status = 'offline' WHERE id = {}", ids[2][0]))
        .await;
    redis(&["CONFIG", "SET", "notify-keyspace-events", ""]);
    redis(&["XADD", "presence:{7}:transitions", "*", "user", "7", "to", "online"]);

    let before = scene.in_redis();
    let (code, said) = scene.doctor("10m", &[]);
    assert_eq!(code, 1, "{said}");
    assert_eq!(scene.in_redis(), before, "a look changes nothing");
    assert_named(
        &said,
        &[
            "user 2 is in the live set until 20",
            "has no presence key: somebody deleted it",
            "user 3 has a presence key (it expires at 20",
            "is not in the live set: somebody removed the member",
            "user 4 has a presence key that expires at 20",
            "user 5 has a presence key that expires never",
            "user 6 has a presence key that is a string and no hash",
            "user 7 has the status 'away' in the presence key, and its sessions come to 'online'",
            "user 8 has the status 'online' in the presence key, and its sessions come to ''",
            "user 9 has the deadline",
            "'hello' is in presence:{0}:live",
            "user 10 is offline in users.online_status, and the newest row of presence_transitions says online",
            "user 11 is online in Redis and offline in SQL",
            "user 12 is offline in Redis and online in SQL",
            "user 13 may not be present by SQL, and is in the live set",
            "user 30 may not be present by SQL, and the fence does not hold the account",
            "user 31 may be present by SQL, and the fence holds the account",
            "user 999 is in the live set, and SQL has no such account",
            "user 16 has a history that does not chain",
            "user 17 has a history that does not chain",
            "transition(s) wait in shard 7, which nobody reads",
            "  by hand: nothing, for later ones",
            "remark: Redis publishes no expiry events",
            "disagreements: 19",
        ],
    );

    redis(&["DEL", "presence:{7}:transitions"]);
    let (code, said) = scene.doctor("10m", &["--repair"]);
    assert_eq!(code, 0, "{said}");
    assert_named(&said, &["mended: the key was made anew", "looking again", "all is well"]);
    assert!(!said.contains("not mended"), "{said}");
    let (code, said) = scene.doctor("10m", &[]);
    assert_eq!(code, 0, "{said}");

    assert_alternates(&scene.histories().await);
    let present = |user: i64| (2..=20).contains(&user) && ![12, 13].contains(&user);
    for user in 1..=40 {
        let expected = match user {
            16 | 17 => "away",
            user if present(user) => "online",
            _ => "offline",
        };
        assert_eq!(scene.status_in_sql(user).await, expected, "user {user}");
        let deadline = redis(&["ZSCORE", LIVE, &user.to_string()]);
        assert_eq!(deadline.is_empty(), !present(user), "user {user}");
        if present(user) {
            assert_eq!(redis(&["PEXPIRETIME", &key(user)]), deadline, "user {user}");
            assert_eq!(redis(&["HGET", &key(user), "status"]), expected, "user {user}");
        }
    }
    assert_eq!(redis(&["ZSCORE", LIVE, "hello"]) + &redis(&["ZSCORE", LIVE, "999"]), "");
    let blocked = redis(&["SMEMBERS", "presence:{0}:blocked"]);
    let mut blocked: Vec<_> = blocked.lines().collect();
    blocked.sort_unstable();
    assert_eq!(blocked, ["13", "30", "999"]);
    let last = scene.history(12).await.pop().unwrap();
    assert_eq!(last[..3], ["online", "offline", "expired"]);
    let last = scene.history(13).await.pop().unwrap();
    assert_eq!(last[..3], ["online", "offline", "blocked"]);
}

#[tokio::test]
async fn deadlines_and_transitions_that_nobody_takes_are_named_and_taken() {
    let scene = Scene::start(Database::Postgres, 10, Duration::from_secs(1), &[]).await;
    scene.say(2..=6, "online").await;
    scene.recorded().await;
    scene.service.kill9().await;
    scene.redis.cli(&["XGROUP", "DESTROY", STREAM, "persist"]);
    let now = scene.redis.cli(&["TIME"]).lines().next().unwrap().to_owned() + "000";
    let add = |fields: &[&str]| scene.redis.cli(&[&["XADD", STREAM, "*"], fields].concat());
    add(&["user", "7", "to", "online", "reason", "heartbeat", "at", &now, "seen", &now]);
    let odd = add(&["hello", "world"]);
    // A transition may wait some seconds before that is strange.
    let needles = [
        "5 deadline(s) of shard 0 have passed and nobody has claimed them, the first that of user 2",
        "2 transition(s) of shard 0 wait for SQL",
        "there is no consumer group 'persist'",
        &format!("1 entries of {STREAM} are no transitions, the first {odd}"),
    ];
    eventually(Duration::from_secs(40), async || {
        let (code, said) = scene.doctor("1s", &[]);
        let all = code == 1 && needles.iter().all(|needle| said.contains(needle));
        if all { Ok(()) } else { Err(said) }
    })
    .await;
    scene.redis.cli(&["XGROUP", "CREATE", STREAM, "persist", "0"]);
    scene.redis.cli(&["XREADGROUP", "GROUP", "persist", "dead", "COUNT", "2", "STREAMS", STREAM, ">"]);
    eventually(Duration::from_secs(40), async || {
        let (code, said) = scene.doctor("1s", &[]);
        if code == 1 && said.contains("the persister 'dead' took some and has not been heard for") {
            Ok(())
        } else {
            Err(said)
        }
    })
    .await;
    let (code, said) = scene.doctor("1s", &["--repair"]);
    assert_eq!(code, 0, "{said}");
    assert_named(&said, &["mended: claimed", "mended: written to SQL"]);
    for user in 2..=7 {
        assert_eq!(scene.status_in_sql(user).await, "offline", "user {user}");
    }
    assert_eq!(scene.redis.cli(&["XLEN", STREAM]), "0");
    assert_eq!(scene.redis.cli(&["ZCARD", LIVE]), "0");
    assert_alternates(&scene.histories().await);
    let consumers = scene.redis.cli(&["XINFO", "CONSUMERS", STREAM, "persist"]);
    assert!(!consumers.contains("presenced") && consumers.matches("name").count() <= 1, "{consumers}");
}

#[tokio::test]
async fn a_missing_fence_is_named_and_built() {
    let scene = Scene::start(Database::Sqlite, 5, LONG, &[]).await;
    scene.sql.run("UPDATE users SET status = 'banned' WHERE id = 4").await;
    scene.service.kill9().await;
    scene.redis.cli(&["FLUSHALL"]);
    let said = eventually(Duration::from_secs(40), async || {
        let (code, said) = scene.doctor("10m", &[]);
        if code == 1 { Ok(said) } else { Err(said) }
    })
    .await;
    assert_named(&said, &["shard 0 has no fence", "disagreements: 1", "nobody can be missed yet"]);
    assert_eq!(scene.redis.cli(&["DBSIZE"]), "0");
    let (code, said) = scene.doctor("10m", &["--repair"]);
    assert_eq!(code, 0, "{said}");
    assert_named(&said, &["mended: built anew from SQL"]);
    assert_eq!(scene.redis.cli(&["SMEMBERS", "presence:{0}:blocked"]), "4");
    assert_eq!(scene.doctor("10m", &[]).0, 0);
}

#[tokio::test]
async fn what_cannot_be_mended_by_a_program_stays_with_what_to_do() {
    let scene = Scene::start(Database::Sqlite, 3, LONG, &[]).await;
    let (database, redis) = (scene.database_url(), scene.redis.url());
    let env =
        [("DATABASE_URL", database.as_str()), ("REDIS_URL", redis.as_str()), ("PRESENCE_SHARDS", "4")];
    for arguments in [&[][..], &["--repair"]] {
        let (code, said) = run(&env, arguments);
        assert_eq!(code, 1, "{said}");
        assert_named(&said, &["used with 1 shard(s), and PRESENCE_SHARDS says 4", "PRESENCE_SHARDS=1"]);
    }
    scene.service.kill9().await;
    scene.redis.cli(&["SET", LIVE, "mine"]);
    let (code, said) = scene.doctor("10m", &["--repair"]);
    assert_eq!(code, 1, "{said}");
    assert_named(&said, &["presence:{0}:live is a string", "redis-cli DEL 'presence:{0}:live'", "not mended"]);
    assert_eq!(scene.redis.cli(&["GET", LIVE]), "mine");
}

#[tokio::test]
async fn where_it_cannot_look_it_says_so_and_ends_with_another_code() {
    let folder = tether::folder("doctor");
    let missing = format!("sqlite://{}", folder.path().join("none.db").display());
    let scene = Scene::start(Database::Sqlite, 1, LONG, &[]).await;
    let (database, redis) = (scene.database_url(), scene.redis.url());
    let cases = [
        (database.as_str(), "redis://127.0.0.1:1", "10m", "is REDIS_URL right"),
        ("postgres://nobody@127.0.0.1:1/none", redis.as_str(), "10m", "is DATABASE_URL right"),
        (missing.as_str(), redis.as_str(), "10m", "there is no database"),
        (database.as_str(), redis.as_str(), "soon", "from 1s to 1h"),
        (database.as_str(), "http://127.0.0.1", "10m", "redis://"),
    ];
    for (database, redis, ttl, must_say) in cases {
        let (code, said) =
            run(&[("DATABASE_URL", database), ("REDIS_URL", redis), ("PRESENCE_TTL", ttl)], &[]);
        assert_eq!(code, 2, "{said}");
        assert_named(&said, &[must_say]);
    }
    assert!(!folder.path().join("none.db").exists(), "a look makes no database");
}

#[tokio::test]
async fn the_embedded_default_is_examined_beside_the_running_service() {
    let service = Presenced::start(PresencedOptions::default()).await;
    let data = service.data().to_str().unwrap().to_owned();
    let (code, said) = run(&[("PRESENCE_DATA_DIR", &data)], &[]);
    assert_eq!(code, 0, "{said}");
    assert_named(&said, &["all is well", "1 accounts"]);
    assert_eq!(service.terminate().await, 0);
    let (code, said) = run(&[("PRESENCE_DATA_DIR", &data)], &["--repair"]);
    assert_eq!(code, 0, "{said}");
}

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
    let crowd = async |first: i64| -> usize {
        for round in 0_i64.. {
            for user in (first..=USERS).step_by(8) {
                // One in four is silent for four rounds at a time, and one of four words says away.
                if (user + round / 4) % 4 == 0 {
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
            let four = (0..4).map(|_| {
                let (database, redis) = (database.clone(), redis.clone());
                tokio::task::spawn_blocking(move || {
                    run(&[("DATABASE_URL", &database), ("REDIS_URL", &redis), ("PRESENCE_TTL", "1s")], &[])
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
    let rows = scene.sql.number("SELECT CAST(count(*) AS text) FROM presence_transitions").await;
    assert!(rows > USERS * 4, "the crowd was no crowd: {rows} rows");
    assert_alternates(&scene.histories().await);
}
