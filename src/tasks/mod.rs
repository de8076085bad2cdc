//! The loops: sweep, listen, persist, reconcile, verify presence keys, follow account changes, tell of ended sessions,
//! complete login names, write `last_seen` behind, look after SQL.
//!
//! Each is a loop for ever that survives every failure of Redis and SQL, logs its beginning and its end, and owns no
//! truth: any number of instances run all of them side by side (invariant 8). A loop that ends by itself is a
//! defect; [`Tasks::failed`] reports it and the process ends rather than live on half alive.

mod accounts;
mod clock_watch;
mod counts;
mod deferral;
mod last_seen;
mod listen;
mod names;
mod persist;
mod reconcile;
mod session_ends;
mod sweep;
mod upkeep;
mod verify;

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout, timeout_at};

use crate::live::LiveSet;
use crate::presence::PresenceService;
use crate::presence::drill::drill;
use crate::store::Store;

pub use counts::Counts;
pub use persist::{Drained, drain_all};
pub use reconcile::{Reconciled, reconcile_once};
pub use sweep::{Swept, sweep_once};

/// How long it may take to take this process's name off what it shares with others.
const FAREWELL: Duration = Duration::from_millis(500);

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
    live: LiveSet,
    presence: PresenceService,
    loops: JoinSet<Ended>,
    stop: watch::Sender<Option<Instant>>,
}

/// Which loop has ended, and how.
struct Ended {
    name: &'static str,
    panicked: bool,
}

const PERSIST: &str = "persist";

/// Told by whoever suspects that deadlines have passed unheard.
pub(crate) type SweepNow = Arc<Notify>;

impl Tasks {
    /// Starts all loops.
    pub fn start(context: &Context) -> Self {
        let (stop, stopping) = watch::channel(None);
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
        loops.spawn(named(
            "reconcile",
            when_paired(context.live.clone(), async move { reconcile::run(&one).await }),
        ));
        let one = context.clone();
        loops.spawn(named(
            "verify",
            when_paired(context.live.clone(), async move { verify::run(&one).await }),
        ));
        let (one, names) = (context.clone(), Arc::<Notify>::default());
        let changed = names.clone();
        loops.spawn(named(
            "accounts",
            when_paired(context.live.clone(), async move { accounts::run(&one, &changed).await }),
        ));
        let one = context.clone();
        loops.spawn(named("names", async move { names::run(&one, &names).await }));
        let one = context.clone();
        loops.spawn(named(
            "session_ends",
            when_paired(context.live.clone(), async move { session_ends::run(&one).await }),
        ));
        let one = context.clone();
        loops.spawn(named("upkeep", async move { upkeep::run(&one).await }));
        if !context.last_seen_flush.is_zero() {
            let one = context.clone();
            loops.spawn(named(
                "last_seen",
                when_paired(context.live.clone(), async move { last_seen::run(&one).await }),
            ));
        }
        // The persister alone has something in hand that is worth finishing.
        let one = context.clone();
        loops.spawn(named(PERSIST, async move { persist::run(&one, stopping).await }));
        Self { live: context.live.clone(), presence: context.presence.clone(), loops, stop }
    }

    /// Returns when a loop ends by itself, which none should, and says which.
    pub async fn failed(&mut self) -> String {
        match self.loops.join_next().await {
            Some(Ok(Ended { name, panicked: true })) => format!("the loop '{name}' has panicked"),
            Some(Ok(Ended { name, panicked: false })) => format!("the loop '{name}' has ended"),
            Some(Err(error)) => format!("a loop has failed: {error}"),
            None => "there are no loops".to_string(),
        }
    }

    /// Lets the persister write what waits, taking no new batch after `until`, and ends the others; then hands over what is
    /// left. A batch that takes longer than until `cut` is not acknowledged, and whoever comes next does it again.
    pub async fn stop(mut self, until: Instant, cut: Instant) {
        self.stop.send_replace(Some(until));
        let finished = async {
            while let Some(ended) = self.loops.join_next().await {
                if matches!(ended, Ok(Ended { name: PERSIST, .. })) {
                    break;
                }
            }
        };
        if timeout_at(cut, finished).await.is_err() {
            tracing::warn!(
                "the persister's last batch took too long; it waits in Redis for whoever comes next"
            );
        }
        self.loops.shutdown().await;
        let resigning =
            Box::pin(async { tokio::join!(self.live.resign(), Box::pin(self.presence.resign())) });
        let _ = timeout(FAREWELL, resigning).await;
    }
}

/// Runs what carries something between SQL and Redis, from when both are known to be of one installation.
async fn when_paired(live: LiveSet, run: impl Future<Output = ()>) {
    live.verified().await;
    run.await;
}

/// Catches a panic, whose text the panic hook has printed, so that the loop can be named.
async fn named(name: &'static str, run: impl Future<Output = ()>) -> Ended {
    let run = async {
        drill(name);
        run.await;
    };
    let panicked = AssertUnwindSafe(run).catch_unwind().await.is_err();
    Ended { name, panicked }
}
