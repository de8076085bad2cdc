//! Reading: one statement to SQL, one round trip to Redis, and the merge.

use std::collections::HashMap;
use std::sync::atomic::Ordering;

use super::{ListQuery, Listing, PresenceError, PresenceService, Reading, User};
use crate::live::{InShard, LiveError};
use crate::model::merge::{Evidence, effective};
use crate::model::{Account, Millis, OnlineCursor, Page, Place, UserId};
use crate::store::{AccountFilter, AccountList, PresenceFilter};

type Result<T> = std::result::Result<T, PresenceError>;

/// How many users of a shard may be on the way from Redis to SQL's mirror before a filtered list goes by the mirror alone, and
/// says that it is degraded: correcting the mirror by more of them would hold Redis and SQL up.
const UNSETTLED_AT_MOST: usize = 200_000;

impl PresenceService {
    /// The effective status of these accounts, in their order.
    pub async fn read(&self, accounts: Vec<Account>) -> Result<Reading<Vec<User>>> {
        let ids: Vec<UserId> = accounts.iter().map(|account| account.id).collect();
        let presences = self.or_degraded(self.inner.live.read_what_answers(&ids)).await;
        Ok(self.merge(accounts, presences))
    }

    /// One account with its status.
    pub async fn user(&self, id: UserId) -> Result<Reading<Option<User>>> {
        let Some(account) = self.inner.store.account(id).await? else {
            return Ok(Reading { value: None, degraded: false });
        };
        let Reading { value, degraded } = self.read(vec![account]).await?;
        Ok(Reading { value: value.into_iter().next(), degraded })
    }

    /// A part of the list of all accounts that match, ordered by id: one statement, then one call of Redis a shard. A filter
    /// by status asks Redis before as well, for what SQL's mirror does not know yet.
    pub async fn list(
        &self,
        query: &ListQuery,
        place: Place<UserId>,
        askers: &[UserId],
    ) -> Result<Reading<Listing<UserId>>> {
        let (filter, is_uncorrected) = self.filter(query).await;
        let AccountList { accounts, has_more, total, askers } =
            self.inner.store.list_accounts(&filter, place, askers).await?;
        let next = accounts.last().filter(|_| has_more).map(|account| account.id);
        let ids: Vec<UserId> = accounts.iter().map(|account| account.id).collect();
        let found = self.or_degraded(self.inner.live.read_and_count(&ids)).await;
        // A count that lacks users who have not been heard since a loss of data is none.
        let counted = |settles: bool, count: Option<i64>| count.filter(|_| !settles);
        let (count, presences) =
            found.map(|found| (counted(found.settles, found.count), found.users)).unzip();
        let Reading { value: mut users, mut degraded } = self.merge(accounts, presences);
        degraded |= is_uncorrected;
        if let Some(asked) = query.online_status {
            // Whoever changed between the two reads belongs to another list now.
            users.retain(|user| user.presence.status == asked);
        }
        let online_count = if let Some(count) = count.flatten() {
            count
        } else {
            degraded = true;
            let mirror = self.inner.store.list_present_in_mirror(self.heard_since(), FIRST.into(), &[]);
            mirror.await?.total
        };
        Ok(Reading { value: Listing { users, total, online_count, next, askers }, degraded })
    }

    /// A part of the list of who is online or away, most recently seen first. The live set says who, in one call a shard;
    /// then SQL and Redis are asked at once about them.
    ///
    /// Whoever sends a heartbeat moves to the front, away from a walk by cursors: it meets nobody twice, and everybody who
    /// stays and is silent meanwhile. By page numbers those whom somebody overtakes are met twice.
    pub async fn online(
        &self,
        place: Place<OnlineCursor>,
        askers: &[UserId],
    ) -> Result<Reading<Listing<OnlineCursor>>> {
        let Some(present) = self.or_degraded(self.inner.live.online(place)).await else {
            return self.online_by_mirror(place, askers).await;
        };
        if present.settles {
            return self.online_by_mirror(place, askers).await;
        }
        let asked = [&present.users, askers].concat();
        let (accounts, presences) = tokio::join!(
            self.inner.store.accounts(&asked),
            self.or_degraded(self.inner.live.read_what_answers(&present.users))
        );
        let Some(presences) = presences else { return self.online_by_mirror(place, askers).await };
        if presences.iter().any(|user| !matches!(user, InShard::Known { .. })) {
            return self.online_by_mirror(place, askers).await;
        }
        let mut by_id: HashMap<UserId, Account> =
            accounts?.into_iter().map(|account| (account.id, account)).collect();
        let askers = askers.iter().filter_map(|id| by_id.get(id).cloned()).collect();
        let users = present.users.iter().zip(presences).filter_map(|(id, presence)| {
            let account = by_id.remove(id)?;
            let InShard::Known { now, presence } = presence else { return None };
            let presence = effective(&account, Evidence::Live { now, presence });
            presence.status.is_online().then_some(User { account, presence })
        });
        let (users, count) = (users.collect(), present.count);
        let listing = Listing { users, total: count, online_count: count, next: present.next, askers };
        Ok(Reading { value: listing, degraded: false })
    }

    async fn online_by_mirror(
        &self,
        place: Place<OnlineCursor>,
        askers: &[UserId],
    ) -> Result<Reading<Listing<OnlineCursor>>> {
        let ttl_ms = self.inner.live.ttl_ms();
        let place = match place {
            Place::Page(page) => Place::Page(page),
            Place::After(cursor, size) => Place::After((cursor.deadline.plus(-ttl_ms), cursor.user), size),
        };
        let AccountList { accounts, has_more, total, askers } =
            self.inner.store.list_present_in_mirror(self.heard_since(), place, askers).await?;
        let last = accounts.last().filter(|_| has_more);
        let next = last.and_then(|account| {
            Some(OnlineCursor { deadline: account.last_seen?.plus(ttl_ms), user: account.id })
        });
        // Redis may be there, and have lost its data lately: it knows who has been heard since.
        let ids: Vec<UserId> = accounts.iter().map(|account| account.id).collect();
        let heard = self.or_degraded(self.inner.live.read_what_answers(&ids)).await;
        let Reading { value: mut users, .. } = self.merge(accounts, heard);
        users.retain(|user| user.presence.status.is_online());
        let listing = Listing { users, total, online_count: total, next, askers };
        Ok(Reading { value: listing, degraded: true })
    }

    /// The filter by effective status: SQL's mirror, put right by what Redis has not handed over yet; and whether that could
    /// not be done.
    async fn filter(&self, query: &ListQuery) -> (AccountFilter, bool) {
        let ListQuery { search, search_email, status, online_status } = query.clone();
        let mut filter = AccountFilter { search, search_email, status, presence: None };
        let mut is_uncorrected = false;
        if let Some(is) = online_status {
            let unsettled = self.or_degraded(self.inner.live.unsettled(UNSETTLED_AT_MOST)).await.flatten();
            is_uncorrected = unsettled.is_none();
            filter.presence = Some(match unsettled {
                Some(corrections) => PresenceFilter { is, corrections, mirror_counts_since: None },
                None => {
                    PresenceFilter { is, corrections: vec![], mirror_counts_since: Some(self.heard_since()) }
                }
            });
        }
        (filter, is_uncorrected)
    }

    /// Redis's word on each account; SQL's where that is missing, and then the answer is degraded.
    fn merge(&self, accounts: Vec<Account>, presences: Option<Vec<InShard>>) -> Reading<Vec<User>> {
        let mut degraded = presences.is_none();
        let ttl_ms = self.inner.live.ttl_ms();
        let mut presences = presences.into_iter().flatten();
        let users = accounts.into_iter().map(|account| {
            let evidence = match presences.next().unwrap_or(InShard::Silent) {
                InShard::Silent => Evidence::Mirror { now: wall_clock(), ttl_ms },
                InShard::Unheard { now } => Evidence::Mirror { now, ttl_ms },
                InShard::Known { now, presence } => Evidence::Live { now, presence },
            };
            degraded |= matches!(evidence, Evidence::Mirror { .. });
            let presence = effective(&account, evidence);
            User { account, presence }
        });
        let value = users.collect();
        Reading { value, degraded }
    }

    /// `None` where Redis could not be asked; the read goes on without it.
    async fn or_degraded<T>(
        &self,
        answer: impl Future<Output = std::result::Result<T, LiveError>>,
    ) -> Option<T> {
        // Of several servers a silent one is known to be down by now, and fails at once.
        let [one] = &self.inner.silent[..] else { return self.note_trouble(answer.await) };
        if one.load(Ordering::Relaxed) {
            self.inner.redis_trouble.note(&"the last call had no answer");
            return None;
        }
        let answer = answer.await;
        if answer.is_err() {
            one.store(true, Ordering::Relaxed);
        }
        self.note_trouble(answer)
    }

    fn note_trouble<T>(&self, answer: std::result::Result<T, LiveError>) -> Option<T> {
        match answer {
            Ok(value) => {
                self.inner.redis_trouble.over();
                Some(value)
            }
            Err(error) => {
                self.inner.redis_trouble.note(&error);
                None
            }
        }
    }

    /// Since when a user must have been heard to count as present by the mirror alone.
    fn heard_since(&self) -> Millis {
        wall_clock().plus(-self.inner.live.ttl_ms())
    }
}

const FIRST: Page = Page { number: 1, size: 1 };

/// Without Redis there is no Redis clock. This one decides only how long the mirror is believed, in answers marked
/// degraded.
fn wall_clock() -> Millis {
    Millis::from_utc(chrono::Utc::now())
}
