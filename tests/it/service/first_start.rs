//! The first start: nobody gets in before there is an administrator, and the operator always gets a way in.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::json;
use sqlx::{Connection, PgConnection};
use tokio::task::JoinSet;

use super::commands::presenced;
use crate::support::http::{Api, PASSWORD};
use crate::support::poll::eventually;
use crate::support::postgres::{Postgres, PrivatePostgres};
use crate::support::process::{Presenced, PresencedOptions};
use crate::support::redis::RedisServer;
use crate::support::sql::Sql;
use crate::support::tether;

const SOON: Duration = Duration::from_secs(15);

async fn start(data: &Path, env: &[(&str, &str)]) -> Presenced {
    Presenced::start(PresencedOptions {
        data: Some(data.to_path_buf()),
        env: env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
        ..PresencedOptions::default()
    })
    .await
}

async fn register(api: &Api, username: &str, email: &str) -> (u16, serde_json::Value) {
    let body = json!({"username": username, "email": email, "password": PASSWORD});
    let (status, body, _) = api.post("register/", None, &body).await;
    (status.as_u16(), body)
}

/// SQL lets the service in while strangers hammer at the door.
#[tokio::test]
async fn while_sql_is_late_no_stranger_takes_the_name_of_the_administrator() {
    let server = PrivatePostgres::start().await;
    let mut sql = PgConnection::connect(&server.url()).await.unwrap();
    sqlx::raw_sql("CREATE ROLE late LOGIN; REVOKE CONNECT ON DATABASE postgres FROM PUBLIC")
        .execute(&mut sql)
        .await
        .unwrap();
    let redis = RedisServer::start(&[]).await;
    let service = Presenced::start(PresencedOptions {
        database_url: Some(server.url().replace("postgres@", "late@")),
        redis_url: Some(redis.url()),
        ..PresencedOptions::default()
    })
    .await;
    let api = Api::new(service.base_url());
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let mut strangers = JoinSet::new();
    for number in 0..12 {
        let (api, stopped) = (api.clone(), stopped.clone());
        strangers.spawn(async move {
            let mut answers = std::collections::BTreeSet::new();
            while !*stopped.borrow() {
                answers.insert(register(&api, "admin", &format!("evil{number}@example.com")).await.0);
            }
            answers
        });
    }
    sqlx::raw_sql("GRANT CONNECT ON DATABASE postgres TO late; GRANT ALL ON SCHEMA public TO late")
        .execute(&mut sql)
        .await
        .unwrap();
    let password =
        eventually(SOON, async || service.printed("admin password: ").ok_or(service.stderr())).await;
    stop.send_replace(true);
    for answers in strangers.join_all().await {
        // 429: more passwords wait to be hashed than may.
        assert!(answers.iter().all(|status| [503, 409, 429].contains(status)), "{answers:?}");
    }
    // Redis is compared with SQL before the first login is taken.
    eventually(SOON, async || {
        let (status, body, _) = api.get("/readyz", None).await;
        if status == 200 { Ok(()) } else { Err(body) }
    })
    .await;
    let tokens = api.login_with("admin", &password).await;
    assert_eq!((tokens.user_id(), &tokens.user["role"]), (1, &json!("admin")));
    assert_eq!(register(&api, "ada", "ada@example.com").await.0, 201, "and then everybody may");
}

#[tokio::test]
async fn an_ordinary_account_with_the_administrator_s_name_is_said_loudly_and_keeps_nobody_out_for_ever() {
    for (username, email) in [("Admin", "x@example.com"), ("x", "ADMIN@presenced.invalid")] {
        let folder = tether::folder("taken-name");
        let data = folder.path().join("data");
        assert!(presenced(&data, &[], &["migrate"]).status.success());
        let sql = Sql::open(&format!("sqlite://{}", data.join("presence.db").display())).await;
        sql.run(&format!(
            "INSERT INTO users (username, email, password_hash) VALUES ('{username}', '{email}', 'x')"
        ))
        .await;
        let service = start(&data, &[("PRESENCE_ADMIN_PASSWORD", PASSWORD)]).await;
        let api = Api::new(service.base_url());
        let login = api.post("login/", None, &json!({"username": username, "password": PASSWORD})).await;
        for (status, body) in [register(&api, "ada", "ada@example.com").await, (login.0.as_u16(), login.1)] {
            assert_eq!((status, &body["code"]), (503, &json!("no_administrator")), "{body}");
            assert!(body["detail"].as_str().unwrap().contains("create-user --role admin"), "{body}");
        }
        assert!(login.2.contains_key("retry-after"));
        let said = service.stderr();
        for word in [
            "ERROR",
            "there is no administrator",
            &format!("'{username}' (id 1, user, active)"),
            "create-user",
        ] {
            assert!(said.contains(word), "{word}: {said}");
        }
        assert!(service.printed("no administrator: ").is_some(), "{}", service.stdout());
        let made = presenced(
            &data,
            &[],
            &["create-user", "--username", "root", "--email", "root@example.com", "--role", "admin"],
        );
        assert!(made.status.success(), "{made:?}");
        eventually(SOON, async || match register(&api, "ada", "ada@example.com").await {
            (201, _) => Ok(()),
            other => Err(other),
        })
        .await;
    }
}

#[tokio::test]
async fn a_password_of_the_operator_that_was_not_used_is_said_with_what_to_do() {
    let folder = tether::folder("unused");
    let data = folder.path().join("data");
    let (first, second) = ("the first password", "the second password");
    for (password, is_unused) in [(first, false), (first, false), (second, true)] {
        let service = start(&data, &[("PRESENCE_ADMIN_PASSWORD", password)]).await;
        let said = service.stderr();
        assert_eq!(said.contains("PRESENCE_ADMIN_PASSWORD was not used"), is_unused, "{said}");
        if is_unused {
            for word in ["'admin' (id 1, admin, active)", "reset-password --username 'admin'"] {
                assert!(said.contains(word), "{word}: {said}");
            }
            assert!(!said.contains(second), "{said}");
        }
        Api::new(service.base_url()).login_with("admin", first).await;
        assert_eq!(service.terminate().await, 0);
    }
}

#[tokio::test]
async fn a_start_where_accounts_are_and_none_can_administer_makes_the_administrator() {
    let folder = tether::folder("no-administrator");
    let data = folder.path().join("data");
    let user = ["create-user", "--username", "ada", "--email", "ada@example.com"];
    assert!(presenced(&data, &[], &user).status.success());
    let banned = [
        &user[..1],
        &["--username", "eve", "--email", "eve@example.com", "--role", "admin", "--status", "banned"],
    ];
    assert!(presenced(&data, &[], &banned.concat()).status.success());
    let service = start(&data, &[]).await;
    let password = service.printed("admin password: ").unwrap();
    Api::new(service.base_url()).login_with("admin", &password).await;
    assert!(service.stderr().contains("presenced reset-password --username admin"), "{}", service.stderr());
}

async fn a_lost_password_is_had_again(url: String) {
    let redis = RedisServer::start(&[]).await;
    let service = Presenced::start(PresencedOptions {
        database_url: Some(url.clone()),
        redis_url: Some(redis.url()),
        env: vec![("PRESENCE_ADMIN_PASSWORD".to_owned(), PASSWORD.to_owned())],
        ..PresencedOptions::default()
    })
    .await;
    let api = Api::new(service.base_url());
    let tokens = api.login_with("admin", PASSWORD).await;
    assert_eq!(api.heartbeat(&tokens.access).await.0, 200);
    let folder = tether::folder("reset");
    let reset = |arguments: &[&str]| {
        let output =
            presenced(folder.path(), &[("DATABASE_URL", &url)], &[&["reset-password"], arguments].concat());
        let said = [output.stdout, output.stderr].concat();
        (output.status.code().unwrap(), String::from_utf8(said).unwrap())
    };
    let (code, said) = reset(&["--username", "nobody"]);
    assert!(code == 1 && said.contains("no account with the name or e-mail address 'nobody'"), "{said}");
    // An empty line on standard input.
    let (code, said) = reset(&["--username", "admin", "--password-stdin"]);
    assert!(code == 1 && said.contains("must be 8 to 128 characters long"), "{said}");
    assert_eq!(api.heartbeat(&tokens.access).await.0, 200, "nothing has changed");
    let (code, said) = reset(&["--username", "ADMIN"]);
    assert!(code == 0 && said.contains("new password set: admin (id 1, admin, active)"), "{said}");
    let password = said.lines().find_map(|line| line.strip_prefix("password: ")).unwrap();
    eventually(SOON, async || match api.heartbeat(&tokens.access).await.0.as_u16() {
        401 => Ok(()),
        other => Err(other),
    })
    .await;
    let old = api.post("login/", None, &json!({"username": "admin", "password": PASSWORD})).await;
    assert_eq!(old.0, 401);
    api.login_with("admin", password).await;
}

#[tokio::test]
async fn a_lost_password_is_had_again_beside_the_running_service_on_sqlite() {
    let folder = tether::folder("reset");
    let url = format!("sqlite://{}", folder.path().join("presence.db").display());
    a_lost_password_is_had_again(url).await;
}

#[tokio::test]
async fn a_lost_password_is_had_again_beside_the_running_service_on_postgres() {
    let database = Postgres::database().await;
    a_lost_password_is_had_again(database.url.clone()).await;
}

/// A program of the test's own, which ends with it.
struct Child(std::process::Child);

impl Drop for Child {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The generated password is lost, the service goes on, and the log says how to have another.
#[tokio::test]
async fn a_closed_standard_output_ends_no_start_and_the_log_says_what_was_lost() {
    let folder = tether::folder("closed");
    let redis = RedisServer::start(&[]).await;
    let (data, log, port) = (folder.path().join("data"), folder.path().join("log"), tether::free_port());
    let mut command = Command::new(env!("CARGO_BIN_EXE_presenced"));
    command
        .env_remove("DATABASE_URL")
        .envs([("PRESENCE_LISTEN", format!("127.0.0.1:{port}")), ("REDIS_URL", redis.url())])
        .env("PRESENCE_DATA_DIR", &data)
        .stdin(Stdio::null())
        .stderr(std::fs::File::create(&log).unwrap());
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let _service = Child(command.stdout(writer).spawn().unwrap());
    let api = Api::new(&format!("http://127.0.0.1:{port}"));
    eventually(SOON, async || {
        let said = std::fs::read_to_string(&log).unwrap();
        if said.contains("could not be shown") { Ok(()) } else { Err(said) }
    })
    .await;
    eventually(SOON, async || {
        let body = json!({"username": "admin", "password": "not that one"});
        let answer =
            crate::support::http::try_send(api.request(reqwest::Method::POST, "login/", None).json(&body))
                .await;
        match answer {
            Ok((status, _, _)) if status == 401 => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    let reset = presenced(&data, &[], &["reset-password", "--username", "admin"]);
    let said = String::from_utf8(reset.stdout).unwrap();
    let password = said.lines().find_map(|line| line.strip_prefix("password: ")).unwrap();
    api.login_with("admin", password).await;
}
