//! The following of SQL's log of account changes.
//!
//! The log is read page by page, the newest changes first, and its end is read again between the pages. So a block waits for
//! one page at most, however many accounts have changed (invariant 6).

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use tokio::time::Instant;

use super::{ATTEMPTS, FenceKeeper, Result, overtaken};
use crate::model::UserId;
use crate::presence::PresenceError;
use crate::store::{ChangeCursor, ChangeRange, Store};

/// How often the end of the log is read again while there is more to do.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

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

/// The log, as far as it is read.
struct Reading {
    /// Its end when that was read last.
    read_to: ChangeCursor,
    read_at: Option<Instant>,
    /// What lies before and is not read yet, the latest part at the end.
    unread: Vec<ChangeRange>,
}

impl Reading {
    const fn from(cursor: ChangeCursor) -> Self {
        Self { read_to: cursor, read_at: None, unread: Vec::new() }
    }

    /// The accounts of the next page; `None` where all is read.
    async fn next(&mut self, store: &dyn Store) -> Result<Option<Vec<UserId>>> {
        let at_the_end = match self.read_at {
            None => true,
            Some(at) => !self.unread.is_empty() && at.elapsed() >= LOOK_AGAIN,
        };
        let range = if at_the_end {
            self.read_at = Some(Instant::now());
            Some(ChangeRange::since(self.read_to.clone()))
        } else {
            self.unread.pop()
        };
        let Some(mut range) = range else { return Ok(None) };
        let users = store.read_changes(&mut range).await?;
        if at_the_end {
            self.read_to = range.end();
        }
        if !range.is_read() {
            self.unread.push(range);
        }
        Ok(Some(users))
    }
}

impl FenceKeeper {
    /// Follows the log of account changes to its end. Returns how many users were taken offline. A shard that cannot be
    /// told holds up no other: each has a place of its own in the log.
    ///
    /// # Errors
    /// Where a shard did not answer in time, or has no fence: once it has one, the log is followed from there.
    pub(in crate::presence) async fn follow(&self) -> Result<u64> {
        let _one = self.following.lock().await;
        let mut evicted = 0;
        for _ in 0..ATTEMPTS {
            let (places, mut silent) = self.places().await;
            let mut arrived = true;
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

    /// The places in the log at which shards are; and why some are at none that is known.
    async fn places(&self) -> (HashMap<String, Vec<u32>>, Option<PresenceError>) {
        let (mut places, mut silent) = (HashMap::<_, Vec<_>>::new(), None);
        for (shard, fence) in self.live.ask_each(|shard| self.live.fence(shard)).await {
            match fence.map(|fence| fence.cursor) {
                Ok(Some(cursor)) => places.entry(cursor).or_default().push(shard),
                Ok(None) => silent = Some(PresenceError::RedisUnavailable("a shard has no fence yet".into())),
                Err(error) => silent = Some(error.into()),
            }
        }
        (places, silent)
    }

    /// Follows the log from where these shards are to its end. Returns how many users were taken offline, and whether
    /// all are there: another instance may have moved them, or they are gone.
    async fn follow_from(&self, cursor: &str, shards: &[u32]) -> Result<(u64, bool)> {
        let shards = shards.iter().copied().collect();
        let mut group = Group { cursor, shards, evicted: 0, arrived: true, failed: None };
        let mut reading = Reading::from(ChangeCursor(cursor.to_owned()));
        let mut nothing = true;
        while !group.shards.is_empty()
            && let Some(users) = reading.next(&*self.store).await?
        {
            nothing &= users.is_empty();
            self.tell_group(&mut group, users).await;
        }
        if nothing {
            return Ok((0, true));
        }
        self.move_all(&mut group, &reading.read_to.0).await;
        match group.failed {
            Some(error) => Err(error),
            None => Ok((group.evicted, group.arrived)),
        }
    }

    /// Tells each shard of the group what concerns its accounts.
    async fn tell_group(&self, group: &mut Group<'_>, users: Vec<UserId>) {
        let mut theirs: BTreeMap<u32, Vec<UserId>> = BTreeMap::new();
        for user in users {
            theirs.entry(self.live.shard_of(user)).or_default().push(user);
        }
        theirs.retain(|shard, _| group.shards.contains(shard));
        let cursor = group.cursor;
        let telling = theirs.iter().map(|(shard, users)| {
            Box::pin(async move {
                // Another instance that got further has told all of this.
                if self.live.fence(*shard).await?.cursor.as_deref() != Some(cursor) {
                    return Ok::<_, PresenceError>(None);
                }
                self.tell_with_sessions(users).await.map(Some)
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
    }

    async fn move_all(&self, group: &mut Group<'_>, to: &str) {
        let cursor = group.cursor;
        let moving = group.shards.iter().map(|shard| Box::pin(self.live.move_fence(*shard, cursor, to)));
        for outcome in futures_util::future::join_all(moving).await {
            match outcome {
                Ok(done) => group.arrived &= done,
                Err(error) => group.failed = Some(error.into()),
            }
        }
    }
}
