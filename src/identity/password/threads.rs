//! Threads for nothing but hashing, and places in the queue before them.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};

use tokio::sync::{OwnedSemaphorePermit, oneshot};

use crate::identity::{IdentityError, Result};

/// A place in the queue, given back however the wait ends: the client may hang up.
pub(super) struct Place<'a>(&'a AtomicUsize);

impl<'a> Place<'a> {
    pub(super) fn take(waiting: &'a AtomicUsize, queue: usize) -> Option<Self> {
        let place = Self(waiting);
        (waiting.fetch_add(1, Ordering::Relaxed) < queue).then_some(place)
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

type Job = Box<dyn FnOnce() + Send>;

/// Threads for nothing but hashing, as many as may hash at once. Each keeps its 20 MiB for the next hash; on the
/// runtime's own blocking threads, of which there are hundreds, each as good as another, that would be many times as much.
pub(super) struct Threads {
    jobs: mpsc::Sender<Job>,
}

impl Threads {
    pub(super) fn start(count: usize) -> Self {
        let (jobs, waiting) = mpsc::channel::<Job>();
        let waiting = Arc::new(Mutex::new(waiting));
        for _ in 0..count {
            let waiting = waiting.clone();
            std::thread::spawn(move || {
                loop {
                    let job = waiting.lock().unwrap_or_else(PoisonError::into_inner).recv();
                    let Ok(job) = job else { return };
                    // Whoever waits for the result hears of a panic by its absence.
                    let _ = catch_unwind(AssertUnwindSafe(job));
                }
            });
        }
        Self { jobs }
    }

    /// Runs `work`. The permit goes with it: a thread cannot be cancelled, so its core is free only when it is done,
    /// whether or not anybody still waits for the result.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        permit: OwnedSemaphorePermit,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T> {
        let (done, result) = oneshot::channel();
        let job = move || {
            let _permit = permit;
            let _ = done.send(work());
        };
        let lost = || IdentityError::Internal("a password thread died".to_string());
        self.jobs.send(Box::new(job)).map_err(|_| lost())?;
        result.await.map_err(|_| lost())
    }
}
