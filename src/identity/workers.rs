//! Threads of their own for work that costs CPU: password hashes, signatures of issuers.
//!
//! On the threads that serve such work would hold up every heartbeat. Hence the bounds of a [`Workers`]: how much runs at once, how
//! much may wait, and for how long. What is too much is refused at once instead of growing a queue.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

/// Why a piece of work was not done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refused {
    /// Too much waits already, or it has waited for too long.
    Overloaded,
    /// The thread that had it died.
    Lost,
}

/// The bounds of a [`Workers`].
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    /// How many pieces of work run at once, each on a thread of its own.
    pub(super) at_once: usize,
    /// How many may wait.
    pub(super) queue: usize,
    /// How long one may wait.
    pub(super) patience: Duration,
}

/// See the module.
pub(super) struct Workers {
    threads: Threads,
    running: Arc<Semaphore>,
    waiting: AtomicUsize,
    bounds: Bounds,
}

impl Workers {
    /// Starts the threads.
    pub(super) fn start(bounds: Bounds) -> Self {
        Self {
            threads: Threads::start(bounds.at_once),
            running: Arc::new(Semaphore::new(bounds.at_once)),
            waiting: AtomicUsize::new(0),
            bounds,
        }
    }

    /// Runs `work` on a thread when one is free. Dropped while it waits, it is not run.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Refused> {
        let permit = self.admit().await?;
        self.threads.run(permit, work).await
    }

    /// Waits for a thread, unless too many wait already or it takes too long.
    async fn admit(&self) -> Result<OwnedSemaphorePermit, Refused> {
        let _place = Place::take(&self.waiting, self.bounds.queue).ok_or(Refused::Overloaded)?;
        let free = Arc::clone(&self.running).acquire_owned();
        match tokio::time::timeout(self.bounds.patience, free).await {
            Ok(Ok(permit)) => Ok(permit),
            Ok(Err(_)) | Err(_) => Err(Refused::Overloaded),
        }
    }
}

/// A place in the queue, given back however the wait ends: the client may hang up.
struct Place<'a>(&'a AtomicUsize);

impl<'a> Place<'a> {
    fn take(waiting: &'a AtomicUsize, queue: usize) -> Option<Self> {
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

/// As many threads as may work at once. Each keeps its memory for the next piece of work (a password hash takes 20 MiB); on the
/// runtime's own blocking threads, of which there are hundreds, each as good as another, that would be many times as much.
struct Threads {
    jobs: mpsc::Sender<Job>,
}

impl Threads {
    fn start(count: usize) -> Self {
        let (jobs, waiting) = mpsc::channel::<Job>();
        let waiting = Arc::new(Mutex::new(waiting));
        for _ in 0..count {
            let waiting = waiting.clone();
            std::thread::spawn(move || {
                loop {
                    let job = waiting.lock().unwrap_or_else(PoisonError::into_inner).recv();
                    let Ok(job) = job else { return };
                    // The caller that waits for the result learns of a panic by its absence.
                    let _ = catch_unwind(AssertUnwindSafe(job));
                }
            });
        }
        Self { jobs }
    }

    /// Runs `work`. The permit goes with it: a thread cannot be cancelled, so its core is free only when it is done,
    /// whether or not the caller still waits for the result.
    async fn run<T: Send + 'static>(
        &self,
        permit: OwnedSemaphorePermit,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Refused> {
        let (done, result) = oneshot::channel();
        let job = move || {
            let _permit = permit;
            let _ = done.send(work());
        };
        self.jobs.send(Box::new(job)).map_err(|_| Refused::Lost)?;
        result.await.map_err(|_| Refused::Lost)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_full_queue_refuses_at_once_and_a_short_patience_soon() {
        let workers = Workers::start(Bounds { at_once: 1, queue: 1, patience: Duration::from_millis(10) });
        let busy = Arc::clone(&workers.running).acquire_owned().await.unwrap();
        let (first, second) = tokio::join!(workers.run(|| "first"), workers.run(|| "second"));
        assert_eq!(first, Err(Refused::Overloaded), "waited in vain");
        assert_eq!(second, Err(Refused::Overloaded), "found the queue full");
        drop(busy);
        assert_eq!(workers.run(|| "third").await, Ok("third"), "places are given back");
    }

    #[tokio::test]
    async fn a_panic_loses_its_own_work_and_no_thread() {
        let workers = Workers::start(Bounds { at_once: 1, queue: 9, patience: Duration::from_mins(1) });
        assert_eq!(workers.run(|| panic!("on purpose")).await, Err::<(), _>(Refused::Lost));
        assert_eq!(workers.run(|| 7).await, Ok(7));
    }

    #[tokio::test]
    async fn no_more_runs_at_once_than_there_are_threads() {
        let workers = Workers::start(Bounds { at_once: 2, queue: 99, patience: Duration::from_mins(1) });
        let (running, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let work = || {
            let (running, most) = (running.clone(), most.clone());
            workers.run(move || {
                most.fetch_max(running.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                std::thread::yield_now();
                running.fetch_sub(1, Ordering::SeqCst);
            })
        };
        let all = futures_util::future::join_all((0..50).map(|_| work())).await;
        assert!(all.iter().all(Result::is_ok));
        assert!(most.load(Ordering::SeqCst) <= 2, "{most:?}");
    }
}
