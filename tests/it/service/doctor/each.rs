//! Each disagreement, caused by hand while the service is stopped: named, and mended.

use super::super::{Database, Scene, assert_alternates};
use super::{LIVE, LONG, assert_named, key};

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
    cause_all(&scene).await;

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
            "user 18 is online in Redis and offline in SQL (users.online_status), and nothing is on its way: SQL's version",
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
            "disagreements: 20",
        ],
    );

    scene.redis.cli(&["DEL", "presence:{7}:transitions"]);
    let (code, said) = scene.doctor("10m", &["--repair"]);
    assert_eq!(code, 0, "{said}");
    assert_named(&said, &["mended: the key was made anew", "looking again", "all is well"]);
    assert!(!said.contains("not mended"), "{said}");
    let (code, said) = scene.doctor("10m", &[]);
    assert_eq!(code, 0, "{said}");

    assert_all_is_right(&scene).await;
}

/// What a write to the columns of presence needs, or a trigger puts it back.
const PAST_THE_TRIGGER: &str = "presence_writes = presence_writes + 1";

/// One user each, and what somebody did by hand.
async fn cause_all(scene: &Scene) {
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
    scene
        .sql
        .run(&format!("UPDATE users SET online_status = 'offline', {PAST_THE_TRIGGER} WHERE id = 10"))
        .await;
    scene.sql.run("DELETE FROM presence_transitions WHERE user_id = 11").await;
    scene
        .sql
        .run(&format!("UPDATE users SET online_status = 'offline', {PAST_THE_TRIGGER} WHERE id = 11"))
        .await;
    scene.sql.run("DELETE FROM presence_transitions WHERE user_id = 18").await;
    let ahead = format!(
        "UPDATE users SET online_status = 'offline', presence_version = presence_version * 2, {PAST_THE_TRIGGER} WHERE id = 18"
    );
    scene.sql.run(&ahead).await;
    redis(&["DEL", &key(12)]);
    redis(&["ZREM", LIVE, "12"]);
    scene.sql.run("UPDATE users SET status = 'suspended' WHERE id IN (13, 30)").await;
    redis(&["SADD", "presence:{0}:blocked", "31"]);
    redis(&["EVAL", "redis.call('ZADD', KEYS[1], redis.call('ZSCORE', KEYS[1], '14'), '999')", "1", LIVE]);
    redis(&["COPY", &key(14), &key(999)]);
    let ids = scene
        .sql
        .rows("SELECT CAST(id AS text) FROM presence_transitions WHERE user_id = 16 ORDER BY id")
        .await;
    scene.sql.run(&format!("DELETE FROM presence_transitions WHERE id = {}", ids[1][0])).await;
    let ids = scene
        .sql
        .rows("SELECT CAST(id AS text) FROM presence_transitions WHERE user_id = 17 ORDER BY id")
        .await;
    scene
        .sql
        .run(&format!("UPDATE presence_transitions SET from_status = 'offline' WHERE id = {}", ids[2][0]))
        .await;
    redis(&["CONFIG", "SET", "notify-keyspace-events", ""]);
    redis(&["XADD", "presence:{7}:transitions", "*", "user", "7", "to", "online"]);
}

async fn assert_all_is_right(scene: &Scene) {
    let redis = |arguments: &[&str]| scene.redis.cli(arguments);
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
    assert_eq!(blocked, ["0", "13", "30", "999"], "0 is the mark of a whole set");
    let last = scene.history(12).await.pop().unwrap();
    assert_eq!(last[..3], ["online", "offline", "expired"]);
    let last = scene.history(13).await.pop().unwrap();
    assert_eq!(last[..3], ["online", "offline", "blocked"]);
}

#[tokio::test]
async fn shared_login_names_and_missing_keys_are_named_and_keys_computed_again() {
    let scene = Scene::start(Database::Sqlite, 5, LONG, &[]).await;
    scene.service.kill9().await;
    scene
        .sql
        .run(
            "INSERT INTO users (username, email, password_hash) VALUES ('\u{fb01}n', 'fin@x', 'x'), ('fin', 'other@x', 'x'), \
             ('mark', 'mark@x', 'x')",
        )
        .await;
    scene.sql.run("DELETE FROM login_names WHERE name_key = 'mark'").await;
    // The first is marked still: to be completed is no fault.
    let (_, said) = scene.doctor("10m", &[]);
    assert!(!said.contains("same login name"), "{said}");
    let needles = ["has a login name whose key in login_names is missing", "user 8 ('mark')"];
    assert_named(&said, &needles);
    let (code, said) = scene.doctor("10m", &["--repair"]);
    assert_eq!(code, 1, "which of two keeps a name is not for a program to say: {said}");
    assert_named(
        &said,
        &["mended: the keys were computed again", "only people know which account keeps the name"],
    );
    assert_named(
        &said,
        &["account 6 has the username 'ﬁn', which is the same login name as the username 'fin' of account 7"],
    );
    scene.sql.run("UPDATE users SET username = 'another' WHERE id = 6").await;
    let (code, said) = scene.doctor("10m", &["--repair"]);
    assert_eq!(code, 0, "{said}");
}
