//! The lane for statements that read every account: searches, filtered lists, and who is present by the mirror.
//!
//! Their cost grows with the number of accounts, and callers decide how many of them run. So they have a few connections of
//! their own, and other statements always find a connection and a core. A caller that gets no place soon is refused, so that
//! the bound of the whole call is kept.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::timeout;

use super::{Options, Result, StoreError};

/// Of all connections this part serves scans, one at least.
const PART: u32 = 4;
/// How many may wait for a place.
const MAY_WAIT: usize = 64;

/// The places of the lane.
#[derive(Debug)]
pub struct ScanLane {
    connections: u32,
    places: Semaphore,
    waiting: AtomicUsize,
    patience: Duration,
}

impl ScanLane {
    /// A lane beside a pool of these options, with `most` places at most.
    pub fn new(options: &Options, most: u32) -> Self {
        let connections = (options.max_connections / PART).clamp(1, most.max(1));
        Self {
            connections,
            places: Semaphore::new(connections as usize),
            waiting: AtomicUsize::new(0),
            // The other half of the bound is the statement's.
            patience: options.timeout / 2,
        }
    }

    /// How many connections the lane has.
    pub const fn connections(&self) -> u32 {
        self.connections
    }

    /// Waits for a place, which is taken until the permit is dropped.
    ///
    /// # Errors
    /// [`StoreError::Busy`] where none is free within half of the store's bound, and at once where too many wait.
    pub async fn enter(&self) -> Result<SemaphorePermit<'_>> {
        if let Ok(place) = self.places.try_acquire() {
            return Ok(place);
        }
        let _waiting = Waiting::among(&self.waiting).ok_or(StoreError::Busy)?;
        match timeout(self.patience, self.places.acquire()).await {
            Ok(Ok(place)) => Ok(place),
            _ => Err(StoreError::Busy),
        }
    }
}

/// Counts as waiting until it is dropped.
struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    fn among(all: &'a AtomicUsize) -> Option<Self> {
        let waiting = Self(all);
        (all.fetch_add(1, Ordering::Relaxed) < MAY_WAIT).then_some(waiting)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    fn lane(max_connections: u32, most: u32) -> ScanLane {
        ScanLane::new(&Options { max_connections, timeout: Duration::from_millis(400) }, most)
    }

    #[test]
    fn a_lane_has_a_quarter_of_the_connections_and_one_at_least() {
        for (max_connections, most, connections) in
            [(10, 9, 2), (10, 1, 1), (1, 9, 1), (40, 9, 9), (40, 0, 1)]
        {
            assert_eq!(lane(max_connections, most).connections(), connections);
        }
    }

    #[tokio::test]
    async fn a_caller_that_gets_no_place_soon_is_refused_and_at_once_where_too_many_wait() {
        let lane = lane(4, 9);
        let held = lane.enter().await.unwrap();
        let begun = tokio::time::Instant::now();
        assert!(matches!(lane.enter().await, Err(StoreError::Busy)));
        assert!(begun.elapsed() >= Duration::from_millis(200), "half of the bound");
        let mut waiting: Vec<_> = (0..MAY_WAIT).map(|_| Box::pin(lane.enter())).collect();
        assert!(waiting.iter_mut().all(|one| one.as_mut().now_or_never().is_none()));
        assert!(matches!(lane.enter().now_or_never(), Some(Err(StoreError::Busy))));
        waiting.pop();
        assert!(lane.enter().now_or_never().is_none(), "a caller that gives up leaves the line");
        drop(held);
        let first = waiting.remove(0).await.unwrap();
        drop((first, waiting));
        drop(lane.enter().await.unwrap());
    }
}
