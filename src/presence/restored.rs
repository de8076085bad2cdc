//! What is asked and told where Redis or SQL may have been lost, replaced or restored from a copy.

use std::collections::BTreeSet;

use super::{PresenceError, PresenceService};

impl PresenceService {
    /// The shards that were found without their live set or their stream, or had lost data, since the last call: their users are
    /// to be compared with SQL.
    pub fn take_damaged(&self) -> BTreeSet<u32> {
        self.inner.fence.take_damaged()
    }

    /// Compares the blocklist in Redis with SQL and corrects it: SQL may have been restored from a dump, and its log of
    /// account changes may not lead from where Redis is. Returns how many accounts differed.
    ///
    /// # Errors
    /// Where SQL or a shard could not be asked.
    pub async fn compare_blocklist(&self) -> Result<u64, PresenceError> {
        self.inner.fence.compare().await
    }

    /// Sees to it that SQL gives no account id again that it gave before a dump was restored: tokens may still be good that
    /// speak for it.
    ///
    /// # Errors
    /// Where Redis or SQL cannot be asked.
    pub async fn keep_ids_from_coming_again(&self) -> Result<(), PresenceError> {
        let (live, store) = (&self.inner.live, &self.inner.store);
        let in_sql = store.max_user_id().await?;
        match live.largest_user_id().await? {
            Some(largest) if largest > in_sql => {
                let raised = store.raise_user_id_sequence(largest).await?;
                if raised {
                    tracing::warn!(
                        largest,
                        in_sql,
                        "SQL lacks accounts that it had (a dump was restored?): new accounts get ids beyond theirs"
                    );
                }
            }
            _ if in_sql > 0 => live.note_user_id(in_sql).await?,
            _ => {}
        }
        Ok(())
    }

    /// Says that SQL may have been replaced: [`Self::sql_may_be_replaced`] returns.
    pub fn doubt_sql(&self) {
        self.inner.fence.doubt();
    }

    /// Returns when SQL may have been replaced since the last call: blocklist and presences are to be compared with it.
    pub async fn sql_may_be_replaced(&self) {
        self.inner.fence.doubtful().await;
    }

    /// Says that Redis was found without what it must hold.
    pub fn redis_has_forgotten(&self) {
        self.inner.fence.miss();
    }

    /// Returns when Redis was found without what it must hold, even if no connection broke.
    pub async fn loss_noticed(&self) {
        self.inner.fence.missed().await;
    }
}
