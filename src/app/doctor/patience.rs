//! Patience: a look at a million users beside a busy service must not end because one answer out of thousands was late.

use std::time::Duration;

use tokio::time::sleep;

use crate::live::LiveError;
use crate::store::StoreError;

/// The pauses before a question is asked again.
const PAUSES: [Duration; 3] =
    [Duration::from_millis(100), Duration::from_millis(500), Duration::from_secs(2)];

/// An error after which the same question may find an answer.
pub(super) trait Passing {
    fn may_pass(&self) -> bool;
}

impl Passing for LiveError {
    fn may_pass(&self) -> bool {
        matches!(self, Self::Down | Self::Timeout | Self::Refused(_))
    }
}

impl Passing for StoreError {
    fn may_pass(&self) -> bool {
        self.is_unavailable()
    }
}

/// Asks, and asks again where there was no answer. For questions only: none of them changes anything.
pub(super) async fn patiently<T, E: Passing>(question: impl AsyncFn() -> Result<T, E>) -> Result<T, E> {
    for pause in PAUSES {
        match question().await {
            Err(error) if error.may_pass() => sleep(pause).await,
            answer => return answer,
        }
    }
    question().await
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[tokio::test]
    async fn a_late_answer_is_asked_for_again() {
        let asked = Cell::new(0);
        let answer = patiently(async || {
            asked.set(asked.get() + 1);
            if asked.get() < 3 { Err(LiveError::Timeout) } else { Ok(asked.get()) }
        });
        assert_eq!(answer.await.unwrap(), 3);
    }

    #[tokio::test]
    async fn a_refusal_is_final_and_so_is_silence_in_the_end() {
        let asked = Cell::new(0);
        let ask = async |error: fn() -> LiveError| {
            asked.set(0);
            let answer: Result<(), _> = patiently(async || {
                asked.set(asked.get() + 1);
                Err(error())
            })
            .await;
            (answer.is_err(), asked.get())
        };
        assert_eq!(ask(|| LiveError::Redis("WRONGTYPE".into())).await, (true, 1));
        assert_eq!(ask(|| LiveError::Down).await, (true, 4));
    }
}
