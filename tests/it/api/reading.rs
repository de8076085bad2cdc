//! Lists as dashboards poll them: answers that are shared, marks, and cursors.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use reqwest::Method;
use serde_json::{Value, json};

use super::{Engine, Stage, access, column, complaint, on_both_databases, problem};
use crate::support::http::{Answer, send};

on_both_databases!(
    a_write_that_was_answered_is_in_every_list_asked_for_after_it,
    who_has_the_list_already_is_told_so,
    a_changed_role_counts_for_the_next_list,
    a_walk_by_cursors_meets_every_account_once_while_others_come_and_go,
    a_walk_over_who_is_online_meets_everybody_once,
    a_cursor_stands_alone_and_belongs_to_its_list,
);

/// Accounts made by plain SQL, with the ids that follow.
async fn add(stage: &Stage, names: impl Iterator<Item = String>) {
    let rows: Vec<String> = names.map(|name| format!("('{name}', '{name}@mail.example', '!')")).collect();
    stage
        .sql
        .run(&format!("INSERT INTO users (username, email, password_hash) VALUES {}", rows.join(", ")))
        .await;
}

async fn page(stage: &Stage, path: &str) -> Value {
    let (status, body, _) = stage.api.get(path, Some(&stage.admin)).await;
    assert_eq!(status, 200, "{path}: {body}");
    body
}

/// Many ask the same all the time, and some of them hang up: nobody gets an answer that began before the question, and
/// nobody gets none.
async fn a_write_that_was_answered_is_in_every_list_asked_for_after_it(engine: Engine) {
    const WRITERS: i64 = 4;
    let stage = Stage::start(engine).await;
    add(&stage, (0..300).map(|number| format!("user{number}"))).await;
    let over = Arc::new(AtomicBool::new(false));
    let answered = Arc::new(AtomicUsize::new(0));
    let path = "admin/users/?per_page=1000";
    let crowd: Vec<_> = (0..24)
        .map(|number| {
            let (api, admin) = (stage.api.clone(), stage.admin.clone());
            let (over, answered) = (Arc::clone(&over), Arc::clone(&answered));
            tokio::spawn(async move {
                while !over.load(Ordering::Relaxed) {
                    let asked = api.get(path, Some(&admin));
                    if number % 2 == 0 {
                        assert_eq!(asked.await.0, 200);
                        answered.fetch_add(1, Ordering::Relaxed);
                    } else {
                        // Hangs up in the middle, mostly.
                        let _ = tokio::time::timeout(Duration::from_millis(3 + number), asked).await;
                    }
                }
            })
        })
        .collect();
    let writers = (0..WRITERS).map(|writer| {
        let stage = &stage;
        async move {
            let id = 2 + writer * 60;
            for round in 0..15 {
                let email = format!("{writer}-{round}@mail.example");
                stage.patch(id, json!({"email": email})).await;
                let list = page(stage, path).await;
                let user = list["results"].as_array().unwrap().iter().find(|user| user["id"] == id);
                assert_eq!(user.expect("everybody is listed")["email"], email);
                // And what Redis holds, which is read after SQL.
                let word = ["online", "away", "offline"][round % 3];
                assert_eq!(stage.set_status(id, word).await.0, 200);
                let list = page(stage, path).await;
                let user = list["results"].as_array().unwrap().iter().find(|user| user["id"] == id);
                assert_eq!(user.unwrap()["online_status"], word);
            }
        }
    });
    futures_util::future::join_all(writers).await;
    over.store(true, Ordering::Relaxed);
    for one in crowd {
        one.await.unwrap();
    }
    assert!(answered.load(Ordering::Relaxed) > 50, "there was a crowd");
}

async fn if_changed(stage: &Stage, path: &str, token: &str, known: &str) -> Answer {
    send(stage.api.request(Method::GET, path, Some(token)).header("if-none-match", known)).await
}

async fn who_has_the_list_already_is_told_so(engine: Engine) {
    let stage = Stage::start(engine).await;
    add(&stage, ["ada", "bob"].map(str::to_owned).into_iter()).await;
    let bob = access(3);
    for token in [&bob, &stage.admin] {
        assert_eq!(stage.api.heartbeat(token).await.0, 200);
    }
    // A page of people who are away changes with none of their heartbeats, for they send none.
    let path = "all-users/?online_status=offline";
    let (status, first, headers) = stage.api.get(path, Some(&bob)).await;
    assert_eq!((status.as_u16(), column(&first, "results", "username")), (200, vec![json!("ada")]));
    let tag = headers["etag"].to_str().unwrap().to_owned();
    assert!(tag.starts_with('"') && tag.len() > 20, "{tag}");
    assert_eq!(
        (&headers["cache-control"], &headers["vary"]),
        (&"private, no-cache".parse().unwrap(), &"authorization".parse().unwrap())
    );
    let (status, body, headers) = if_changed(&stage, path, &bob, &tag).await;
    assert_eq!((status.as_u16(), body), (304, Value::Null));
    assert_eq!(
        (headers["etag"].to_str().unwrap(), &headers["cache-control"]),
        (tag.as_str(), &"private, no-cache".parse().unwrap())
    );
    // A request is an activity, whatever its answer.
    assert!(headers.contains_key("x-content-type-options"));
    // What an administrator sees is another text.
    stage.sql.run("UPDATE users SET role = 'admin' WHERE id = 3").await;
    let (status, body, _) = if_changed(&stage, path, &bob, &tag).await;
    assert_eq!((status.as_u16(), &body["results"][0]["email"]), (200, &json!("ada@mail.example")));
    stage.sql.run("UPDATE users SET role = 'user' WHERE id = 3").await;
    assert_eq!(if_changed(&stage, path, &bob, &tag).await.0, 304, "as it was");
    stage.sql.run("UPDATE users SET username = 'eve' WHERE id = 2").await;
    let (status, body, headers) = if_changed(&stage, path, &bob, &tag).await;
    assert_eq!((status.as_u16(), &body["results"][0]["username"]), (200, &json!("eve")));
    assert_ne!(headers["etag"].to_str().unwrap(), tag);
    // Who is on the page himself has just been seen: the page is another.
    let (_, _, headers) = stage.api.get("all-users/", Some(&bob)).await;
    let tag = headers["etag"].to_str().unwrap().to_owned();
    assert_eq!(if_changed(&stage, "all-users/", &bob, &tag).await.0, 200);
    let refused = stage.api.get("admin/users/", Some(&bob)).await;
    problem(&refused, 403);
    assert_eq!(refused.2["cache-control"], "no-store");
    assert!(!refused.2.contains_key("etag"));
}

async fn a_changed_role_counts_for_the_next_list(engine: Engine) {
    let stage = Stage::start(engine).await;
    add(&stage, ["ada", "bob"].map(str::to_owned).into_iter()).await;
    let ada = access(2);
    let lists = ["admin/users/", "admin/users/online/", "admin/users/?search=a", "all-users/?status=active"];
    for _ in 0..3 {
        for path in lists {
            problem(&stage.api.get(path, Some(&ada)).await, 403);
        }
        let found = stage.api.get("all-users/?search=mail.example", Some(&ada)).await.1;
        assert_eq!((&found["pagination"]["total"], &found["results"]), (&json!(0), &json!([])));
        stage.sql.run("UPDATE users SET role = 'admin' WHERE id = 2").await;
        for path in lists {
            let (status, body, _) = stage.api.get(path, Some(&ada)).await;
            assert_eq!(status, 200, "{path}: {body}");
        }
        let found = stage.api.get("all-users/?search=mail.example", Some(&ada)).await.1;
        assert_eq!(column(&found, "results", "username"), ["ada", "bob"]);
        stage.sql.run("UPDATE users SET role = 'user' WHERE id = 2").await;
    }
    stage.sql.run("DELETE FROM users WHERE id = 2").await;
    let gone = stage.api.get("all-users/", Some(&ada)).await;
    assert!([401, 403].contains(&gone.0.as_u16()), "{gone:?}");
}

/// From cursor to cursor to the end, with something done after each page; each user's id as often as it was met.
async fn walk(
    stage: &Stage,
    path: &str,
    list: &str,
    mut between: impl AsyncFnMut(usize),
) -> HashMap<i64, usize> {
    let mut met = HashMap::new();
    let mut next = String::new();
    for pages in 0.. {
        let part = page(stage, &format!("{path}&cursor={next}")).await;
        for id in column(&part, list, "id") {
            *met.entry(id.as_i64().unwrap()).or_default() += 1;
        }
        if !next.is_empty() {
            assert_eq!(part["pagination"]["page"], Value::Null);
        }
        match part["pagination"]["next_cursor"].as_str() {
            Some(cursor) => cursor.clone_into(&mut next),
            None => break,
        }
        between(pages).await;
        assert!(pages < 500, "a walk without end");
    }
    met
}

async fn a_walk_by_cursors_meets_every_account_once_while_others_come_and_go(engine: Engine) {
    let stage = Stage::start(engine).await;
    add(&stage, (0..120).map(|number| format!("stays{number}"))).await;
    let stay: Vec<i64> = (2..=121).filter(|id| id % 10 != 0).collect();
    for path in [
        "admin/users/?per_page=7",
        "all-users/?per_page=7&search=s",
        "all-users/?per_page=7&online_status=offline",
    ] {
        let met = walk(&stage, path, "results", async |pages| {
            // Of whom the walk has met, of whom it has not, and of itself; and newcomers.
            for id in [10 * (pages % 13), 121 - 10 * (pages % 12) - 1] {
                stage.sql.run(&format!("DELETE FROM users WHERE id = {id} AND id % 10 = 0")).await;
            }
            if pages < 12 {
                add(&stage, std::iter::once(format!("comes{pages}{}", path.len()))).await;
            }
        })
        .await;
        for id in &stay {
            assert_eq!(met.get(id), Some(&1), "{path}: {id}");
        }
        assert!(met.values().all(|times| *times == 1), "{path}: {met:?}");
    }
}

async fn a_walk_over_who_is_online_meets_everybody_once(engine: Engine) {
    let stage = Stage::start(engine).await;
    add(&stage, (0..40).map(|number| format!("user{number}"))).await;
    for id in 2..=41 {
        assert_eq!(stage.api.heartbeat(&access(id)).await.0, 200);
    }
    let walk = |path| {
        walk(&stage, path, "online_users", async |pages| {
            // Somebody overtakes everybody: once met, he is not met again.
            assert_eq!(stage.api.heartbeat(&access(41)).await.0, 200);
            assert!(pages < 50);
        })
    };
    let met = walk("admin/users/online/?per_page=3").await;
    for id in 2..=41 {
        assert_eq!(met.get(&id), Some(&1), "{id}: {met:?}");
    }
    // The administrator who walks is at the front again with every step.
    assert!(met.len() == 41 && met.values().all(|times| *times == 1), "{met:?}");
}

async fn a_cursor_stands_alone_and_belongs_to_its_list(engine: Engine) {
    let stage = Stage::start(engine).await;
    add(&stage, ["ada", "bob"].map(str::to_owned).into_iter()).await;
    assert_eq!(stage.api.heartbeat(&access(2)).await.0, 200);
    let of = |page: &Value| page["pagination"]["next_cursor"].as_str().expect("a cursor").to_owned();
    let users = of(&page(&stage, "admin/users/?per_page=1").await);
    let online = of(&page(&stage, "admin/users/online/?per_page=1").await);
    for path in [
        format!("all-users/?page=1&cursor={users}"),
        format!("admin/users/?cursor={users}&page=2"),
        format!("admin/users/online/?cursor={online}&page=1"),
        format!("all-users/?cursor={online}"),
        format!("admin/users/online/?cursor={users}"),
        "all-users/?cursor=nonsense".to_owned(),
        "admin/users/online/?cursor=%00".to_owned(),
    ] {
        complaint(&stage.api.get(&path, Some(&stage.admin)).await, 400, "cursor");
    }
    assert_eq!(column(&page(&stage, &format!("all-users/?cursor={users}")).await, "results", "id"), [2, 3]);
    let last = page(&stage, "all-users/?page=2&per_page=2").await;
    assert_eq!(last["pagination"]["next_cursor"], Value::Null);
}
