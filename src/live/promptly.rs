//! Questions to several shards, of which a slow one keeps no other waiting.

use std::collections::HashSet;
use std::future::Future;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::time::{Instant, timeout, timeout_at};

use super::{LiveError, LiveSet, Result};

/// A shard that has not answered so long after another did is taken for silent.
const LATE: Duration = Duration::from_millis(250);

impl LiveSet {
    /// Asks every shard at once; each shard's answer, in no order. A shard that has not answered a quarter of a second after
    /// another did counts as [`LiveError::Timeout`].
    pub async fn ask_each<T, F>(&self, ask: impl Fn(u32) -> F) -> Vec<(u32, Result<T>)>
    where
        F: Future<Output = Result<T>>,
    {
        let mut answers = answers(self.shards().map(|shard| {
            let asked = Box::pin(ask(shard));
            async move { (shard, asked.await) }
        }))
        .await;
        let answered: HashSet<u32> = answers.iter().map(|(shard, _)| *shard).collect();
        let silent = self.shards().filter(|shard| !answered.contains(shard));
        answers.extend(silent.map(|shard| (shard, Err(LiveError::Timeout))));
        answers
    }

    /// Awaits a call to one shard, a quarter of a second at most where other shards are at other servers.
    ///
    /// # Errors
    /// As the call; [`LiveError::Timeout`] where it took longer.
    pub async fn promptly<T>(&self, call: impl Future<Output = Result<T>>) -> Result<T> {
        if self.is_on_one_server() {
            return call.await;
        }
        timeout(LATE, call).await.unwrap_or(Err(LiveError::Timeout))
    }
}

/// The answers that come in time.
async fn answers<T, F>(asked: impl Iterator<Item = F>) -> Vec<(u32, Result<T>)>
where
    F: Future<Output = (u32, Result<T>)>,
{
    let mut asked: FuturesUnordered<F> = asked.collect();
    let (mut answers, mut late) = (Vec::with_capacity(asked.len()), None);
    loop {
        let answer = match late {
            None => asked.next().await,
            Some(late) => timeout_at(late, asked.next()).await.unwrap_or(None),
        };
        let Some((shard, answer)) = answer else { return answers };
        if answer.is_ok() {
            late.get_or_insert_with(|| Instant::now() + LATE);
        }
        answers.push((shard, answer));
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::sleep;

    use super::*;

    /// Shards that answer, or fail, after so many ms; which of them are heard of, and after how long.
    async fn heard(shards: &[(u64, bool)]) -> (Vec<u32>, Duration) {
        let begun = Instant::now();
        let asked = shards.iter().zip(0..).map(|((ms, is_well), shard)| async move {
            sleep(Duration::from_millis(*ms)).await;
            (shard, if *is_well { Ok(()) } else { Err(LiveError::Down) })
        });
        let mut heard: Vec<u32> = answers(asked).await.into_iter().map(|(shard, _)| shard).collect();
        heard.sort_unstable();
        (heard, begun.elapsed())
    }

    #[tokio::test]
    async fn a_shard_that_is_late_keeps_the_others_waiting_for_a_quarter_of_a_second() {
        let (all, took) = heard(&[(1, true), (50, true), (60_000, true), (20, false)]).await;
        assert_eq!(all, [0, 1, 3]);
        assert!((250..30_000).contains(&took.as_millis()), "{took:?}");
    }

    #[tokio::test]
    async fn where_none_answers_all_are_waited_for() {
        assert_eq!(heard(&[(1, false), (800, false), (400, false)]).await.0, [0, 1, 2]);
        assert_eq!(heard(&[(1, false), (500, true)]).await.0, [0, 1]);
    }
}
