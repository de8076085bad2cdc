//! The following of SQL's log of account changes.
//!
//! What is urgent goes first: accounts that may not be present, the latest change before the others. The rest is done in
//! bounded pieces, between which the log is read again, so that a block waits for one piece at most, however many accounts
//! changed before it (invariant 6).

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::time::Duration;

use tokio::time::Instant;

use super::{ATTEMPTS, CHUNK, FenceKeeper, Result, overtaken};
use crate::model::UserId;
use crate::presence::PresenceError;
use crate::store::{AccountChanges, ChangeCursor};

/// How often the log is read again while there is more to do.
const LOOK_AGAIN: Duration = Duration::from_millis(100);
/// Accounts of one shard in a piece of work, where there are many shards.
const OF_EACH_SHARD: usize = 64;

/// What the log has told and Redis has not been told yet.
#[derive(Debug, Default)]
struct Backlog {
    urgent: VecDeque<UserId>,
    others: VecDeque<UserId>,
}

/// A piece of work.
#[derive(Debug, PartialEq, Eq)]
struct Piece {
    users: Vec<UserId>,
    /// Whether these accounts could not be present when the log was read.
    urgent: bool,
}

/// Shards that are at one place of the log.
struct Group<'a> {
    /// That place.
    cursor: &'a str,
    /// Those that are told; one that cannot be, or that another instance has moved, leaves.
    shards: BTreeSet<u32>,
    evicted: u64,
    arrived: bool,
    failed: Option<PresenceError>,
}

impl Backlog {
    /// Adds what was read; it is done before what was read earlier.
    fn add(&mut self, changes: &AccountChanges) {
        let (urgent, others) = changes.users.split_at(changes.urgent.min(changes.users.len()));
        for (queue, users) in [(&mut self.urgent, urgent), (&mut self.others, others)] {
            users.iter().rev().for_each(|user| queue.push_front(*user));
        }
    }

    /// The next piece, of `most` accounts; `None` where all is done.
    fn next(&mut self, most: usize) -> Option<Piece> {
        let urgent = !self.urgent.is_empty();
        let queue = if urgent { &mut self.urgent } else { &mut self.others };
        let users: Vec<UserId> = queue.drain(..most.min(queue.len())).collect();
        (!users.is_empty()).then_some(Piece { users, urgent })
    }
}

impl FenceKeeper {
    /// Follows the log of account changes to its end. Returns how many users were taken offline. A shard that cannot be
    /// told holds up no other: each has a place of its own in the log.
    pub(in crate::presence) async fn follow(&self) -> Result<u64> {
        let _one = self.following.lock().await;
        let mut evicted = 0;
        for _ in 0..ATTEMPTS {
            let asked = self.live.shards().map(|shard| Box::pin(self.live.fence(shard)));
            let fences = futures_util::future::join_all(asked).await;
            let mut places: HashMap<String, Vec<u32>> = HashMap::new();
            let (mut arrived, mut silent) = (true, None);
            for (shard, fence) in self.live.shards().zip(fences) {
                match fence.map(|fence| fence.cursor) {
                    Ok(Some(cursor)) => places.entry(cursor).or_default().push(shard),
                    // Once it stands, the log is followed from there.
                    Ok(None) => match self.stand(shard).await {
                        Ok(()) => arrived = false,
                        Err(error) => silent = Some(error),
                    },
                    Err(error) => silent = Some(error.into()),
                }
            }
            for (cursor, shards) in places {
                match self.follow_from(&cursor, &shards).await {
                    Ok((out, all)) => {
                        evicted += out;
                        arrived &= all;
                    }
                    Err(error) => silent = Some(error),
                }
            }
            match silent {
                Some(error) if arrived => return Err(error),
                None if arrived => return Ok(evicted),
                _ => {}
            }
        }
        Err(overtaken())
    }

    /// Follows the log from where these shards are to its end. Returns how many users were taken offline, and whether
    /// all are there: another instance may have moved them, or they are gone.
    async fn follow_from(&self, cursor: &str, shards: &[u32]) -> Result<(u64, bool)> {
        let shards = shards.iter().copied().collect();
        let mut group = Group { cursor, shards, evicted: 0, arrived: true, failed: None };
        let mut backlog = Backlog::default();
        let mut read_to = ChangeCursor(cursor.to_owned());
        let mut read_at: Option<Instant> = None;
        while !group.shards.is_empty() {
            if read_at.is_none_or(|at| at.elapsed() >= LOOK_AGAIN) {
                let changes = self.store.account_changes(&read_to).await?;
                if read_at.is_none() && changes.users.is_empty() {
                    return Ok((0, true));
                }
                backlog.add(&changes);
                read_to = changes.cursor;
                read_at = Some(Instant::now());
            }
            let most = (CHUNK as usize).max(OF_EACH_SHARD * group.shards.len());
            let Some(piece) = backlog.next(most) else { break };
            self.tell_piece(&mut group, piece).await?;
        }
        self.move_all(&mut group, &read_to.0).await;
        match group.failed {
            Some(error) => Err(error),
            None => Ok((group.evicted, group.arrived)),
        }
    }

    /// Tells each shard what concerns its accounts. Accounts that may be present have the ends of their sessions told before:
    /// a token from before a block, or a new password, is then refused by the time the account is let in.
    async fn tell_piece(&self, group: &mut Group<'_>, piece: Piece) -> Result<()> {
        let ends = if piece.urgent { Vec::new() } else { self.store.untold_ends_of(&piece.users).await? };
        let mut theirs: BTreeMap<u32, Vec<UserId>> = BTreeMap::new();
        for user in piece.users {
            theirs.entry(self.live.shard_of(user)).or_default().push(user);
        }
        theirs.retain(|shard, _| group.shards.contains(shard));
        let (ends, cursor) = (&ends, group.cursor);
        let telling = theirs.iter().map(|(shard, users)| {
            Box::pin(async move {
                // Another instance that got further has told all of this.
                if self.live.fence(*shard).await?.cursor.as_deref() != Some(cursor) {
                    return Ok::<_, PresenceError>(None);
                }
                let of_shard = ends.iter().filter(|end| self.live.shard_of(end.user) == *shard);
                self.end_in_redis(&of_shard.cloned().collect::<Vec<_>>()).await?;
                Ok(Some(self.tell(users).await?))
            })
        });
        let told = futures_util::future::join_all(telling).await;
        for (shard, told) in theirs.keys().zip(told) {
            match told {
                Ok(Some(out)) => {
                    group.evicted += out;
                    continue;
                }
                Ok(None) => group.arrived = false,
                Err(error) => group.failed = Some(error),
            }
            group.shards.remove(shard);
        }
        Ok(())
    }

    async fn move_all(&self, group: &mut Group<'_>, to: &str) {
        let cursor = group.cursor;
        let moves = group.shards.iter().map(|shard| Box::pin(self.live.move_fence(*shard, cursor, to)));
        for moved in futures_util::future::join_all(moves).await {
            match moved {
                Ok(moved) => group.arrived &= moved,
                Err(error) => group.failed = Some(error.into()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn changes(urgent: &[UserId], others: &[UserId]) -> AccountChanges {
        AccountChanges {
            cursor: ChangeCursor(String::new()),
            users: [urgent, others].concat(),
            urgent: urgent.len(),
        }
    }

    #[test]
    fn what_is_urgent_goes_first_and_of_that_what_was_read_last() {
        let mut backlog = Backlog::default();
        backlog.add(&changes(&[5, 4, 3], &[9, 8]));
        let piece = |users: &[UserId], urgent| Some(Piece { users: users.to_vec(), urgent });
        assert_eq!(backlog.next(2), piece(&[5, 4], true));
        backlog.add(&changes(&[7], &[6]));
        assert_eq!(backlog.next(2), piece(&[7, 3], true));
        assert_eq!(backlog.next(2), piece(&[6, 9], false));
        assert_eq!(backlog.next(2), piece(&[8], false));
        assert_eq!(backlog.next(2), None);
    }
}
