//! How long a refusal takes at least, so that its time does not tell a known name from an unknown one.
//!
//! Our own hash is computed for an unknown name too. A hash that was made elsewhere may take many times as long, and only
//! an account has one; so while such hashes are about, no refusal comes sooner than the slowest of them was verified
//! lately. Waiting takes no core.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// What was seen is remembered for one to two of these.
const WINDOW: Duration = Duration::from_mins(10);
/// No refusal waits longer, whatever was seen: a machine that stood still says nothing about a hash.
const LONGEST: Duration = Duration::from_secs(5);

/// The slowest verifications of late.
#[derive(Debug)]
pub(super) struct Pace {
    opened: Instant,
    /// The number of the current window, the slowest in it, and the slowest in the one before.
    seen: Mutex<(u64, Duration, Duration)>,
}

impl Pace {
    pub(super) fn new() -> Self {
        Self { opened: Instant::now(), seen: Mutex::default() }
    }

    /// Notes how long the verification of a hash that was made elsewhere took.
    pub(super) fn saw(&self, took: Duration, now: Instant) {
        let mut seen = self.at(now);
        seen.1 = seen.1.max(took);
    }

    /// How long a refusal takes at least. A quarter more than what was seen, because two verifications never take the
    /// same: the slower one must not stand out.
    pub(super) fn floor(&self, now: Instant) -> Duration {
        let seen = self.at(now);
        (seen.1.max(seen.2) * 5 / 4).min(LONGEST)
    }

    fn at(&self, now: Instant) -> std::sync::MutexGuard<'_, (u64, Duration, Duration)> {
        let window = now.saturating_duration_since(self.opened).as_secs() / WINDOW.as_secs();
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if window > seen.0 {
            let before = if window == seen.0 + 1 { seen.1 } else { Duration::ZERO };
            *seen = (window, Duration::ZERO, before);
        }
        seen
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_slowest_of_late_counts_with_a_quarter_on_top_and_is_forgotten_in_the_end() {
        let pace = Pace::new();
        let at = |secs| pace.opened + Duration::from_secs(secs);
        assert_eq!(pace.floor(at(0)), Duration::ZERO);
        pace.saw(Duration::from_millis(400), at(1));
        pace.saw(Duration::from_millis(100), at(2));
        assert_eq!(pace.floor(at(3)), Duration::from_millis(500));
        assert_eq!(pace.floor(at(1_199)), Duration::from_millis(500), "a window later");
        assert_eq!(pace.floor(at(1_200)), Duration::ZERO, "two windows later");
    }

    #[test]
    fn a_machine_that_stood_still_makes_nobody_wait_for_minutes() {
        let pace = Pace::new();
        pace.saw(Duration::from_mins(3), pace.opened);
        assert_eq!(pace.floor(pace.opened), LONGEST);
    }
}
