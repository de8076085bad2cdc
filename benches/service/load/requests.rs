//! Requests, made before the first is sent: what is measured is the server, not the minting of tokens.

use presenced::identity::token::{Keyring, Kind};
use presenced::model::{Millis, SessionId, UserId};
use serde::{Deserialize, Serialize};

use crate::support::mint::SECRET;

/// How long a token is good, ms: longer than any run.
const GOOD_FOR_MS: i64 = 24 * 3_600_000;

/// What is asked, by whom. Request `i` is by user `i mod users` and for path `i mod paths`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Requests {
    /// `GET` or `POST`; neither has a body.
    pub method: String,
    /// Below `/api/users/`.
    pub paths: Vec<String>,
    /// The first user's id.
    pub first: UserId,
    /// How many users there are, each with a token of its own.
    pub users: i64,
}

impl Requests {
    /// A heartbeat of each of these users.
    pub fn heartbeats(first: UserId, users: i64) -> Self {
        Self { method: "POST".into(), paths: vec!["heartbeat/".into()], first, users }
    }

    /// Pages, read by these users.
    pub fn pages(paths: Vec<String>, first: UserId, users: i64) -> Self {
        Self { method: "GET".into(), paths, first, users }
    }
}

/// The requests as bytes, one behind the other.
pub struct Prebuilt {
    bytes: Vec<u8>,
    ends: Vec<usize>,
}

impl Prebuilt {
    pub fn new(requests: &Requests) -> anyhow::Result<Self> {
        let ring = Keyring::new(SECRET, &[]);
        let now = Millis::from_utc(chrono::Utc::now());
        let Some(phone) = SessionId::parse("phone") else { anyhow::bail!("'phone' is no sid") };
        let users = usize::try_from(requests.users)?;
        let paths = requests.paths.len();
        // Every user with every path, where there are few of one of them; else one turn of the longer list.
        let all = if users.min(paths) <= 1 { users.max(paths) } else { users.max(paths) * paths.min(users) };
        let (mut bytes, mut ends) = (Vec::new(), Vec::with_capacity(all));
        for index in 0..all {
            let user = requests.first + i64::try_from(index % users)?;
            let token = ring.mint(Kind::Access, user, &phone, &format!("{user:022}"), now, GOOD_FOR_MS)?;
            let path = &requests.paths[index % paths];
            let method = &requests.method;
            let body = if method == "GET" { "" } else { "Content-Length: 0\r\n" };
            bytes.extend_from_slice(
                format!(
                    "{method} /api/users/{path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {token}\r\n{body}\r\n"
                )
                .as_bytes(),
            );
            ends.push(bytes.len());
        }
        Ok(Self { bytes, ends })
    }

    /// How many different ones there are.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// The request of this number; they come round again.
    pub fn at(&self, number: usize) -> &[u8] {
        let index = number % self.ends.len();
        let start = index.checked_sub(1).map_or(0, |before| self.ends[before]);
        &self.bytes[start..self.ends[index]]
    }
}
