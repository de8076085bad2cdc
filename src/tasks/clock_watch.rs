//! Notices that Redis's clock was set back.

use tokio::time::Instant;

use crate::model::Millis;

/// A clock that lags this process's own by less is not suspected: clocks drift, and a step that matters is longer.
const SLACK_MS: i64 = 500;

/// Compares Redis's clock with the monotonic clock of this process.
#[derive(Debug)]
pub struct ClockWatch {
    /// What Redis's clock said last, and when the answer was here.
    last: Option<(Millis, Instant)>,
    suspected: bool,
}

impl ClockWatch {
    /// Suspects the clock at first: it may have been set back before this process came.
    pub const fn new() -> Self {
        Self { last: None, suspected: true }
    }

    /// Notes what Redis's clock says in the answer to a question that was sent at `sent` and answered at `received`.
    pub fn note(&mut self, now: Millis, sent: Instant, received: Instant) {
        if let Some((before, then)) = self.last {
            // At least so much time has passed between the two answers.
            let passed = i64::try_from(sent.saturating_duration_since(then).as_millis()).unwrap_or(i64::MAX);
            self.suspected |= now.plus(SLACK_MS) < before.plus(passed);
        }
        self.last = Some((now, received));
    }

    /// Suspects the clock: another server may answer now, or the same one with other data.
    pub const fn suspect(&mut self) {
        self.suspected = true;
    }

    /// Whether the clock is suspected; from now on it is not.
    pub const fn take(&mut self) -> bool {
        std::mem::replace(&mut self.suspected, false)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// A watch that has seen 100,000 ms at an instant, and the instant.
    fn settled() -> (ClockWatch, Instant) {
        let (mut watch, begun) = (ClockWatch::new(), Instant::now());
        watch.note(Millis(100_000), begun, begun);
        assert!(watch.take(), "what was before is not known");
        assert!(!watch.take());
        (watch, begun)
    }

    fn noted(now: i64, sent_after_ms: u64, received_after_ms: u64) -> bool {
        let (mut watch, begun) = settled();
        let after = |ms| begun + Duration::from_millis(ms);
        watch.note(Millis(now), after(sent_after_ms), after(received_after_ms));
        watch.take()
    }

    #[test]
    fn a_clock_that_goes_on_is_not_suspected_whatever_an_answer_takes() {
        assert!(!noted(101_000, 1_000, 1_000));
        assert!(!noted(101_000, 1_000, 9_000), "the answer took 8 s");
        assert!(!noted(109_000, 1_000, 9_000), "the question took 8 s");
        assert!(!noted(200_000, 1_000, 1_000), "it was set ahead");
        assert!(!noted(100_600, 1_000, 1_000), "it drifts");
    }

    #[test]
    fn a_clock_that_was_set_back_is_suspected_also_after_a_silence() {
        assert!(noted(99_000, 0, 0));
        assert!(noted(100_000, 1_000, 1_000), "a second back, a second later");
        assert!(noted(105_000, 60_000, 60_000), "55 s back while Redis was away");
    }
}
