//! How the time that the end of the process may take is divided.

use std::time::Duration;

use tokio::time::Instant;

/// When each part of the end must be over. A part that is over sooner leaves its time to those after it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Farewell {
    /// The persister begins no further batch.
    pub(super) batches: Instant,
    /// Its last batch is cut off.
    pub(super) cut: Instant,
    /// What it left in hand is handed over, and the connections are closed.
    pub(super) connections: Instant,
    /// The embedded server has written its data. What is left covers the end of the runtime.
    pub(super) embedded: Instant,
}

impl Farewell {
    /// Begins now, and is over after `whole`.
    pub(super) fn begin(whole: Duration) -> Self {
        let now = Instant::now();
        let after = |share: f64| now + whole.mul_f64(share);
        Self { batches: after(0.55), cut: after(0.65), connections: after(0.75), embedded: after(0.88) }
    }

    /// How long requests in flight may take, and with them the group commit. No request takes more than 3 s; by default
    /// this is 4 s.
    pub(super) fn for_requests(whole: Duration) -> Duration {
        whole.mul_f64(0.4)
    }
}
