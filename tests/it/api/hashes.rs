//! Password hashes that the real Django made: they let their owners in, are replaced by ours, and tell nobody apart.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{Engine, Stage, problem, text};
use crate::support::python::python;

super::on_both_databases!(every_hash_of_django_lets_its_owner_in_and_is_replaced);

/// How ours begin.
const OWN: &str = "$argon2id$v=19$m=19456,t=2,p=1$";

/// An account whose row holds this hash; its id.
async fn account(stage: &Stage, name: &str, hash: &str) {
    let hash = hash.replace('\'', "''");
    let row = format!("('{name}', '{name}@example.org', '{hash}')");
    stage.sql.run(&format!("INSERT INTO users (username, email, password_hash) VALUES {row}")).await;
}

async fn stored(stage: &Stage, name: &str) -> String {
    stage.sql.rows(&format!("SELECT password_hash FROM users WHERE username = '{name}'")).await[0][0].clone()
}

async fn try_login(stage: &Stage, name: &str, password: &str) -> super::Answer {
    stage.api.post("login/", None, &json!({"username": name, "password": password})).await
}

/// The one hash that Django makes of this password with this hasher, at its own default cost.
fn costly(password: &str, hasher: &str) -> String {
    let made = python("make_hashes.py", &["--costs", password]);
    let made = made.as_array().unwrap().iter().find(|made| made["hasher"] == hasher);
    text(&made.unwrap()["hash"])
}

async fn every_hash_of_django_lets_its_owner_in_and_is_replaced(engine: Engine) {
    let stage = Stage::start(engine).await;
    let made = python("make_hashes.py", &[]);
    let made = made.as_array().unwrap();
    let mut hashers = std::collections::BTreeSet::new();
    for (index, made) in made.iter().enumerate() {
        let (name, hash) = (format!("user{index}"), text(&made["hash"]));
        account(&stage, &name, &hash).await;
        let Value::String(password) = &made["password"] else {
            // Django's mark of an account without a password, and what could be taken for one.
            for password in ["", "!", &hash, &hash[1..]] {
                problem(&try_login(&stage, &name, password).await, 401);
            }
            continue;
        };
        hashers.insert(text(&made["hasher"]));
        // bcrypt looks at 72 bytes only: one more may be the same to it.
        let wrong = if made["hasher"] == "bcrypt" { format!("x{password}") } else { format!("{password}x") };
        problem(&try_login(&stage, &name, &wrong).await, 401);
        assert_eq!(stored(&stage, &name).await, hash, "a wrong password changes nothing");
        let first = stage.api.login_with(&name, password).await;
        let replaced = stored(&stage, &name).await;
        assert!(replaced.starts_with(OWN), "{made}: {replaced}");
        let second = stage.api.login_with(&name, password).await;
        assert_eq!(stored(&stage, &name).await, replaced, "ours stay");
        for tokens in [first, second] {
            assert_eq!(stage.api.get("me/", Some(&tokens.access)).await.0, 200, "no session has ended");
        }
    }
    assert_eq!(hashers.len(), 6, "{hashers:?}");
}

/// Both verify the same old hash, and only one of them replaces it; the other must not be told that its password is wrong.
#[tokio::test]
async fn two_logins_at_once_that_both_replace_the_hash_both_succeed() {
    let stage = Stage::start(Engine::Postgres).await;
    let hash = text(&python("make_hashes.py", &["correct horse battery"])[0]["hash"]);
    for round in 0..10 {
        let name = format!("user{round}");
        account(&stage, &name, &hash).await;
        let logins = (0..4).map(|_| try_login(&stage, &name, "correct horse battery"));
        for (status, body, _) in futures_util::future::join_all(logins).await {
            assert_eq!(status, 200, "{body}");
        }
        assert!(stored(&stage, &name).await.starts_with(OWN));
    }
}

#[tokio::test]
async fn a_hash_that_asks_for_too_much_is_refused_with_a_word_in_the_log() {
    let stage = Stage::start(Engine::Sqlite).await;
    let salt = "c29tZXNhbHRzb21lc2FsdA";
    for (name, hash, must_say) in [
        (
            "memory",
            format!("argon2$argon2id$v=19$m=4194304,t=1,p=1${salt}${salt}"),
            "4194304 KiB of memory, 262144 at most",
        ),
        (
            "time",
            format!("pbkdf2_sha256$2000000000$salt${}=", "A".repeat(43)),
            "2000000000 iterations, 5000000 at most",
        ),
        ("unknown", "md5$salt$5f4dcc3b5aa765d61d8327deb882cf99".to_owned(), "it is of none of the forms"),
    ] {
        account(&stage, name, &hash).await;
        let began = Instant::now();
        problem(&try_login(&stage, name, "password").await, 401);
        assert!(began.elapsed() < Duration::from_secs(5), "{name}: {:?}", began.elapsed());
        let log = stage.service.stderr();
        assert!(log.contains(must_say) && log.contains("set a new password"), "{name}: {log}");
        assert!(!log.contains("5f4dcc3b") && !log.contains(salt), "a hash is shown: {log}");
    }
}

/// A hash by Django's own default cost takes many times as long as one of ours, and only an account can have one. The
/// first refusal after the start is of an unknown name: it waits for what no login has shown yet.
#[tokio::test]
async fn a_refusal_takes_the_same_time_for_a_known_and_an_unknown_name_though_the_known_one_has_a_costly_hash()
 {
    const ROUNDS: usize = 7;
    let stage = Stage::start(Engine::Sqlite).await;
    account(&stage, "ada", &costly("correct horse battery", "pbkdf2_sha256")).await;
    stage.api.register("bob").await;
    let mut took: [Vec<Duration>; 3] = Default::default();
    for _ in 0..ROUNDS {
        // One after the other, so that what the machine does besides falls on all alike.
        for (took, name) in took.iter_mut().zip(["nobody", "ada", "bob"]) {
            let began = Instant::now();
            problem(&try_login(&stage, name, "wrong password").await, 401);
            took.push(began.elapsed());
        }
    }
    let [first_unknown, first_known, _] = took.each_ref().map(|took| took[0]);
    let medians = took.map(|mut took| {
        took.sort_unstable();
        took[ROUNDS / 2]
    });
    println!(
        "first unknown {first_unknown:?}, known {first_known:?}; medians of unknown, costly, ours: {medians:?}"
    );
    let [unknown, costly, ours] = medians;
    for other in [unknown, ours] {
        assert!(costly.abs_diff(other) < costly / 5, "{other:?} is told from {costly:?}");
    }
    // One each, on a machine that does other things besides: without what the start learns it is one in twenty.
    assert!(first_unknown * 3 > first_known, "{first_unknown:?} is told from {first_known:?}");
    // The owner himself waits for his verification alone, and the next time for ours.
    stage.api.login_with("ada", "correct horse battery").await;
    let began = Instant::now();
    stage.api.login_with("ada", "correct horse battery").await;
    assert!(began.elapsed() < costly / 2, "{:?}", began.elapsed());
}
