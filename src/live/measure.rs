//! Measures of the live set and the stream, for whoever watches over them.

use std::time::Duration;

use super::live_set::{LiveSet, unexpected};
use super::scripts::named;
use super::{LiveError, Result};

/// What Redis holds at one moment, over all shards.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Measures {
    /// Users who are present.
    pub present: u64,
    /// Transitions that SQL lacks.
    pub waiting: u64,
    /// For how long the oldest of them has waited, by Redis's clock; zero where none waits.
    pub oldest: Duration,
    /// Shards that could not be asked, and are in none of these numbers.
    pub silent: u32,
}

impl LiveSet {
    /// Measures all shards (`lua/measure.lua`): O(log n) a shard, one round trip.
    ///
    /// # Errors
    /// Where none of them can be asked.
    pub async fn measure(&self) -> Result<Measures> {
        let calls = self.shards().map(|shard| async move {
            let keys = self.keys(shard);
            named::measure
                .run::<Vec<u64>>(&self.back, || (vec![keys.live(), keys.transitions()], vec![]))
                .await
        });
        let mut measures = Measures::default();
        for reply in futures_util::future::join_all(calls).await {
            let reply = match reply {
                Err(error @ (LiveError::Down | LiveError::Timeout | LiveError::Refused(_))) => {
                    measures.silent += 1;
                    if measures.silent == self.options.shards {
                        return Err(error);
                    }
                    continue;
                }
                other => other?,
            };
            let [now, present, waiting, oldest] = reply[..] else {
                return Err(unexpected("measure", "something else than four numbers"));
            };
            measures.present += present;
            measures.waiting += waiting;
            measures.oldest = measures.oldest.max(Duration::from_millis(now.saturating_sub(oldest)));
        }
        Ok(measures)
    }
}
