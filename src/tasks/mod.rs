//! The loops: sweep, listen, persist, reconcile, follow account changes, write `last_seen` behind.
//!
//! Each is a loop for ever that survives every failure of Redis and SQL, logs its beginning and its end, and owns no
//! truth: any number of instances run all of them side by side (invariant 8). A loop that ends by itself is a
//! defect; [`Tasks::failed`] reports it and the process ends rather than live on half alive.

mod accounts;
mod counts;
mod last_seen;
mod listen;
mod persist;
mod reconcile;
mod sweep;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;

use crate::live::LiveSet;
use crate::presence::PresenceService;
use crate::store::Store;

pub use counts::Counts;
pub use persist::{Drained, drain_all};
pub use reconcile::{Reconciled, reconcile_once};
pub use sweep::{Swept, sweep_once};

/// How long the persister's last batch may take when the process ends.
const FAREWELL: Duration = Duration::from_secs(3);

/// What every loop works with; clones share it.
#[derive(Clone)]
pub struct Context {
    /// Redis.
    pub live: LiveSet,
    /// SQL.
    pub store: Arc<dyn Store>,
    /// The service.
    pub presence: PresenceService,
    /// How often `last_seen` is written behind; zero for never.
    pub last_seen_flush: Duration,
    /// What the loops count.
    pub counts: Counts,
    /// Whether deadlines are swept. Off only in the test that shows what expiry events alone are worth.
    pub sweep: bool,
}

/// The running loops.
pub struct Tasks {
    loops: JoinSet<&'static str>,
    stop: watch::Sender<bool>,
}

/// Told by whoever suspects that deadlines have passed unheard.
pub(crate) type SweepNow = Arc<Notify>;

impl Tasks {
    /// Starts all loops.
    pub fn start(context: &Context) -> Self {
        let (stop, stopping) = watch::channel(false);
        let mut loops = JoinSet::new();
        let sweep_now: SweepNow = Arc::default();
        if context.sweep {
            for shard in context.live.shards() {
                let (context, now) = (context.clone(), sweep_now.clone());
                loops.spawn(named("sweep", async move { sweep::run(&context, shard, &now).await }));
            }
        }
        let (one, now) = (context.clone(), sweep_now.clone());
        loops.spawn(named("listen", async move { listen::run(&one, &now).await }));
        let one = context.clone();
        loops.spawn(named("reconcile", async move { reconcile::run(&one).await }));
        let one = context.clone();
        loops.spawn(named("accounts", async move { accounts::run(&one).await }));
        if !context.last_seen_flush.is_zero() {
            let one = context.clone();
            loops.spawn(named("last_seen", async move { last_seen::run(&one).await }));
        }
        // The persister alone has something in hand that is worth finishing.
        let one = context.clone();
        loops.spawn(async move {
            persist::run(&one, stopping).await;
            "persist"
        });
        Self { loops, stop }
    }

    /// Returns when a loop ends by itself, which none should, with its name.
    pub async fn failed(&mut self) -> String {
        match self.loops.join_next().await {
            Some(Ok(name)) => format!("the loop '{name}' has ended"),
            Some(Err(error)) => format!("a loop has failed: {error}"),
            None => "there are no loops".to_string(),
        }
    }

    /// Lets the persister finish its batch, and ends the others. A batch that takes too long is left: it is not
    /// acknowledged, and whoever comes next does it again.
    pub async fn stop(mut self) {
        self.stop.send_replace(true);
        let finished = async {
            while let Some(ended) = self.loops.join_next().await {
                if matches!(ended, Ok("persist")) {
                    break;
                }
            }
        };
        if tokio::time::timeout(FAREWELL, finished).await.is_err() {
            tracing::warn!("the persister's last batch took too long; it waits in Redis for the next start");
        }
        self.loops.shutdown().await;
    }
}

async fn named(name: &'static str, run: impl Future<Output = ()>) -> &'static str {
    run.await;
    name
}
