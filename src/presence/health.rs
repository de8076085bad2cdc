//! Whether Redis and SQL answer: what `GET /readyz` says.

use std::time::Duration;

use super::PresenceService;
use crate::live::LiveError;

/// How long each dependency may take to answer.
const PATIENCE: Duration = Duration::from_millis(1_900);
/// For how long a result for `readyz` or for a scrape is reused: anyone may poll both.
pub(super) const GOOD_FOR: Duration = Duration::from_secs(1);

const UNREACHABLE: &str = "unreachable";
const FAILS: &str = "answers with an error";

/// Whether each dependency answers; the text says in a few words what is wrong, and nothing about hosts or versions: anyone
/// may ask.
#[derive(Debug, Clone)]
pub struct Health {
    /// Redis.
    pub redis: Result<(), String>,
    /// SQL.
    pub database: Result<(), String>,
    /// What works and needs the operator's attention all the same; in as few words, and as little of where.
    pub warnings: Vec<String>,
}

impl PresenceService {
    /// Whether each dependency answers, as of a look at most a second old or one that is under way; within 2 s whatever their
    /// state. However many ask, one look a second is taken.
    pub async fn health(&self) -> Health {
        let looking = self.clone();
        let seen = self.inner.health.get(|| async move { looking.look().await }).await;
        let failed = || Err(FAILS.to_string());
        seen.unwrap_or_else(|| Health { redis: failed(), database: failed(), warnings: Vec::new() })
    }

    async fn look(&self) -> Health {
        let redis = async {
            let written = self.inner.live.takes_writes().await;
            written
                .inspect_err(|error| tracing::debug!(%error, "Redis is not ready"))
                .map_err(|error| brief(&error))
        };
        let database = async {
            let answered = self.inner.store.ping().await;
            answered.map_err(|error| {
                tracing::debug!(%error, "the database is not ready");
                if error.is_unavailable() { UNREACHABLE } else { FAILS }.to_string()
            })
        };
        let late = || Err("no answer in time".to_string());
        let (redis, database) =
            tokio::join!(tokio::time::timeout(PATIENCE, redis), tokio::time::timeout(PATIENCE, database));
        Health {
            redis: redis.unwrap_or_else(|_| late()),
            database: database.unwrap_or_else(|_| late()),
            warnings: self.warnings(),
        }
    }

    fn warnings(&self) -> Vec<String> {
        let evicts = self.inner.live.known_eviction_policy();
        evicts
            .map(|policy| format!("Redis may evict keys: its maxmemory-policy is {policy}"))
            .into_iter()
            .collect()
    }
}

/// What is wrong with Redis, in words that tell nothing else. Its own word for an error (`READONLY`, `OOM`) is no secret.
fn brief(error: &LiveError) -> String {
    match error {
        LiveError::Down => UNREACHABLE.into(),
        LiveError::Timeout => "no answer in time".into(),
        LiveError::Refused(reason) => {
            let word = reason.split_whitespace().next().unwrap_or_default();
            let is_plain = !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_uppercase());
            if is_plain { format!("takes no writes: {word}") } else { "takes no writes".into() }
        }
        _ => FAILS.into(),
    }
}
