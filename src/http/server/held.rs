//! The connections that are open, and how many may be.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::{AbortHandle, Id, JoinSet};
use tokio::time::Instant;

use super::patience::Watch;

/// Where room must be made, this part of all goes at once, so that a flood does not have them all looked through for each
/// newcomer.
const PART: usize = 64;
/// Between two lines that say that there are too many.
const SAY_AGAIN: Duration = Duration::from_mins(1);

/// The tasks of all connections, with their watches.
pub(super) struct Held {
    most: usize,
    /// With the number of its arrival: a tick may bring thousands.
    open: HashMap<Id, (Arc<Watch>, AbortHandle, u64)>,
    arrived: u64,
    tasks: JoinSet<()>,
    said: Option<Instant>,
}

impl Held {
    pub(super) fn new(most: usize) -> Self {
        Self { most: most.max(1), open: HashMap::new(), arrived: 0, tasks: JoinSet::new(), said: None }
    }

    pub(super) fn len(&self) -> usize {
        self.open.len()
    }

    /// Serves a connection.
    pub(super) fn hold(&mut self, watch: Arc<Watch>, serving: impl Future<Output = ()> + Send + 'static) {
        let handle = self.tasks.spawn(serving);
        self.arrived += 1;
        self.open.insert(handle.id(), (watch, handle, self.arrived));
    }

    /// Done when a connection has ended; for ever waiting where there is none.
    pub(super) async fn next_end(&mut self) {
        match self.tasks.join_next_with_id().await {
            Some(Ok((id, ()))) => drop(self.open.remove(&id)),
            Some(Err(error)) => drop(self.open.remove(&error.id())),
            None => std::future::pending().await,
        }
    }

    /// Closes those of which this is true.
    pub(super) fn close(&mut self, which: impl Fn(&Watch) -> bool) {
        self.open.retain(|_, (watch, handle, _)| {
            let goes = which(watch);
            if goes {
                tracing::debug!(stage = ?watch.stage(), "a connection took too long, and is closed");
                handle.abort();
            }
            !goes
        });
    }

    /// Whether there is room for one more, which is made where there is none: see the module above.
    pub(super) fn makes_room(&mut self) -> bool {
        if self.open.len() < self.most {
            return true;
        }
        if self.said.is_none_or(|said| said.elapsed() >= SAY_AGAIN) {
            self.said = Some(Instant::now());
            tracing::warn!(
                open = self.open.len(),
                "no more connections may be open: newcomers take the place of those that have been silent for longest; \
                 PRESENCE_MAX_CONNECTIONS sets the number"
            );
        }
        let place = |(id, (watch, _, arrival)): (&Id, &(Arc<Watch>, AbortHandle, u64))| {
            Some(((watch.rank()?, *arrival), *id))
        };
        let mut row: Vec<_> = self.open.iter().filter_map(place).collect();
        if row.is_empty() {
            return false;
        }
        let last = (self.most / PART).min(row.len() - 1);
        row.select_nth_unstable_by_key(last, |(place, _)| *place);
        for (_, id) in &row[..=last] {
            if let Some((_, handle, _)) = self.open.remove(id) {
                handle.abort();
            }
        }
        true
    }

    /// Cuts off what is left.
    pub(super) async fn end(mut self) {
        self.tasks.shutdown().await;
    }
}
