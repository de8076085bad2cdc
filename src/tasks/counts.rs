//! What the loops count.

use crate::metrics::{Counter, Counters, Histogram, Registry};
use crate::model::{OnlineStatus, Reason, Transition};

/// Upper bounds of the histogram of expiry lags, seconds: the promise is one second.
const LAGS: [f64; 12] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0, 600.0];

/// What the loops of this process have done; clones share it.
#[derive(Debug, Clone)]
pub struct Counts {
    claims: Counters<2>,
    persisted: Counter,
    expiry_lag: Histogram,
}

impl Default for Counts {
    fn default() -> Self {
        Self {
            claims: Counters::new("by", ["listener", "sweeper"]),
            persisted: Counter::default(),
            expiry_lag: Histogram::new(LAGS),
        }
    }
}

impl Counts {
    /// Enters what the loops count.
    pub fn register(&self, registry: &mut Registry) {
        registry.counters(
            "claims",
            "Users taken offline because their deadline had passed, by who found it",
            &self.claims,
        );
        registry.counter(
            "transitions_persisted",
            "Rows that were added to the history in SQL",
            &self.persisted,
        );
        registry.histogram(
            "expiry_lag_seconds",
            "From a user's deadline to the transition that took the user offline, by Redis's clock",
            &self.expiry_lag,
        );
    }

    pub(super) fn claimed_by_listener(&self, users: u64) {
        self.claims.at(0).inc_by(users);
    }

    pub(super) fn claimed_by_sweeper(&self, users: u64) {
        self.claims.at(1).inc_by(users);
    }

    /// Counts a committed batch that added so many rows to the history. What was sent to SQL twice adds none. The lag is read
    /// off the transitions, whichever instance claimed them: the id of an entry is the instant at which Redis appended it, `at`
    /// the deadline.
    pub(super) fn persisted(&self, batch: &[Transition], rows: u64) {
        self.persisted.inc_by(rows);
        for transition in batch {
            if transition.to == OnlineStatus::Offline && transition.reason == Reason::Expired {
                let lag_ms = transition.id.ms.saturating_sub(transition.at.0.unsigned_abs());
                self.expiry_lag.observe(std::time::Duration::from_millis(lag_ms).as_secs_f64());
            }
        }
    }
}
