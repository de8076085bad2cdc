//! Clients that send heartbeats at a pace and write down what came of each.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use reqwest::Method;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::support::http::{Api, try_send};
use crate::support::mint::access_token;

/// A heartbeat and its answer.
#[derive(Debug, Clone)]
pub struct Beat {
    pub user: i64,
    pub sent: Instant,
    pub took: Duration,
    /// 0 where there was none.
    pub status: u16,
    pub retry_after: bool,
    /// The instant that the answer names, ms.
    pub seen_ms: Option<i64>,
}

pub struct Crowd {
    clients: JoinSet<Vec<Beat>>,
    over: Arc<AtomicBool>,
    refused: Arc<AtomicUsize>,
}

impl Crowd {
    /// Users 1 to `users`, shared out among `clients`, each of which sends one heartbeat every `pace`, of its users in a
    /// fixed but irregular order: some speak often, some are silent for long.
    pub fn start(api: &Api, users: i64, clients: i64, pace: Duration) -> Self {
        let (over, refused) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let mut tasks = JoinSet::new();
        for client in 0..clients {
            let (api, over, refused) = (api.clone(), over.clone(), refused.clone());
            let own: Vec<_> = (1..=users)
                .filter(|user| user % clients == client)
                .map(|user| (user, access_token(user, "phone")))
                .collect();
            tasks.spawn(async move {
                let mut beats = Vec::new();
                let mut pace = tokio::time::interval(pace);
                pace.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
                let mut dice = 0x9e37_79b9_u64.wrapping_mul(client.unsigned_abs() + 1);
                while !over.load(Ordering::Relaxed) {
                    pace.tick().await;
                    dice =
                        dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                    let (user, token) = &own[(dice >> 33) as usize % own.len()];
                    let sent = Instant::now();
                    let answer = try_send(api.request(Method::POST, "heartbeat/", Some(token))).await.ok();
                    let status = answer.as_ref().map_or(0, |(status, ..)| status.as_u16());
                    refused.fetch_add(usize::from(status != 200), Ordering::Relaxed);
                    let seen = answer.as_ref().and_then(|(_, body, _)| body["last_seen"].as_str());
                    let instant = |at| chrono::DateTime::parse_from_rfc3339(at).unwrap().timestamp_millis();
                    beats.push(Beat {
                        user: *user,
                        sent,
                        took: sent.elapsed(),
                        status,
                        seen_ms: seen.map(instant),
                        retry_after: answer.is_some_and(|(.., headers)| headers.contains_key("retry-after")),
                    });
                }
                beats
            });
        }
        Self { clients: tasks, over, refused }
    }

    /// How many heartbeats were refused, or found nobody, so far.
    pub fn refused(&self) -> usize {
        self.refused.load(Ordering::Relaxed)
    }

    /// Ends it; all that was sent, in no order.
    pub async fn end(self) -> Vec<Beat> {
        self.over.store(true, Ordering::Relaxed);
        self.clients.join_all().await.concat()
    }
}
