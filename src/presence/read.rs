//! Reading: one query to SQL, one round trip to Redis, and the merge.

use std::collections::HashMap;
use std::sync::atomic::Ordering;

use super::{ListQuery, Listing, PresenceError, PresenceService, Reading, User};
use crate::live::LiveError;
use crate::model::merge::{Evidence, effective};
use crate::model::{Account, Millis, Page, Presence, UserId};
use crate::store::{AccountFilter, PresenceFilter};

type Result<T> = std::result::Result<T, PresenceError>;

/// What Redis says of a user; `None` where it could not be asked.
type Heard = Option<Option<Presence>>;

/// How many users may be on the way from Redis to SQL's mirror before a filtered list stops looking further.
const UNSETTLED_AT_MOST: u32 = 10_000;

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

    /// A page of all accounts that match.
    pub async fn list(&self, query: &ListQuery, page: Page) -> Result<Reading<Listing>> {
        let filter = self.filter(query).await;
        let (accounts, count) = tokio::join!(
            self.inner.store.list_accounts(&filter, page),
            self.or_degraded(self.inner.live.online_count())
        );
        let accounts = accounts?;
        let Reading { value: mut users, degraded } = self.read(accounts.accounts).await?;
        // A page without users asks Redis for none; the count does.
        let count = count.filter(|_| !degraded);
        let degraded = count.is_none();
        if let Some(asked) = query.online_status {
            // Whoever changed between the two reads belongs to another list now.
            users.retain(|user| user.presence.status == asked);
        }
        let online_count = match count {
            Some(count) => count,
            None => self.inner.store.list_present_in_mirror(self.heard_since(), FIRST).await?.total,
        };
        Ok(Reading { value: Listing { users, total: accounts.total, online_count }, degraded })
    }

    /// A page of who is online or away, most recently seen first.
    pub async fn online(&self, page: Page) -> Result<Reading<Listing>> {
        let Some(present) = self.or_degraded(self.inner.live.online(page)).await else {
            return self.online_by_mirror(page).await;
        };
        let accounts = self.inner.store.accounts(&present.users).await?;
        let mut by_id: HashMap<UserId, Account> =
            accounts.into_iter().map(|account| (account.id, account)).collect();
        let accounts = present.users.iter().filter_map(|id| by_id.remove(id)).collect();
        let Reading { value: mut users, degraded } = self.read(accounts).await?;
        if degraded {
            return self.online_by_mirror(page).await;
        }
        users.retain(|user| user.presence.status.is_online());
        let listing = Listing { users, total: present.count, online_count: present.count };
        Ok(Reading { value: listing, degraded: false })
    }

    async fn online_by_mirror(&self, page: Page) -> Result<Reading<Listing>> {
        let list = self.inner.store.list_present_in_mirror(self.heard_since(), page).await?;
        let Reading { value: users, .. } = self.merge(list.accounts, None);
        Ok(Reading { value: Listing { users, total: list.total, online_count: list.total }, degraded: true })
    }

    /// The filter by effective status: SQL's mirror, put right by what Redis has not handed over yet.
    async fn filter(&self, query: &ListQuery) -> AccountFilter {
        let mut filter = query.accounts.clone();
        if let Some(is) = query.online_status {
            let unsettled = self.or_degraded(self.inner.live.unsettled(UNSETTLED_AT_MOST)).await;
            filter.presence = Some(match unsettled {
                Some(corrections) => PresenceFilter { is, corrections, mirror_counts_since: None },
                None => {
                    PresenceFilter { is, corrections: vec![], mirror_counts_since: Some(self.heard_since()) }
                }
            });
        }
        filter
    }

    /// Redis's word on each account; SQL's where that is missing, and then the answer is degraded.
    fn merge(&self, accounts: Vec<Account>, presences: Option<Vec<Heard>>) -> Reading<Vec<User>> {
        let mut degraded = presences.is_none();
        let mirror = Evidence::Mirror { now: wall_clock(), ttl_ms: self.inner.live.ttl_ms() };
        let mut presences = presences.into_iter().flatten();
        let users = accounts.into_iter().map(|account| {
            let heard = presences.next().flatten();
            degraded |= heard.is_none();
            let evidence = heard.map_or(mirror, Evidence::Live);
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
