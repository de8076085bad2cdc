//! The bound: the least server that could answer a heartbeat.
//!
//! axum, one route, the token verified as a plain implementation does it, and the service's answer with a time that never
//! changes; no Redis, no limits, no metrics. What the service needs beyond this is what it costs. Without the token it is
//! the *bare* server, the bound of the bound.

use std::net::Ipv4Addr;
use std::str::FromStr;
use std::sync::Arc;

use anyhow::bail;
use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::serve::ListenerExt;
use jsonwebtoken::{Algorithm, DecodingKey, Validation, decode};
use serde::Deserialize;
use tokio::net::TcpListener;
use tokio::runtime::Builder;

use crate::support::mint::SECRET;

/// What the service answers, but for the time.
const ANSWER: &str =
    r#"{"message":"Heartbeat recorded","online_status":"online","last_seen":"2026-01-15T10:30:00.123Z"}"#;

/// Whether a floor looks at tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Door {
    /// It verifies them: the floor.
    Token,
    /// It does not: the bare server.
    Bare,
}

impl Door {
    /// The word for it on a command line.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Token => "token",
            Self::Bare => "bare",
        }
    }
}

impl FromStr for Door {
    type Err = anyhow::Error;
    fn from_str(word: &str) -> anyhow::Result<Self> {
        match word {
            "token" => Ok(Self::Token),
            "bare" => Ok(Self::Bare),
            other => bail!("a floor is 'token' or 'bare', not '{other}'"),
        }
    }
}

#[derive(Deserialize)]
struct Claims {
    user_id: i64,
    token_type: String,
}

struct Keys {
    secret: DecodingKey,
    rules: Validation,
}

/// Serves on this loopback port for as long as the process lives. One thread is a runtime without workers, the leanest
/// there is.
pub fn serve(port: u16, threads: usize, door: Door) -> anyhow::Result<()> {
    rlimit::increase_nofile_limit(u64::MAX)?;
    let runtime = match threads {
        1 => Builder::new_current_thread().enable_all().build()?,
        _ => Builder::new_multi_thread().worker_threads(threads).enable_all().build()?,
    };
    runtime.block_on(async {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await?;
        let mut rules = Validation::new(Algorithm::HS256);
        rules.leeway = 0;
        let keys = Arc::new(Keys { secret: DecodingKey::from_secret(SECRET.as_bytes()), rules });
        let route = match door {
            Door::Token => post(verified),
            Door::Bare => post(answer),
        };
        let app = Router::new().route("/api/users/heartbeat/", route).with_state(keys);
        let listener = listener.tap_io(|stream| {
            // The service does so too; without it an answer may wait for an acknowledgement.
            let _ = stream.set_nodelay(true);
        });
        // As a task, so that with several threads it is a worker that accepts.
        tokio::spawn(async move { axum::serve(listener, app).await }).await??;
        Ok(())
    })
}

async fn verified(State(keys): State<Arc<Keys>>, headers: HeaderMap) -> Response {
    let bearer =
        headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok()?.strip_prefix("Bearer "));
    let claims = bearer.and_then(|token| decode::<Claims>(token, &keys.secret, &keys.rules).ok());
    match claims {
        Some(token) if token.claims.token_type == "access" && token.claims.user_id > 0 => answer().await,
        _ => StatusCode::UNAUTHORIZED.into_response(),
    }
}

async fn answer() -> Response {
    ([(header::CONTENT_TYPE, "application/json")], ANSWER).into_response()
}
