//! `presenced doctor`: what is wrong is named with its cause, `--repair` puts it right, and nothing is wrong where instances
//! are at work.

mod busy;
mod each;

use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::json;

use super::{Database, Scene, assert_alternates};
use crate::support::mint::access_token;
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
    let said =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
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

    /// All that Redis holds but the lock of the service's own comparison, which runs out; to show that a look changes nothing.
    fn in_redis(&self) -> String {
        let dump = "local all = {} for _, key in ipairs(redis.call('KEYS', '*')) do \
                    if not key:find(':verify') then \
                    all[#all + 1] = key .. redis.sha1hex(redis.call('DUMP', key)) .. redis.call('PEXPIRETIME', key) end end \
                    table.sort(all) return all";
        self.redis.cli(&["EVAL", dump, "0"])
    }

    pub async fn status_in_sql(&self, user: i64) -> String {
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
    assert_eq!(scene.redis.cli(&["ZCOUNT", LIVE, "(0", "+inf"]), "0");
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
    assert_eq!(
        scene.redis.cli(&["SMEMBERS", "presence:{0}:blocked"]),
        "0\n4",
        "4, and the mark of a whole set"
    );
    assert_eq!(scene.doctor("10m", &[]).0, 0);
}

#[tokio::test]
async fn a_repair_beside_a_running_instance_leaves_everyone_as_they_are() {
    let scene = Scene::start(Database::Sqlite, 10, LONG, &[("PRESENCE_LAST_SEEN_FLUSH", "0")]).await;
    scene.say(2..=5, "online").await;
    scene.recorded().await;
    scene.age_epoch();
    let before = scene.histories().await;
    scene.redis.cli(&["DEL", &key(2)]);
    scene.redis.cli(&["ZREM", LIVE, "3"]);
    scene.redis.cli(&["PERSIST", &key(4)]);
    let (code, said) = scene.doctor("10m", &["--repair"]);
    assert_eq!(code, 0, "{said}");
    // The service looks too, and knows of users who are in the live set; so the other two may be right before.
    let named = said.matches("disagreement: ").count();
    assert!((1..=3).contains(&named), "{said}");
    let counted = format!("disagreements: {named}, mended: {named}");
    assert_named(&said, &["user 3 has a presence key", &counted, "looking again", "all is well"]);
    for user in 2..=5 {
        assert_eq!(scene.status_in_sql(user).await, "online", "user {user}");
        let deadline = scene.redis.cli(&["ZSCORE", LIVE, &user.to_string()]);
        assert_eq!(scene.redis.cli(&["PEXPIRETIME", &key(user)]), deadline, "user {user}");
    }
    assert_eq!(scene.histories().await, before, "nobody came or went");
    scene.say(2..=5, "online").await;
    scene.recorded().await;
    assert_eq!(scene.histories().await, before);
    assert_eq!(scene.doctor("10m", &[]).0, 0);
}

#[tokio::test]
async fn a_session_that_ended_in_sql_alone_is_named_and_ended() {
    let scene = Scene::start(Database::Sqlite, 1, LONG, &[]).await;
    scene.api.register("ada").await;
    let tokens = scene.api.login("ada").await;
    assert_eq!(scene.api.heartbeat(&tokens.access).await.0, 200);
    // While an instance runs it tells Redis itself.
    scene.service.kill9().await;
    let now = chrono::Utc::now().to_rfc3339_opts(chrono::SecondsFormat::Millis, true);
    scene.sql.run(&format!("UPDATE login_sessions SET ended_at = '{now}'")).await;
    let (code, said) = scene.doctor("10m", &[]);
    assert_eq!(code, 1, "{said}");
    assert_named(&said, &["user 2 has the session ", "by SQL it has ended", "disagreements: 1"]);
    let (code, said) = scene.doctor("10m", &["--repair"]);
    assert_eq!(code, 0, "{said}");
    assert_eq!(scene.redis.cli(&["EXISTS", &key(2)]), "0");
    let history = scene.history(2).await;
    assert_eq!(history.last().unwrap()[..3], ["online", "offline", "logout"], "{history:?}");
}

#[tokio::test]
async fn what_cannot_be_mended_by_a_program_stays_with_what_to_do() {
    let scene = Scene::start(Database::Sqlite, 3, LONG, &[]).await;
    let (database, redis) = (scene.database_url(), scene.redis.url());
    let env = [("DATABASE_URL", database.as_str()), ("REDIS_URL", redis.as_str()), ("PRESENCE_SHARDS", "4")];
    for arguments in [&[][..], &["--repair"]] {
        let (code, said) = run(&env, arguments);
        assert_eq!(code, 1, "{said}");
        assert_named(&said, &["used with 1 shard(s), and PRESENCE_SHARDS says 4", "PRESENCE_SHARDS=1"]);
    }
    scene.service.kill9().await;
    scene.redis.cli(&["SET", LIVE, "mine"]);
    let (code, said) = scene.doctor("10m", &["--repair"]);
    assert_eq!(code, 1, "{said}");
    assert_named(
        &said,
        &["presence:{0}:live is a string", "redis-cli DEL 'presence:{0}:live'", "not mended"],
    );
    assert_eq!(scene.redis.cli(&["GET", LIVE]), "mine");
}

#[tokio::test]
async fn counts_against_limits_are_none_of_its_business() {
    let scene = Scene::start(Database::Sqlite, 1, LONG, &[("PRESENCE_RATE_LIMITS", "on")]).await;
    let body = json!({"username": "nobody", "password": "no"});
    assert_eq!(scene.api.post("login/", None, &body).await.0, 401);
    assert_eq!(scene.redis.cli(&["EXISTS", "presence:limit:login:address:127.0.0.1"]), "1");
    let (code, said) = scene.doctor("10m", &[]);
    assert_eq!(code, 0, "{said}");
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
