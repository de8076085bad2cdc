//! What an operator of presence watches: heartbeats counted here, the live set and the stream measured when asked.

use std::sync::Arc;
use std::time::Duration;

use super::{Beat, PresenceError, PresenceService};
use crate::live::LiveError;
use crate::metrics::{Counters, Histogram, Registry};

/// How long a scrape may wait for Redis and SQL together; what has not answered by then is down.
const SCRAPE_PATIENCE: Duration = Duration::from_millis(1_800);

/// Upper bounds of the histogram of batch sizes; the last is the largest batch.
const BATCH_SIZES: [f64; 9] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0];

/// The words of the label `outcome`, in the order of [`outcome_index`].
const OUTCOMES: [&str; 6] =
    ["recorded", "blocked", "session_ended", "redis_unavailable", "redis_refuses", "overloaded"];

/// What the service counts of heartbeats.
#[derive(Debug, Clone)]
pub(super) struct Counts {
    heartbeats: Counters<6>,
    pub(super) batch_sizes: Histogram,
}

impl Counts {
    pub(super) fn new() -> Self {
        Self { heartbeats: Counters::new("outcome", OUTCOMES), batch_sizes: Histogram::new(BATCH_SIZES) }
    }

    pub(super) fn count(&self, outcome: &Result<Beat, PresenceError>) {
        self.heartbeats.at(outcome_index(outcome)).inc();
    }
}

const fn outcome_index(outcome: &Result<Beat, PresenceError>) -> usize {
    match outcome {
        Ok(_) => 0,
        Err(PresenceError::Blocked | PresenceError::NoSuchAccount) => 1,
        Err(PresenceError::SessionEnded) => 2,
        Err(PresenceError::RedisUnavailable(_) | PresenceError::Store(_)) => 3,
        Err(PresenceError::RedisRefuses(_)) => 4,
        Err(PresenceError::Overloaded) => 5,
    }
}

impl PresenceService {
    /// Enters what this room counts.
    pub fn register(&self, registry: &mut Registry) {
        let counts = &self.inner.counts;
        registry.counters(
            "heartbeats",
            "Heartbeats and other signs of life of a session, by what came of them",
            &counts.heartbeats,
        );
        registry.histogram(
            "heartbeat_batch_size",
            "Heartbeats in one call to Redis (the group commit)",
            &counts.batch_sizes,
        );
    }

    /// [`Self::measure`] as of at most a second ago, or as it is under way; empty where that failed. However many ask, one
    /// measurement a second is taken.
    pub async fn measured(&self) -> Arc<Registry> {
        let measuring = self.clone();
        let measured = self.inner.measured.get(|| async move { Arc::new(measuring.measure().await) }).await;
        measured.unwrap_or_default()
    }

    /// Measures what is not counted but looked up, and whether Redis and SQL answer; within 2 s whatever their state. What
    /// Redis alone knows is left out where it does not answer: a stale number would pass for a true one.
    pub async fn measure(&self) -> Registry {
        let inner = &self.inner;
        let (measures, database) = tokio::join!(
            tokio::time::timeout(SCRAPE_PATIENCE, inner.live.measure()),
            tokio::time::timeout(SCRAPE_PATIENCE, inner.store.ping())
        );
        let measures = measures.unwrap_or(Err(LiveError::Timeout));
        let mut now = Registry::default();
        let redis_up = !matches!(measures, Err(LiveError::Down | LiveError::Timeout));
        now.gauge("redis_up", "Whether Redis answers", truth(redis_up));
        now.gauge(
            "shards_down",
            "Shards whose Redis does not answer",
            match &measures {
                Ok(measures) => f64::from(measures.silent),
                Err(_) => f64::from(inner.live.shards().end),
            },
        );
        now.gauge("database_up", "Whether SQL answers", truth(matches!(database, Ok(Ok(())))));
        now.gauge(
            "heartbeats_waiting",
            "Heartbeats that wait in this process for their turn",
            number(inner.batcher.waiting() as u64),
        );
        match measures {
            Ok(measures) if measures.silent == 0 => {
                now.gauge("users_present", "Users who are online or away", number(measures.present));
                now.gauge(
                    "transitions_waiting",
                    "Transitions in Redis that SQL lacks",
                    number(measures.waiting),
                );
                now.gauge(
                    "transitions_oldest_waiting_seconds",
                    "For how long the oldest transition that SQL lacks has waited",
                    measures.oldest.as_secs_f64(),
                );
            }
            // A part would pass for the whole.
            Ok(measures) => {
                tracing::debug!(measures.silent, "a scrape goes without what some shards alone know");
            }
            Err(error) => tracing::debug!(%error, "a scrape goes without what Redis knows"),
        }
        now
    }
}

fn truth(is: bool) -> f64 {
    f64::from(u8::from(is))
}

/// Exact up to 2⁵³.
#[allow(clippy::cast_precision_loss)]
fn number(count: u64) -> f64 {
    count as f64
}
