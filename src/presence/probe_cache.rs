//! Single flight with a result that is reused for a while: an endpoint that anyone may poll costs the same however many
//! poll it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;

/// The latest result of a probe, which is valid for a while from the beginning of the probe. Callers that ask while a probe
/// is under way wait for it. It runs in a task of its own, so a client that hangs up neither cancels it for others nor can
/// start it over and over. Clones share one inside.
#[derive(Debug)]
pub(super) struct ProbeCache<T> {
    good_for: Duration,
    state: Arc<Mutex<State<T>>>,
}

#[derive(Debug)]
struct State<T> {
    latest: Option<(Instant, T)>,
    /// The callers that wait for the probe that is under way; `None` where none is.
    waiting: Option<Vec<oneshot::Sender<T>>>,
}

impl<T> Clone for ProbeCache<T> {
    fn clone(&self) -> Self {
        Self { good_for: self.good_for, state: Arc::clone(&self.state) }
    }
}

impl<T: Clone + Send + 'static> ProbeCache<T> {
    pub(super) fn new(good_for: Duration) -> Self {
        Self { good_for, state: Arc::new(Mutex::new(State { latest: None, waiting: None })) }
    }

    /// The latest result, or that of a probe that is under way or begins now. `None` where the probe panicked.
    pub(super) async fn get<F>(&self, probe: impl FnOnce() -> F) -> Option<T>
    where
        F: Future<Output = T> + Send + 'static,
    {
        let (answer, heard) = oneshot::channel();
        {
            let mut state = self.state();
            if let Some((begun, latest)) = &state.latest
                && begun.elapsed() < self.good_for
            {
                return Some(latest.clone());
            }
            if let Some(waiting) = &mut state.waiting {
                waiting.push(answer);
            } else {
                state.waiting = Some(vec![answer]);
                tokio::spawn(self.clone().run(probe()));
            }
        }
        heard.await.ok()
    }

    async fn run(self, probe: impl Future<Output = T> + Send + 'static) {
        let begun = Instant::now();
        // Of its own, so that a panic is an end like any other.
        let seen = tokio::spawn(probe).await;
        let mut state = self.state();
        let waiting = state.waiting.take().unwrap_or_default();
        if let Ok(seen) = seen {
            state.latest = Some((begun, seen.clone()));
            drop(state);
            for answer in waiting {
                let _ = answer.send(seen.clone());
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering::SeqCst};

    use tokio::sync::Semaphore;

    use super::*;

    const LONG: Duration = Duration::from_hours(1);

    /// Probes that return their numbers, each when it is released.
    #[derive(Clone)]
    struct Probes {
        count: Arc<AtomicU32>,
        go: Arc<Semaphore>,
    }

    impl Probes {
        fn new(may_go: usize) -> Self {
            Self { count: Arc::default(), go: Arc::new(Semaphore::new(may_go)) }
        }

        async fn probe(self) -> u32 {
            let number = self.count.fetch_add(1, SeqCst);
            self.go.acquire().await.unwrap().forget();
            number
        }
    }

    #[tokio::test]
    async fn a_thousand_callers_share_one_probe_while_its_result_is_valid() {
        let (kept, probes) = (ProbeCache::new(LONG), Probes::new(1));
        let asked = (0..1_000).map(|_| kept.get(|| probes.clone().probe()));
        let seen = futures_util::future::join_all(asked).await;
        assert!(seen.iter().all(|seen| *seen == Some(0)));
        assert_eq!(kept.get(|| probes.clone().probe()).await, Some(0), "later too");
        let (kept, probes) = (ProbeCache::new(Duration::ZERO), Probes::new(3));
        for number in 0..3 {
            assert_eq!(
                kept.get(|| probes.clone().probe()).await,
                Some(number),
                "what is too old is not given"
            );
        }
    }

    #[tokio::test]
    async fn one_probe_is_under_way_at_a_time_though_its_clients_hang_up() {
        let (kept, probes) = (ProbeCache::new(LONG), Probes::new(0));
        for _ in 0..100 {
            let asked = kept.get(|| probes.clone().probe());
            assert!(tokio::time::timeout(Duration::from_millis(1), asked).await.is_err());
        }
        probes.go.add_permits(1);
        assert_eq!((kept.get(|| probes.clone().probe()).await, probes.count.load(SeqCst)), (Some(0), 1));
    }

    #[tokio::test]
    async fn a_probe_that_panics_leaves_no_caller_waiting_and_the_next_one_runs() {
        let kept: ProbeCache<u32> = ProbeCache::new(LONG);
        assert_eq!(kept.get(|| async { panic!("on purpose") }).await, None);
        assert_eq!(kept.get(|| async { 7 }).await, Some(7));
    }
}
