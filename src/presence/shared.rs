//! Shared answers: equal questions that arrive while one is being answered share the next answer.
//!
//! The same natural batching as the group commit. Nobody joins an answer that is under way: it may have looked already,
//! and what the asker has just been told of a change of his would be missing from it. The next one begins after all who
//! share it have asked. A question that nobody else asks waits for nothing, and none waits long: an answer that takes its
//! time is overtaken by the next. A slow answer is cancelled when every client that waited for it has hung up: its work
//! is dropped, and a statement that it had begun in the database ends with it.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::{BoxFuture, Either, join_all, select};
use tokio::sync::oneshot;
use tokio::time::timeout;

/// Askers who may wait at once, whatever they ask.
const MOST_WAITING: usize = 16_384;

type Work<Q, C, A> = dyn Fn(Q, Vec<C>) -> BoxFuture<'static, Vec<A>> + Send + Sync;
type Waiting<C, A> = Vec<(C, oneshot::Sender<A>)>;

/// Why there is no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unanswered {
    /// More wait than may.
    TooManyWait,
    /// The work has panicked.
    Panicked,
}

/// Questions of the type `Q`, callers `C`, answers `A`; clones share one inside.
///
/// Answers are worked out in tasks of their own: a client that hangs up cancels no other client's answer.
pub struct Shared<Q, C, A> {
    inner: Arc<Inner<Q, C, A>>,
}

struct Inner<Q, C, A> {
    work: Box<Work<Q, C, A>>,
    head_start: Duration,
    open: Mutex<Open<Q, C, A>>,
}

/// The questions of which each has a task that answers it, with those who wait for the next answer.
struct Open<Q, C, A> {
    questions: HashMap<Q, Waiting<C, A>>,
    waiting: usize,
}

impl<Q, C, A> Clone for Shared<Q, C, A> {
    fn clone(&self) -> Self {
        Self { inner: Arc::clone(&self.inner) }
    }
}

impl<Q, C, A> Shared<Q, C, A>
where
    Q: Eq + Hash + Clone + Send + 'static,
    C: Send + 'static,
    A: Send + 'static,
{
    /// `work` answers a question for several callers, one answer each, in their order. The next answer begins when the one
    /// under way is there, or has had its head start: so long an asker waits at most before his begins.
    pub fn new(
        head_start: Duration,
        work: impl Fn(Q, Vec<C>) -> BoxFuture<'static, Vec<A>> + Send + Sync + 'static,
    ) -> Self {
        let open = Mutex::new(Open { questions: HashMap::new(), waiting: 0 });
        Self { inner: Arc::new(Inner { work: Box::new(work), head_start, open }) }
    }

    /// The answer, which begins after this call.
    pub async fn ask(&self, question: Q, caller: C) -> Result<A, Unanswered> {
        let (answer, heard) = oneshot::channel();
        {
            let mut open = self.inner.open();
            if open.waiting >= MOST_WAITING {
                return Err(Unanswered::TooManyWait);
            }
            open.waiting += 1;
            match open.questions.entry(question) {
                Entry::Occupied(mut waiting) => waiting.get_mut().push((caller, answer)),
                Entry::Vacant(place) => {
                    let task = Rounds { inner: Arc::clone(&self.inner), question: place.key().clone() };
                    place.insert(vec![(caller, answer)]);
                    tokio::spawn(task.run());
                }
            }
        }
        heard.await.map_err(|_| Unanswered::Panicked)
    }
}

impl<Q, C, A> Inner<Q, C, A> {
    /// Works an answer out and sends it. After the head start the work is cancelled when every caller has hung up; before that,
    /// to watch the callers would cost more than it saves.
    async fn answer(&self, question: Q, callers: Vec<C>, mut answers: Vec<oneshot::Sender<A>>) {
        let mut work = (self.work)(question, callers);
        let given = if let Ok(given) = timeout(self.head_start, &mut work).await {
            given
        } else {
            let abandoned = join_all(answers.iter_mut().map(oneshot::Sender::closed));
            match select(work, abandoned).await {
                Either::Left((given, _)) => given,
                Either::Right(_) => return,
            }
        };
        for (answer, given) in answers.into_iter().zip(given) {
            let _ = answer.send(given);
        }
    }

    fn open(&self) -> MutexGuard<'_, Open<Q, C, A>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The task of one question: it goes on as long as somebody waits.
struct Rounds<Q, C, A> {
    inner: Arc<Inner<Q, C, A>>,
    question: Q,
}

impl<Q, C, A> Rounds<Q, C, A>
where
    Q: Eq + Hash + Clone + Send + 'static,
    C: Send + 'static,
    A: Send + 'static,
{
    async fn run(self) {
        while let Some(waiting) = self.next() {
            // Who has hung up needs no answer.
            let (callers, answers): (Vec<_>, Vec<_>) =
                waiting.into_iter().filter(|(_, answer)| !answer.is_closed()).unzip();
            if callers.is_empty() {
                continue;
            }
            let (inner, question) = (Arc::clone(&self.inner), self.question.clone());
            // Of its own: where it panics those who wait for it are let go, and nobody else.
            let round = tokio::spawn(async move { inner.answer(question, callers, answers).await });
            let _ = timeout(self.inner.head_start, round).await;
        }
    }

    /// Those who wait now. Where nobody does the question is closed, in the same step: the next to ask opens it anew.
    fn next(&self) -> Option<Waiting<C, A>> {
        let mut open = self.inner.open();
        let waiting = std::mem::take(open.questions.get_mut(&self.question)?);
        open.waiting -= waiting.len();
        if waiting.is_empty() {
            open.questions.remove(&self.question);
            return None;
        }
        Some(waiting)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures_util::FutureExt;
    use tokio::sync::Semaphore;

    use super::*;

    /// A stand-in for the work that waits to be let go on, and answers each with the number of the round.
    struct Stage {
        shared: Shared<&'static str, u32, (usize, u32)>,
        go: Arc<Semaphore>,
        rounds: Arc<AtomicUsize>,
    }

    fn stage() -> Stage {
        stage_with(Duration::from_hours(1))
    }

    fn stage_with(head_start: Duration) -> Stage {
        let (go, rounds) = (Arc::new(Semaphore::new(0)), Arc::new(AtomicUsize::new(0)));
        let (gate, count) = (Arc::clone(&go), Arc::clone(&rounds));
        let shared = Shared::new(head_start, move |question: &'static str, callers: Vec<u32>| {
            let (gate, round) = (Arc::clone(&gate), count.fetch_add(1, Ordering::SeqCst));
            async move {
                gate.acquire().await.unwrap().forget();
                assert_ne!(question, "panic", "on purpose");
                callers.into_iter().map(|caller| (round, caller)).collect()
            }
            .boxed()
        });
        Stage { shared, go, rounds }
    }

    impl Stage {
        fn ask(
            &self,
            question: &'static str,
            caller: u32,
        ) -> tokio::task::JoinHandle<Result<(usize, u32), Unanswered>> {
            let shared = self.shared.clone();
            tokio::spawn(async move { shared.ask(question, caller).await })
        }

        /// Lets every task run as far as it comes.
        async fn settle(&self) {
            for _ in 0..50 {
                tokio::task::yield_now().await;
            }
        }
    }

    #[tokio::test]
    async fn who_asks_while_an_answer_is_under_way_shares_the_next_one() {
        let stage = stage();
        let first = stage.ask("a", 1);
        stage.settle().await;
        let others = [stage.ask("a", 2), stage.ask("a", 3)];
        let apart = stage.ask("b", 4);
        stage.settle().await;
        assert_eq!(stage.rounds.load(Ordering::SeqCst), 2, "nobody joins what is under way");
        stage.go.add_permits(3);
        assert_eq!(first.await.unwrap(), Ok((0, 1)));
        assert_eq!(apart.await.unwrap(), Ok((1, 4)));
        for (caller, other) in (2..).zip(others) {
            assert_eq!(other.await.unwrap(), Ok((2, caller)));
        }
        stage.settle().await;
        let open = stage.shared.inner.open();
        assert!(open.questions.is_empty() && open.waiting == 0, "nothing is kept of it");
    }

    #[tokio::test]
    async fn whose_leader_hangs_up_has_his_answer_all_the_same() {
        let stage = stage();
        let leader = stage.ask("a", 1);
        stage.settle().await;
        let other = stage.ask("a", 2);
        stage.settle().await;
        leader.abort();
        stage.go.add_permits(2);
        assert_eq!(other.await.unwrap(), Ok((1, 2)));
    }

    #[tokio::test]
    async fn nobody_is_left_waiting_where_the_work_panics() {
        let stage = stage();
        let asked = [stage.ask("panic", 1), stage.ask("panic", 2)];
        stage.settle().await;
        let late = stage.ask("panic", 3);
        stage.settle().await;
        // One round has one of them, or both.
        stage.go.add_permits(3);
        for one in asked.into_iter().chain([late]) {
            assert_eq!(one.await.unwrap(), Err(Unanswered::Panicked));
        }
        stage.settle().await;
        assert_eq!(stage.shared.inner.open().waiting, 0);
    }

    #[tokio::test]
    async fn an_answer_that_takes_its_time_is_overtaken() {
        let stage = stage_with(Duration::from_millis(1));
        let slow = stage.ask("a", 1);
        stage.settle().await;
        let next = stage.ask("a", 2);
        // Nothing lets the first one go on before the second one has begun.
        while stage.rounds.load(Ordering::SeqCst) < 2 {
            tokio::task::yield_now().await;
        }
        stage.go.add_permits(2);
        assert_eq!((slow.await.unwrap(), next.await.unwrap()), (Ok((0, 1)), Ok((1, 2))));
    }

    #[tokio::test]
    async fn work_whose_callers_have_all_hung_up_is_cancelled() {
        let (begun, mut has_begun) = tokio::sync::mpsc::unbounded_channel();
        let shared = Shared::new(Duration::from_millis(10), move |(), callers: Vec<u32>| {
            let begun = begun.clone();
            async move {
                // Dropped with the work.
                let (alive, dropped) = oneshot::channel::<()>();
                begun.send((callers, dropped)).unwrap();
                std::future::pending::<()>().await;
                drop(alive);
                vec![()]
            }
            .boxed()
        });
        let ask = |caller| {
            let shared = shared.clone();
            tokio::spawn(async move { shared.ask((), caller).await })
        };
        let first = ask(1);
        let (_, first_is_over) = has_begun.recv().await.unwrap();
        let others = [ask(2), ask(3)];
        let (mut callers, others_are_over) = has_begun.recv().await.unwrap();
        while callers.len() < 2 {
            callers.extend(has_begun.recv().await.unwrap().0);
        }
        first.abort();
        assert!(first_is_over.await.is_err(), "its work is dropped");
        others[0].abort();
        let still_awaited = timeout(Duration::from_millis(100), others_are_over).await;
        if callers == [2, 3] {
            assert!(still_awaited.is_err(), "one of the two still waits");
        }
        others[1].abort();
        while Arc::strong_count(&shared.inner) > 1 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        assert!(shared.inner.open().questions.is_empty());
    }

    #[tokio::test]
    async fn no_more_wait_than_may() {
        let stage = stage();
        let first = stage.ask("a", 0);
        stage.settle().await;
        stage.shared.inner.open().waiting = MOST_WAITING;
        assert_eq!(stage.ask("a", 1).await.unwrap(), Err(Unanswered::TooManyWait));
        stage.shared.inner.open().waiting = 0;
        stage.go.add_permits(1);
        assert_eq!(first.await.unwrap(), Ok((0, 0)));
    }
}
