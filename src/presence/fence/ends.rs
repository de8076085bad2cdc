//! The ends of sessions: told to Redis, which refuses their tokens from then on.
//!
//! SQL marks each end as untold in the transaction that ends the session. One task of each instance tells Redis, a page at a
//! time, and notes when, by Redis's own clock (invariant 7). Whoever ends a session by this API, or follows a new password,
//! tells Redis at once as well; the task then repeats it and notes it. A blocked account is refused by Redis whatever its
//! sessions are, so theirs may wait: a block is never told after them (invariant 6).

use std::collections::{BTreeSet, HashMap};

use super::{CHUNK, FenceKeeper, Result};
use crate::model::{Millis, SessionId, UserId};
use crate::presence::PresenceError;
use crate::store::{ChangeCursor, Standing, UntoldEnd};

/// By how much earlier than the instant at which Redis was told of an end its data may have been lost, ms: the clock of a
/// server that replaces another may differ from that one's.
const LATELY_MS: i64 = 60_000;
/// Sessions that a request ends in Redis before it is answered; the task ends what is beyond.
const AT_ONCE: usize = 1_024;

impl FenceKeeper {
    /// Tells these shards which accounts have changed since a cursor, and which sessions ended since they were last `heard`.
    pub(super) async fn tell_lately(
        &self,
        cursors: &BTreeSet<&str>,
        heard: Millis,
        within: &BTreeSet<u32>,
    ) -> Result<()> {
        let ended = self.store.sessions_ended_since(heard.plus(-LATELY_MS)).await?;
        self.live.end_again(&self.sessions_within(ended, within)).await?;
        for cursor in cursors {
            let changes = self.store.account_changes(&ChangeCursor((*cursor).to_owned())).await?;
            self.tell(&self.within(changes.users, within)).await?;
        }
        Ok(())
    }

    /// Redis was away, or has forgotten: what it was not told of is told soon.
    pub(in crate::presence) fn end_sessions_again(&self) {
        self.untold.notify_one();
    }

    /// Returns when sessions may have ended of which Redis is not told.
    pub(in crate::presence) async fn sessions_ended(&self) {
        self.untold.notified().await;
    }

    /// By the clock of these shards' servers, of each the earliest: a session of whose end Redis was told before has no
    /// access token left that is good.
    pub(super) async fn tokens_may_live_since(&self, shards: &BTreeSet<u32>) -> Result<Millis> {
        let times = shards.iter().map(|shard| self.live.now(*shard));
        let times = futures_util::future::try_join_all(times).await?;
        let span_ms = i64::try_from(self.ended_ttl.as_millis()).unwrap_or(i64::MAX);
        let earliest = times.into_iter().min().unwrap_or(Millis(0));
        Ok(earliest.plus(-span_ms.saturating_add(LATELY_MS)))
    }

    /// As [`Self::tell`]: blocks first; then who may be present, and before that the ends of their sessions. So a token from
    /// before a block, or a new password, is refused by the time the account is let in. The ends of a blocked account may
    /// wait: Redis refuses its tokens anyway. Each shard is told whatever becomes of the others.
    pub(super) async fn tell_with_sessions(&self, users: &[UserId]) -> Result<u64> {
        let shards = self.by_shard(users);
        let told = shards.values().map(|users| Box::pin(self.tell_shard_with_sessions(users)));
        futures_util::future::join_all(told).await.into_iter().sum()
    }

    async fn tell_shard_with_sessions(&self, users: &[UserId]) -> Result<u64> {
        let mut evicted = 0;
        for chunk in users.chunks(CHUNK as usize) {
            let (mut allowed, mut barred) = (Vec::new(), Vec::new());
            for (user, standing) in self.store.standings(chunk).await? {
                if standing == Standing::MayBePresent { &mut allowed } else { &mut barred }.push(user);
            }
            evicted += self.tell(&barred).await?;
            let ends = self.store.untold_ends_of(&allowed).await?;
            self.end_in_redis(&ends).await?;
            evicted += self.tell(&allowed).await?;
        }
        Ok(evicted)
    }

    /// Ends these sessions in Redis. That it was told is noted by the task that tells of all ends: to note it here would let
    /// a block wait for a write to SQL.
    async fn end_in_redis(&self, ends: &[UntoldEnd]) -> Result<()> {
        if ends.is_empty() {
            return Ok(());
        }
        self.untold.notify_one();
        Ok(self.live.end_again(&sessions(ends)).await?)
    }

    /// Ends sessions in Redis that a request has just ended in SQL; of very many the first ones, the others soon.
    pub(in crate::presence) async fn end_now(&self, user: UserId, sids: &[SessionId]) -> Result<()> {
        let first = sids.iter().take(AT_ONCE).map(|sid| (user, sid.clone())).collect::<Vec<_>>();
        Ok(self.live.end_again(&first).await?)
    }

    /// Tells Redis of all ends that it was not told of, account by account and a bounded number of each at a time. Whether
    /// all are noted: not where another transaction holds rows of them.
    ///
    /// # Errors
    /// Where a shard could not be told, or SQL failed; what could be told was.
    pub(in crate::presence) async fn tell_untold_ends(&self) -> Result<bool> {
        let mut sweep = Sweep::default();
        loop {
            let page = self.store.untold_ends(sweep.after).await?;
            sweep.found += page.ends.len() as u64;
            match self.tell_page(page.ends).await {
                Ok(noted) => sweep.noted += noted,
                // Of one server there is nothing else to tell.
                Err(error) if self.live.shards().len() == 1 => return Err(error),
                Err(error) => sweep.failed = Some(error),
            }
            match (page.next, sweep.failed.take()) {
                (Some(next), failed) => (sweep.after, sweep.failed) = (next, failed),
                (None, Some(error)) => return Err(error),
                (None, None) if sweep.found == 0 => return Ok(true),
                (None, None) if sweep.noted == 0 => return Ok(false),
                // Once more from the beginning: accounts with more than their share of a page, and what has come since.
                (None, None) => sweep = Sweep::default(),
            }
        }
    }

    async fn tell_page(&self, mut ends: Vec<UntoldEnd>) -> Result<u64> {
        let mut followed = Ok(());
        if ends.iter().any(|end| end.blocked) {
            // The log holds every block whose ends this page shows: it is told before them.
            followed = self.follow().await.map(drop);
            if followed.is_err() {
                ends.retain(|end| !end.blocked);
            }
        }
        let noted = self.tell_and_note(&ends).await?;
        followed.map(|()| noted)
    }

    /// Each shard that can be told is, and what it was told is noted, whatever becomes of the others.
    async fn tell_and_note(&self, ends: &[UntoldEnd]) -> Result<u64> {
        let mut shards: HashMap<u32, Vec<UntoldEnd>> = HashMap::new();
        for end in ends {
            shards.entry(self.live.shard_of(end.user)).or_default().push(end.clone());
        }
        let telling = shards.into_iter().map(|(shard, ends)| {
            Box::pin(async move {
                // The time comes first: no token of these sessions was made later.
                let now = self.live.now(shard).await?;
                self.live.end_again(&sessions(&ends)).await?;
                Ok::<_, PresenceError>(ends.into_iter().map(move |end| (end.sid, now)))
            })
        });
        let (mut told, mut outcome) = (Vec::new(), Ok(()));
        for one in futures_util::future::join_all(telling).await {
            match one {
                Ok(ends) => told.extend(ends),
                Err(error) => outcome = Err(error),
            }
        }
        let noted = self.store.ends_told(&told).await?;
        outcome.map(|()| noted)
    }
}

/// One walk over the accounts with untold ends.
#[derive(Default)]
struct Sweep {
    /// The account after which the next page begins.
    after: UserId,
    found: u64,
    noted: u64,
    failed: Option<PresenceError>,
}

/// A name that no token can bear is left out: there is nothing to refuse.
fn sessions(ends: &[UntoldEnd]) -> Vec<(UserId, SessionId)> {
    ends.iter().filter_map(|end| Some((end.user, SessionId::parse(&end.sid)?))).collect()
}
