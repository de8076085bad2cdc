//! The HTTP contract, end to end: the real binary with a real Redis and a real PostgreSQL or SQLite.
//!
//! | module | asks about |
//! |---|---|
//! | [`activity`] | requests that leave the caller's presence as it is |
//! | [`attacks`] | strings and bodies that mean harm |
//! | [`errors`] | bad requests: each has its own answer, and every answer is a whole problem |
//! | [`outages`] | a dependency that is down, hung or overrun: a quick, honest answer, and the way back |
//! | [`hashes`] | password hashes that Django made |
//! | [`identity`] | accounts, logins and tokens |
//! | [`issuers`] | tokens of an existing product and of identity providers, minted by the real packages |
//! | [`shared_secrets`] | tokens of an existing product that signs and names its claims in its own way |
//! | [`claims_of_tokens`] | ids, sessions and times in tokens, at their bounds |
//! | [`forged`] | floods of forged tokens, which cost others nothing |
//! | [`rotation`] | a new secret, which logs nobody out |
//! | [`sessions`] | logouts, ended sessions, and what a Redis that forgets does to them |
//! | [`presence`] | heartbeats, activity and expiry |
//! | [`limits`] | how often somebody may try |
//! | [`names`] | what is one name, and what a refusal does not tell |
//! | [`lists`] | pages, searches and filters |
//! | [`reading`] | lists as dashboards poll them: shared answers, marks, cursors |
//! | [`admin`] | the administration |
//! | [`trail`] | what administrators leave behind, and that one of them is always left |
//! | [`account_rule`] | who may not be present, however that came about |

mod account_rule;
mod activity;
mod admin;
mod attacks;
mod claims_of_tokens;
mod errors;
mod forged;
mod hashes;
mod identity;
mod issuers;
mod limits;
mod lists;
mod names;
mod outages;
mod presence;
mod reading;
mod rotation;
mod sessions;
mod shared_secrets;
mod trail;

use std::time::Duration;

use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::{
    http::{Answer, Api, PASSWORD, Tokens},
    mint::{access_token, secret_variable},
    postgres::{Postgres, TestDatabase},
    process::{Presenced, PresencedOptions},
    redis::RedisServer,
    sql::Sql,
    tether,
};

/// Within which the contract wants a change of an account to count.
pub const AT_ONCE: Duration = Duration::from_secs(1);

/// For what has no bound in the contract: long enough for a machine that is busy with something else.
pub const SOON: Duration = Duration::from_secs(10);

/// The TTL where a test does not choose one.
pub const TTL_MS: i64 = 120_000;

/// Makes two tests of each `async fn name(engine: Engine)`.
macro_rules! on_both_databases {
    ($($name:ident),* $(,)?) => {
        mod postgres {
            $(#[tokio::test] async fn $name() { Box::pin(super::$name($crate::api::Engine::Postgres)).await; })*
        }
        mod sqlite {
            $(#[tokio::test] async fn $name() { Box::pin(super::$name($crate::api::Engine::Sqlite)).await; })*
        }
    };
}
use on_both_databases;

/// Which database a service stands on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Engine {
    Postgres,
    Sqlite,
}

/// A database of a test's own.
pub enum Database {
    Postgres(TestDatabase),
    Sqlite(TempDir),
}

/// A service with the servers it stands on, and an administrator.
pub struct Stage {
    // Fields drop in order: the service goes before its servers.
    pub service: Presenced,
    pub api: Api,
    pub redis: RedisServer,
    /// What an operator would type.
    pub sql: Sql,
    database: Database,
    /// An access token of the account `admin`, minted elsewhere.
    pub admin: String,
}

/// A row of the history.
#[derive(Debug, PartialEq, Eq)]
pub struct Recorded {
    pub to: String,
    pub reason: String,
    pub at_ms: i64,
}

impl Stage {
    pub async fn start(engine: Engine) -> Self {
        Self::with(engine, PresencedOptions::default()).await
    }

    /// [`start`](Self::start) with settings; where Redis and SQL are is filled in.
    pub async fn with(engine: Engine, options: PresencedOptions) -> Self {
        let database = match engine {
            Engine::Postgres => Database::Postgres(Postgres::database().await),
            Engine::Sqlite => Database::Sqlite(tether::folder("sqlite")),
        };
        Self::on(database, options).await
    }

    pub async fn on(database: Database, options: PresencedOptions) -> Self {
        let redis = RedisServer::start(&[]).await;
        let service = Presenced::start(settings(&redis, &database, options)).await;
        let api = Api::new(service.base_url());
        let sql = Sql::open(&database.url()).await;
        Self { service, api, redis, sql, database, admin: access(1) }
    }

    /// One more instance on the same Redis and SQL.
    pub async fn another(&self, options: PresencedOptions) -> (Presenced, Api) {
        let service = Presenced::start(settings(&self.redis, &self.database, options)).await;
        let api = Api::new(service.base_url());
        (service, api)
    }

    /// Registers `name` and logs in.
    pub async fn join(&self, name: &str) -> Tokens {
        self.api.register(name).await;
        self.api.login(name).await
    }

    /// The user as the administrator sees him at this moment.
    pub async fn user(&self, id: i64) -> Value {
        let (status, body, _) = self.api.get(&format!("admin/users/{id}/"), Some(&self.admin)).await;
        assert_eq!(status, 200, "{body}");
        body["user"].clone()
    }

    /// His status at this moment.
    pub async fn status(&self, id: i64) -> String {
        text(&self.user(id).await["online_status"])
    }

    /// Changes an account as the administrator.
    pub async fn patch(&self, id: i64, edit: Value) -> Value {
        let (status, body, _) = self.api.patch(&format!("admin/users/{id}/"), Some(&self.admin), &edit).await;
        assert_eq!(status, 200, "{body}");
        body["user"].clone()
    }

    pub async fn set_status(&self, id: i64, word: &str) -> Answer {
        let path = format!("admin/users/{id}/set-online-status/");
        self.api.post(&path, Some(&self.admin), &json!({"status": word})).await
    }

    /// When the user's presence ends, by Redis; -2 where he has none.
    pub fn deadline_ms(&self, id: i64) -> i64 {
        self.redis.cli(&["PEXPIRETIME", &presence_key(id)]).parse().expect("an instant")
    }

    /// The user's history, oldest first.
    pub async fn history(&self, id: i64) -> Vec<Recorded> {
        let query = format!(
            "SELECT to_status, reason, {} FROM presence_transitions WHERE user_id = {id} ORDER BY id",
            self.sql.ms("at")
        );
        let rows = self.sql.rows(&query).await.into_iter();
        rows.map(|row| Recorded {
            to: row[0].clone(),
            reason: row[1].clone(),
            at_ms: row[2].parse().expect("ms"),
        })
        .collect()
    }
}

impl Database {
    fn url(&self) -> String {
        match self {
            Self::Postgres(database) => database.url.clone(),
            Self::Sqlite(folder) => format!("sqlite://{}", folder.path().join("presence.db").display()),
        }
    }
}

fn settings(redis: &RedisServer, database: &Database, mut options: PresencedOptions) -> PresencedOptions {
    options.redis_url = Some(redis.url());
    options.database_url = Some(database.url());
    // Of two values the last wins: a test's own.
    options
        .env
        .splice(0..0, [secret_variable(), ("PRESENCE_ADMIN_PASSWORD".to_owned(), PASSWORD.to_owned())]);
    options
}

/// One variable among [`PresencedOptions`].
pub fn setting(name: &str, value: &str) -> PresencedOptions {
    PresencedOptions { env: vec![(name.to_owned(), value.to_owned())], ..PresencedOptions::default() }
}

pub fn presence_key(id: i64) -> String {
    format!("presence:{{0}}:user:{id}")
}

/// A token of these claims, with an hour to live.
pub fn mint(secret: &str, mut claims: Value) -> String {
    let soon = chrono::Utc::now().timestamp() + 3_600;
    claims.as_object_mut().expect("claims are an object").entry("exp").or_insert(soon.into());
    let key = EncodingKey::from_secret(secret.as_bytes());
    jsonwebtoken::encode(&Header::new(Algorithm::HS256), &claims, &key).expect("a token")
}

/// An access token minted elsewhere: of no session.
pub fn access(user: i64) -> String {
    access_token(user, "")
}

/// The claims of a token, unverified.
pub fn claims(token: &str) -> Value {
    use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
    let claims = token.split('.').nth(1).expect("three parts");
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(claims).expect("base64url")).expect("JSON")
}

/// Asserts that an answer is a whole problem of this status, and returns its body.
#[track_caller]
pub fn problem(answer: &Answer, expected: u16) -> &Value {
    let (status, body, headers) = answer;
    assert_eq!(status.as_u16(), expected, "{body}");
    assert_eq!(
        headers.get("content-type").map(reqwest::header::HeaderValue::as_bytes),
        Some(b"application/problem+json".as_slice()),
        "{body}"
    );
    assert_eq!(body["status"], expected, "{body}");
    for member in ["type", "title", "detail"] {
        assert!(body[member].as_str().is_some_and(|text| !text.is_empty()), "no {member}: {body}");
    }
    let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    match expected {
        401 => assert!(header("www-authenticate").is_some_and(|value| value.starts_with("Bearer")), "{body}"),
        405 => assert!(header("allow").is_some_and(|value| !value.is_empty()), "{body}"),
        429 | 503 => {
            let seconds: Option<u32> = header("retry-after").and_then(|value| value.parse().ok());
            assert!(seconds.is_some_and(|seconds| seconds > 0), "{headers:?}");
        }
        _ => {}
    }
    body
}

/// [`problem`] that complains about this field.
#[track_caller]
pub fn complaint(answer: &Answer, expected: u16, field: &str) {
    let body = problem(answer, expected);
    assert!(body["errors"][field][0].is_string(), "no complaint about {field}: {body}");
}

/// The text of a JSON string.
#[track_caller]
pub fn text(value: &Value) -> String {
    value.as_str().unwrap_or_else(|| panic!("no text: {value}")).to_owned()
}

/// An instant of an answer, which must have the one form that the contract knows: `2026-01-15T10:30:00.123Z`.
#[track_caller]
pub fn instant_ms(value: &Value) -> i64 {
    let text = text(value);
    let time = chrono::DateTime::parse_from_rfc3339(&text).expect("RFC 3339");
    assert_eq!(text, time.to_utc().format("%Y-%m-%dT%H:%M:%S%.3fZ").to_string());
    time.timestamp_millis()
}

/// The value of this field in each of the users of a page.
#[track_caller]
pub fn column(page: &Value, list: &str, field: &str) -> Vec<Value> {
    let users = page[list].as_array().unwrap_or_else(|| panic!("no {list}: {page}"));
    users.iter().map(|user| user[field].clone()).collect()
}
