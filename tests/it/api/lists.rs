//! Pages, searches and filters.

use std::collections::HashSet;

use serde_json::{Value, json};

use super::{Engine, Stage, access, column, on_both_databases, problem};

on_both_databases!(
    every_page_together_holds_everybody_once,
    a_search_takes_its_letters_as_they_are,
    a_filter_by_presence_is_right_at_once,
    what_is_private_is_for_administrators,
);

/// Accounts made by plain SQL, as another service on the same database would; returns their ids in the order of names.
async fn add(stage: &Stage, names: &[String]) -> Vec<i64> {
    let rows: Vec<String> = names
        .iter()
        .map(|name| format!("('{name}', '{}@mail.example', '!')", name.replace(' ', "")))
        .collect();
    let sql = format!("INSERT INTO users (username, email, password_hash) VALUES {}", rows.join(", "));
    stage.sql.run(&sql).await;
    let mut ids = Vec::new();
    for row in stage.sql.rows("SELECT username, CAST(id AS text) AS text FROM users ORDER BY users.id").await
    {
        if names.contains(&row[0]) {
            ids.push(row[1].parse().unwrap());
        }
    }
    ids
}

async fn page(stage: &Stage, token: &str, path: &str) -> Value {
    let (status, body, _) = stage.api.get(path, Some(token)).await;
    assert_eq!(status, 200, "{path}: {body}");
    body
}

/// Where a page lies; whether others follow it is told by the cursor, and by the numbers.
fn whereabouts(page: &Value) -> Value {
    let mut pagination = page["pagination"].clone();
    let next = pagination.as_object_mut().unwrap().remove("next_cursor").expect("a cursor, or null");
    let number = |name: &str| pagination[name].as_i64().unwrap();
    assert_eq!(next.is_string(), number("page") < number("total_pages"), "{page}");
    pagination
}

async fn every_page_together_holds_everybody_once(engine: Engine) {
    let stage = Stage::start(engine).await;
    let names: Vec<String> = (0..119).map(|number| format!("user{number}")).collect();
    let ids = add(&stage, &names).await;
    for (path, list) in [("all-users/", "results"), ("admin/users/", "results")] {
        let first = page(&stage, &stage.admin, path).await;
        assert_eq!(
            whereabouts(&first),
            json!({"page": 1, "per_page": 50, "total": 120, "total_pages": 3}),
            "fifty a page where nobody says otherwise"
        );
        assert_eq!(first[list].as_array().unwrap().len(), 50);
        let mut seen = HashSet::new();
        for number in 1..=4 {
            let part = page(&stage, &stage.admin, &format!("{path}?page={number}&per_page=35")).await;
            assert_eq!(
                whereabouts(&part),
                json!({"page": number, "per_page": 35, "total": 120, "total_pages": 4})
            );
            let users = column(&part, list, "id");
            assert_eq!(users.len(), if number == 4 { 15 } else { 35 });
            seen.extend(users.iter().map(|id| id.as_i64().unwrap()));
        }
        assert_eq!(seen, ids.iter().copied().chain([1]).collect(), "each exactly once");
        let whole = page(&stage, &stage.admin, &format!("{path}?per_page=1000")).await;
        assert_eq!(whole[list].as_array().unwrap().len(), 120);
        let one = page(&stage, &stage.admin, &format!("{path}?per_page=1&page=120")).await;
        assert_eq!((column(&one, list, "id").len(), &one["pagination"]["total_pages"]), (1, &json!(120)));
        for past in ["page=4", "page=4294967295", "page=2&per_page=1000"] {
            let empty = page(&stage, &stage.admin, &format!("{path}?{past}")).await;
            assert_eq!((&empty[list], &empty["pagination"]["total"]), (&json!([]), &json!(120)), "{past}");
            assert_eq!(empty["online_count"], 1);
        }
    }

    // Those present, most recently seen first.
    let seen: Vec<i64> = ids.iter().copied().step_by(2).take(55).collect();
    for id in &seen {
        assert_eq!(stage.api.heartbeat(&access(*id)).await.0, 200);
    }
    let first = page(&stage, &stage.admin, "admin/users/online/").await;
    assert_eq!(first["online_count"], 56);
    assert_eq!(whereabouts(&first), json!({"page": 1, "per_page": 50, "total": 56, "total_pages": 2}));
    let rest = page(&stage, &stage.admin, "admin/users/online?page=2").await;
    let mut listed = column(&first, "online_users", "id");
    listed.retain(|id| *id != 1);
    let mut times = column(&first, "online_users", "last_seen");
    times.extend(column(&rest, "online_users", "last_seen"));
    assert!(
        times.windows(2).all(|pair| super::instant_ms(&pair[0]) >= super::instant_ms(&pair[1])),
        "{times:?}"
    );
    assert_eq!(listed[0], *seen.last().unwrap());
    assert_eq!(column(&rest, "online_users", "id").len(), 6);
    let past = page(&stage, &stage.admin, "admin/users/online/?page=9").await;
    assert_eq!((&past["online_users"], &past["online_count"]), (&json!([]), &json!(56)));
}

async fn a_search_takes_its_letters_as_they_are(engine: Engine) {
    let stage = Stage::start(engine).await;
    let names = ["Alpha", "alphabet", "50%", "under_score", "undexscore", "back\\slash", "sp ace", "star*"];
    let ids = add(&stage, &names.map(str::to_owned)).await;
    let user = access(ids[0]);
    let table: [(&str, &[&str]); 13] = [
        ("ALPHA", &["Alpha", "alphabet"]),
        ("phab", &["alphabet"]),
        ("%25", &["50%"]),
        ("_", &["under_score"]),
        ("r_s", &["under_score"]),
        ("%5C", &["back\\slash"]),
        ("p%20a", &["sp ace"]),
        ("p+a", &["sp ace"]),
        ("*", &["star*"]),
        ("'", &[]),
        ("%F0%9F%98%80", &[]),
        ("a%25a", &[]),
        ("nobody", &[]),
    ];
    for (search, found) in table {
        for token in [&user, &stage.admin] {
            let answer = page(&stage, token, &format!("all-users/?search={search}")).await;
            assert_eq!(column(&answer, "results", "username"), found, "{search}");
            assert_eq!(answer["pagination"]["total"], found.len());
        }
    }
    let everybody = page(&stage, &user, "all-users/?search=").await;
    assert_eq!(everybody["pagination"]["total"], names.len() + 1);
    // The e-mail addresses are searched for administrators alone.
    let by_mail = "all-users/?search=%40MAIL.example";
    assert_eq!(page(&stage, &stage.admin, by_mail).await["pagination"]["total"], names.len());
    assert_eq!(page(&stage, &user, by_mail).await["pagination"]["total"], 0);
    let narrowed = page(&stage, &stage.admin, "admin/users/?search=e&status=active&per_page=2&page=2").await;
    assert_eq!(narrowed["results"].as_array().unwrap().len(), 2);
}

async fn a_filter_by_presence_is_right_at_once(engine: Engine) {
    let stage = Stage::start(engine).await;
    let names: Vec<String> = (0..9).map(|number| format!("user{number}")).collect();
    let ids = add(&stage, &names).await;
    let mut truth: Vec<&str> = vec!["offline"; ids.len()];
    let words = ["online", "away", "offline"];
    for step in 0..60 {
        // Every user goes through every change, in a changing company.
        let (at, word) = ((step * 4) % ids.len(), words[(step * 7 + step / 9) % 3]);
        let (id, token) = (ids[at], access(ids[at]));
        let status = match word {
            "offline" => stage.set_status(id, word).await.0,
            word => stage.api.post("heartbeat/", Some(&token), &json!({"status": word})).await.0,
        };
        assert_eq!(status, 200);
        truth[at] = word;
        // The administrator who asks is online himself.
        let online_count = 1 + truth.iter().filter(|word| **word != "offline").count();
        for asked in words {
            let mut expected: Vec<i64> =
                ids.iter().zip(&truth).filter(|(_, is)| **is == asked).map(|(id, _)| *id).collect();
            if asked == "online" {
                expected.insert(0, 1);
            }
            let path = format!("all-users/?online_status={asked}");
            let answer = page(&stage, &stage.admin, &path).await;
            assert_eq!(column(&answer, "results", "id"), expected, "step {step}: {answer}");
            assert_eq!(answer["pagination"]["total"], expected.len());
            assert!(column(&answer, "results", "online_status").iter().all(|status| status == asked));
            assert_eq!(answer["online_count"], online_count, "whatever the filter");
        }
        let online = page(&stage, &stage.admin, "admin/users/online/?per_page=2").await;
        assert_eq!(
            (&online["online_count"], &online["pagination"]["total"]),
            (&json!(online_count), &json!(online_count))
        );
    }
    let nobody = page(&stage, &stage.admin, "all-users/?search=zzz&page=7&per_page=3").await;
    let present = 1 + truth.iter().filter(|word| **word != "offline").count();
    assert_eq!((&nobody["results"], &nobody["online_count"]), (&json!([]), &json!(present)));
    let mixed =
        page(&stage, &stage.admin, "admin/users/?search=USER&online_status=offline&status=active").await;
    assert_eq!(mixed["pagination"]["total"], ids.len() + 1 - present);
    let banned = page(&stage, &stage.admin, "admin/users/?status=banned").await;
    assert_eq!(banned["pagination"]["total"], 0);
}

async fn what_is_private_is_for_administrators(engine: Engine) {
    let stage = Stage::start(engine).await;
    let ids = add(&stage, &["ada".to_owned(), "bob".to_owned()]).await;
    let ada = access(ids[0]);
    let public = ["id", "is_active", "is_online", "last_seen", "online_status", "username"];
    let whole =
        ["email", "id", "is_active", "is_online", "last_seen", "online_status", "role", "status", "username"];
    for (token, path, expected) in [
        (&ada, "all-users/", public.as_slice()),
        (&ada, "all-users/?search=ada&online_status=online", &public),
        (&stage.admin, "all-users/", &whole),
        (&stage.admin, "admin/users/", &whole),
    ] {
        let answer = page(&stage, token, path).await;
        for user in answer["results"].as_array().unwrap() {
            let mut fields: Vec<_> = user.as_object().unwrap().keys().map(String::as_str).collect();
            fields.sort_unstable();
            assert_eq!(fields, expected, "{path}");
        }
        let mut members: Vec<_> = answer.as_object().unwrap().keys().map(String::as_str).collect();
        members.sort_unstable();
        assert_eq!(members, ["online_count", "pagination", "results"], "{path}: not degraded");
    }
    // To filter by what one may not see would show it.
    problem(&stage.api.get("all-users/?status=banned", Some(&ada)).await, 403);
    problem(&stage.api.get("all-users/", None).await, 401);
    let me = page(&stage, &ada, "me/").await;
    assert_eq!(me["user"].as_object().unwrap().len(), whole.len(), "one's own is not private");
}
