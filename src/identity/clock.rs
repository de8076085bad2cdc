//! The clock by which login sessions are dated and judged: Redis's (invariant 7).
//!
//! How long a refresh token may be used twice, how old a session may become and which session is the oldest are the same
//! whichever instance is asked, however wrong its own clock is. Tokens themselves carry this machine's time: others verify
//! them by their own clocks.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::live::LiveSet;
use crate::model::Millis;

/// How long Redis may take to tell the time.
const PATIENCE: Duration = Duration::from_millis(250);
/// For how long the time is reckoned from what Redis told, or after it did not, before it is asked again.
const GOOD_FOR: Duration = Duration::from_secs(1);

/// Redis's clock, as this process knows it.
pub(super) struct SessionClock {
    live: Option<LiveSet>,
    known: Mutex<Known>,
}

#[derive(Debug, Default, Clone, Copy)]
struct Known {
    /// What Redis told last, and when that was.
    told: Option<(Millis, Instant)>,
    /// When it was last asked.
    asked: Option<Instant>,
}

impl Known {
    /// The time as far as it is known; this machine's where Redis never told it.
    fn reckoned(&self, now: Instant, own: Millis) -> Millis {
        self.told.map_or(own, |(told, at)| {
            let since_ms = now.saturating_duration_since(at).as_millis();
            told.plus(i64::try_from(since_ms).unwrap_or(i64::MAX))
        })
    }

    fn is_fresh(&self, now: Instant) -> bool {
        self.asked.is_some_and(|asked| now.saturating_duration_since(asked) < GOOD_FOR)
    }
}

impl SessionClock {
    /// The clock of this Redis; without one this machine's.
    pub(super) fn new(live: Option<LiveSet>) -> Self {
        Self { live, known: Mutex::default() }
    }

    /// The time now. Waits for Redis for a moment at most, once a second at most.
    pub(super) async fn now(&self) -> Millis {
        let own = super::now();
        let (known, now) = (self.known(), Instant::now());
        let Some(live) = self.live.as_ref().filter(|_| !known.is_fresh(now)) else {
            return known.reckoned(now, own);
        };
        // Others that come meanwhile reckon.
        self.set(Known { asked: Some(now), ..known });
        let answer = tokio::time::timeout(PATIENCE, Box::pin(live.now(0))).await;
        let at = Instant::now();
        match answer {
            Ok(Ok(told)) => {
                self.set(Known { told: Some((told, at)), asked: Some(at) });
                told
            }
            _ => known.reckoned(at, own),
        }
    }

    fn known(&self) -> Known {
        *self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, known: Known) {
        *self.known.lock().unwrap_or_else(PoisonError::into_inner) = known;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn between_two_questions_the_time_is_reckoned_from_what_redis_told() {
        let (now, own) = (Instant::now(), Millis(5));
        let mut known = Known::default();
        assert_eq!(known.reckoned(now, own), own);
        assert!(!known.is_fresh(now));
        known = Known { told: Some((Millis(1_000_000), now)), asked: Some(now) };
        let later = now + Duration::from_millis(999);
        assert!(known.is_fresh(later));
        assert_eq!(known.reckoned(later, own), Millis(1_000_999));
        let much_later = now + Duration::from_hours(1);
        assert!(!known.is_fresh(much_later));
        assert_eq!(known.reckoned(much_later, own), Millis(4_600_000), "also while Redis is away");
    }
}
