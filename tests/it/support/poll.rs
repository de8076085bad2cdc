//! Waiting for something to become true, with a bound: the only place in the tests that sleeps.

use std::{fmt::Debug, panic::Location, time::Duration};

use tokio::time::{Instant, sleep, timeout_at};

/// The pause between two looks. Short, because what is waited for is mostly a matter of milliseconds.
const PAUSE: Duration = Duration::from_millis(10);

/// Asks `probe` again and again until it says `Ok`, and returns what it says; after `bound` panics with what the last
/// `Err` held, which is therefore the thing that was *seen*, not a mere 'not yet'.
///
/// The bound also cuts a probe that hangs.
#[track_caller]
pub fn eventually<T, S: Debug>(
    bound: Duration,
    mut probe: impl AsyncFnMut() -> Result<T, S>,
) -> impl Future<Output = T> {
    // Taken here, outside the future: the place that waits is what a failed test has to name.
    let caller = Location::caller();
    async move {
        let deadline = Instant::now() + bound;
        let mut seen = None;
        loop {
            match timeout_at(deadline, probe()).await {
                Ok(Ok(value)) => return value,
                Ok(Err(value)) => seen = Some(value),
                Err(elapsed) => {
                    panic!("{caller}: {elapsed}: no answer within {bound:?}; last seen: {seen:?}")
                }
            }
            assert!(Instant::now() < deadline, "{caller}: not within {bound:?}; last seen: {seen:?}");
            sleep(PAUSE).await;
        }
    }
}
