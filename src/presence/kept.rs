//! One look for all who ask within a while: what strangers may poll costs the same however many they are.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;

/// The latest result of a look, which is good for a while from the beginning of the look. Whoever asks while a look is
/// under way waits for it; it runs in a task of its own, so a client that hangs up takes nobody's answer along and cannot
/// have looks begun over and over. Clones share one inside.
#[derive(Debug)]
pub(super) struct Kept<T> {
    good_for: Duration,
    state: Arc<Mutex<State<T>>>,
}

#[derive(Debug)]
struct State<T> {
    latest: Option<(Instant, T)>,
    /// Those who wait for the look that is under way; `None` where none is.
    waiting: Option<Vec<oneshot::Sender<T>>>,
}

impl<T> Clone for Kept<T> {
    fn clone(&self) -> Self {
        Self { good_for: self.good_for, state: Arc::clone(&self.state) }
    }
}

impl<T: Clone + Send + 'static> Kept<T> {
    pub(super) fn new(good_for: Duration) -> Self {
        Self { good_for, state: Arc::new(Mutex::new(State { latest: None, waiting: None })) }
    }

    /// The latest result, or that of a look that is under way or begins now. `None` where the look panicked.
    pub(super) async fn get<F>(&self, look: impl FnOnce() -> F) -> Option<T>
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
                tokio::spawn(self.clone().run(look()));
            }
        }
        heard.await.ok()
    }

    async fn run(self, look: impl Future<Output = T> + Send + 'static) {
        let begun = Instant::now();
        // Of its own, so that a panic is an end like any other.
        let seen = tokio::spawn(look).await;
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

    /// Looks that give their numbers, each when it is let go on.
    #[derive(Clone)]
    struct Looks {
        count: Arc<AtomicU32>,
        go: Arc<Semaphore>,
    }

    impl Looks {
        fn new(may_go: usize) -> Self {
            Self { count: Arc::default(), go: Arc::new(Semaphore::new(may_go)) }
        }

        async fn look(self) -> u32 {
            let number = self.count.fetch_add(1, SeqCst);
            self.go.acquire().await.unwrap().forget();
            number
        }
    }

    #[tokio::test]
    async fn a_thousand_who_ask_while_a_result_is_good_share_one_look() {
        let (kept, looks) = (Kept::new(LONG), Looks::new(1));
        let asked = (0..1_000).map(|_| kept.get(|| looks.clone().look()));
        let seen = futures_util::future::join_all(asked).await;
        assert!(seen.iter().all(|seen| *seen == Some(0)));
        assert_eq!(kept.get(|| looks.clone().look()).await, Some(0), "later too");
        let (kept, looks) = (Kept::new(Duration::ZERO), Looks::new(3));
        for number in 0..3 {
            assert_eq!(kept.get(|| looks.clone().look()).await, Some(number), "what is too old is not given");
        }
    }

    #[tokio::test]
    async fn one_look_is_under_way_at_a_time_though_its_clients_hang_up() {
        let (kept, looks) = (Kept::new(LONG), Looks::new(0));
        for _ in 0..100 {
            let asked = kept.get(|| looks.clone().look());
            assert!(tokio::time::timeout(Duration::from_millis(1), asked).await.is_err());
        }
        looks.go.add_permits(1);
        assert_eq!((kept.get(|| looks.clone().look()).await, looks.count.load(SeqCst)), (Some(0), 1));
    }

    #[tokio::test]
    async fn a_look_that_panics_leaves_nobody_waiting_and_the_next_one_looks_again() {
        let kept: Kept<u32> = Kept::new(LONG);
        assert_eq!(kept.get(|| async { panic!("on purpose") }).await, None);
        assert_eq!(kept.get(|| async { 7 }).await, Some(7));
    }
}
