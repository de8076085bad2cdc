//! Secrets in files: every secret has one, for every command, and a message names what was set and never what it holds.

use std::path::{Path, PathBuf};

use serde_json::json;

use super::commands::presenced;
use crate::api::{SOON, mint};
use crate::support::http::Api;
use crate::support::mint::{SECRET, access_token};
use crate::support::poll::eventually;
use crate::support::process::{Presenced, PresencedOptions};
use crate::support::redis::RedisServer;
use crate::support::tether;

/// Every setting that is a secret.
const SECRETS: [&str; 7] = [
    "DATABASE_URL",
    "REDIS_URL",
    "PRESENCE_ADMIN_PASSWORD",
    "PRESENCE_JWT_SECRET",
    "PRESENCE_TRUSTED_SECRETS",
    "PRESENCE_JWKS_URL",
    "PRESENCE_JWT_SHARED_SECRETS",
];

/// A variable and its value.
type Variable<'v> = (&'v str, &'v str);

/// Whether a command succeeded, and what it says.
fn run(data: &Path, env: &[Variable<'_>], arguments: &[&str]) -> (bool, String) {
    let output = presenced(data, env, arguments);
    let said = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&said).into_owned())
}

fn file(folder: &Path, name: &str, content: &str) -> PathBuf {
    let path = folder.join(name);
    std::fs::write(&path, content).unwrap();
    path
}

#[tokio::test]
async fn a_service_whose_secrets_are_all_in_files_works_by_them() {
    let (first, second) = ("the first trusted secret of a file", "and the second one that is as long");
    let redis = RedisServer::start(&[]).await;
    let folder = tether::folder("secrets");
    let database = folder.path().join("by-file.db");
    // Line ends of every kind, as editors, `echo` and other systems leave them.
    let files = [
        ("DATABASE_URL_FILE", format!("sqlite://{}\n", database.display())),
        ("REDIS_URL_FILE", format!("{}\r\n", redis.url())),
        ("PRESENCE_ADMIN_PASSWORD_FILE", "a password in a file\n".to_owned()),
        ("PRESENCE_JWT_SECRET_FILE", format!("{SECRET}\n\n")),
        ("PRESENCE_TRUSTED_SECRETS_FILE", format!("{first}\r\n{second}\n")),
    ];
    let mut env: Vec<(String, String)> = files
        .iter()
        .map(|(name, content)| {
            let path = file(folder.path(), name, content);
            ((*name).to_owned(), path.to_str().unwrap().to_owned())
        })
        .collect();
    // As a compose file passes on what is not set.
    let empty = ["DATABASE_URL", "PRESENCE_JWT_SECRET", "PRESENCE_JWKS_URL", "PRESENCE_JWKS_URL_FILE"];
    env.extend(empty.map(|name| (name.to_owned(), String::new())));
    let service = Presenced::start(PresencedOptions { env, ..PresencedOptions::default() }).await;
    let api = Api::new(service.base_url());
    eventually(SOON, async || {
        let (status, body, _) = api.get("/readyz", None).await;
        if status == 200 { Ok(()) } else { Err(body) }
    })
    .await;
    api.login_with("admin", "a password in a file").await;
    assert_eq!(api.heartbeat(&access_token(1, "phone")).await.0, 200, "signed with the secret of the file");
    assert_eq!(redis.cli(&["EXISTS", "presence:{0}:user:1"]).trim(), "1", "in the Redis of the file");
    for trusted in [first, second] {
        let token = mint(trusted, json!({"user_id": 1, "token_type": "access"}));
        assert_eq!(api.heartbeat(&token).await.0, 200, "{trusted}");
    }
    assert!(database.exists() && !service.data().join("presence.db").exists());
    assert_eq!(service.terminate().await, 0);
}

#[test]
fn commands_read_secrets_from_files_by_variable_and_by_flag() {
    let folder = tether::folder("command-secrets");
    let database = folder.path().join("by-file.db");
    let url = file(folder.path(), "url", &format!("sqlite://{}\n", database.display()));
    let data = folder.path().join("data");
    let (done, said) = run(&data, &[("DATABASE_URL_FILE", url.to_str().unwrap())], &["migrate"]);
    assert!(done && said.contains("applied: 0001"), "{said}");
    assert!(database.exists());
    let user = ["create-user", "--username", "ada", "--email", "ada@example.com", "--database-url-file"];
    let (done, said) = run(&data, &[], &[&user[..], &[url.to_str().unwrap()]].concat());
    assert!(done && said.contains("created: ada"), "{said}");
    assert!(!data.join("presence.db").exists());
}

#[test]
fn every_secret_may_be_set_once_and_its_file_must_hold_one() {
    let folder = tether::folder("secret-files");
    let good = file(folder.path(), "good", "hunter2\n");
    let empty = file(folder.path(), "empty", "\r\n");
    let [good, empty] = [&good, &empty].map(|path| path.to_str().unwrap());
    let data = folder.path().join("data");
    for secret in SECRETS {
        let file_of = format!("{secret}_FILE");
        for command in ["serve", "migrate", "doctor", "check-offline-users"] {
            let (done, said) = run(&data, &[(secret, "hunter3"), (&file_of, good)], &[command]);
            assert!(
                !done && said.contains(&format!("{secret} and {file_of} are both set")),
                "{command}: {said}"
            );
            assert!(!said.contains("hunter"), "{said}");
        }
        let (done, said) = run(&data, &[(&file_of, empty)], &[]);
        assert!(
            !done && said.contains(&format!("{file_of} names the file {empty}, which is empty")),
            "{said}"
        );
        let (done, said) = run(&data, &[(&file_of, "/no/such/file")], &[]);
        assert!(
            !done && said.contains(&format!("{file_of} names the file /no/such/file, which cannot")),
            "{said}"
        );
        let flag = secret.trim_start_matches("PRESENCE_").to_lowercase().replace('_', "-");
        let (done, said) = run(&data, &[(secret, "hunter3")], &[&format!("--{flag}-file={good}")]);
        assert!(!done && said.contains(&format!("{secret} and --{flag}-file are both set")), "{said}");
        assert!(!said.contains("hunter"), "{said}");
    }
    assert!(!data.exists(), "nothing was begun");
}

#[test]
fn a_message_about_a_setting_names_the_variable_the_flag_or_the_file_that_was_set() {
    let folder = tether::folder("named");
    let short = file(folder.path(), "short", "hunter2\n");
    let mysql = file(folder.path(), "mysql", "mysql://root:hunter2@localhost/x\n");
    let [short, mysql] = [&short, &mysql].map(|path| path.to_str().unwrap());
    let data = folder.path().join("data");
    let table: [(&[Variable<'_>], &[&str], String); 9] = [
        (&[("PRESENCE_JWT_SECRET", "hunter2")], &[], "PRESENCE_JWT_SECRET must be 32 bytes".into()),
        (&[], &["--jwt-secret=hunter2"], "--jwt-secret must be 32 bytes".into()),
        (
            &[("PRESENCE_JWT_SECRET_FILE", short)],
            &[],
            format!("PRESENCE_JWT_SECRET_FILE ({short}) must be 32 bytes"),
        ),
        (
            &[],
            &["--trusted-secrets-file", short],
            format!("--trusted-secrets-file ({short}) must each be 32 bytes"),
        ),
        (
            &[("DATABASE_URL_FILE", mysql)],
            &[],
            format!("DATABASE_URL_FILE ({mysql}) must begin with postgres://"),
        ),
        (&[("REDIS_URL_FILE", mysql)], &[], format!("REDIS_URL_FILE ({mysql}) must begin with redis://")),
        (
            &[("PRESENCE_JWKS_URL_FILE", mysql)],
            &[],
            format!("PRESENCE_JWKS_URL_FILE ({mysql}) must be a URL"),
        ),
        (&[("PRESENCE_TTL", "soon")], &[], "comes from the variable PRESENCE_TTL".into()),
        (&[], &["--admin-password="], "--admin-password is empty: leave it out".into()),
    ];
    for (env, arguments, message) in table {
        let (done, said) = run(&data, env, arguments);
        assert!(!done && said.contains(&message), "{message}: {said}");
        assert!(!said.contains("hunter2"), "{said}");
    }
}

#[test]
fn help_names_the_file_of_every_secret_and_what_is_trimmed() {
    let folder = tether::folder("help-files");
    let (_, said) = run(folder.path(), &[("PRESENCE_JWT_SECRET", "hunter2")], &["--help"]);
    let words = said.split_whitespace().collect::<Vec<_>>().join(" ");
    for secret in SECRETS {
        assert!(words.contains(&format!("[or in a file: {secret}_FILE]")), "{secret}: {said}");
    }
    assert!(words.contains("Line ends at the end of a secret are not part of it"), "{said}");
    assert!(!said.contains("hunter2"), "{said}");
}
