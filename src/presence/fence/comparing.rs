//! The comparison of the blocklist in Redis with SQL, account by account.
//!
//! The log of account changes is enough while SQL and Redis go on together. A restored dump, a database that was replaced, or a
//! number of shards that was changed and changed back breaks that: the log may not lead from where Redis is to where SQL is.

use super::{CHUNK, FenceKeeper, Result};
use crate::live::Verdict;
use crate::model::UserId;

impl FenceKeeper {
    /// Compares every shard whose fence stands, and tells Redis what differs. Returns how many accounts differed.
    pub(in crate::presence) async fn compare(&self) -> Result<u64> {
        // Noted first: what changes meanwhile is in the log behind it.
        let cursor = self.store.change_cursor().await?;
        let mut before = Vec::new();
        for shard in self.live.shards() {
            before.push((shard, self.live.fence(shard).await?.cursor));
        }
        let missing = self.tell_of_the_missing().await?;
        let mut superfluous = 0;
        for (shard, _) in &before {
            superfluous += self.tell_of_the_superfluous(*shard).await?;
        }
        for (shard, at) in before {
            // A cursor of another database may lie behind or ahead of this one's log. Where another instance has moved it
            // meanwhile it was of this log.
            if let Some(at) = at.filter(|at| *at != cursor.0) {
                self.live.move_fence(shard, &at, &cursor.0).await?;
            }
        }
        Ok(missing + superfluous)
    }

    /// Accounts that SQL blocks and Redis does not.
    async fn tell_of_the_missing(&self) -> Result<u64> {
        let (mut told, mut after) = (0, 0);
        loop {
            let page = self.store.blocked_after(after, CHUNK).await?;
            let Some(last) = page.last() else { return Ok(told) };
            after = *last;
            for (shard, users) in self.by_shard(&page) {
                let held = self.live.are_blocked(shard, &users).await?;
                let missing: Vec<UserId> =
                    users.into_iter().zip(held).filter(|(_, held)| !held).map(|(user, _)| user).collect();
                told += missing.len() as u64;
                self.tell(&missing).await?;
            }
        }
    }

    /// Accounts that Redis blocks and SQL does not.
    async fn tell_of_the_superfluous(&self, shard: u32) -> Result<u64> {
        let (mut told, mut place) = (0, None);
        loop {
            let (members, next) = self.live.blocked_members(shard, place, CHUNK).await?;
            let verdicts = self.verdicts(&members).await?;
            let allowed = verdicts.into_iter().filter(|(_, verdict)| *verdict == Verdict::Allow);
            let allowed: Vec<UserId> = allowed.map(|(user, _)| user).collect();
            told += allowed.len() as u64;
            self.tell(&allowed).await?;
            if next.is_none() {
                return Ok(told);
            }
            place = next;
        }
    }
}
