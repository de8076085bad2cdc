//! Presence: all that `http` and `tasks` ask about who is there.
//!
//! Owns the group commit (`batch`), what is counted of it (`counts`), the merge of Redis and SQL into answers (`read`), the
//! sharing of one answer among those who ask the same (`shared`) or within a while (`probe_cache`), and the upkeep of the fence
//! (`fence`). Decides no status itself: the scripts in `lua/` and the pure functions of `model` do.

mod batch;
mod counts;
pub mod drill;
mod fence;
mod health;
mod probe_cache;
mod read;
mod restored;
mod shared;
mod trouble;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::Notify;

use self::batch::Batcher;
use self::counts::Counts;
use self::fence::FenceKeeper;
use self::probe_cache::ProbeCache;
use crate::live::{Checked, Heartbeat, LiveError, LiveSet, StatusOutcome};
use crate::metrics::Registry;
use crate::model::{
    Account, AccountStatus, HeartbeatWord, Millis, OnlineStatus, SessionId, SessionKey, UserId,
    merge::Effective,
};
use crate::store::{Store, StoreError};

pub use self::health::Health;
pub use self::shared::{Shared, Unanswered};
pub use self::trouble::{Share, Trouble};
pub use crate::store::EmailSearch;

/// How long a heartbeat may wait for the fence: API.md allows 2 s where Redis hangs, and a reader who was let in by SQL
/// instead still needs SQL's answer within them.
const HEARTBEAT_PATIENCE: Duration = Duration::from_millis(1_500);
/// What can go wrong when presence is asked.
#[derive(Debug, thiserror::Error)]
pub enum PresenceError {
    /// The account may not be present.
    #[error("this account may not sign in or be present")]
    Blocked,
    /// The session was logged out.
    #[error("this session has ended")]
    SessionEnded,
    /// There is no such account.
    #[error("there is no such account")]
    NoSuchAccount,
    /// Redis is away, or does not answer in time.
    #[error("Redis is not available: {0}")]
    RedisUnavailable(String),
    /// Redis answers, but takes no writes: it is read-only, out of memory, or loading.
    #[error("Redis takes no changes: {0}")]
    RedisRefuses(String),
    /// More heartbeats wait than may.
    #[error("too many heartbeats are waiting for Redis")]
    Overloaded,
    /// SQL is away, or failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What a heartbeat came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Beat {
    /// The user's status after it.
    pub status: OnlineStatus,
    /// Redis's time of that step.
    pub last_seen: Millis,
}

/// Whether a request counts as an activity of its user.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activity {
    /// It renews the user's presence.
    Counts,
    /// It leaves no trace: the caller is checked, and nothing else.
    DoesNotCount,
}

/// An account with its effective status.
#[derive(Debug, Clone)]
pub struct User {
    /// The account.
    pub account: Account,
    /// Its status and `last_seen` after the merge.
    pub presence: Effective,
}

/// An answer about presence, and whether SQL alone gave it.
#[derive(Debug, Clone)]
pub struct Reading<T> {
    /// The answer.
    pub value: T,
    /// Whether Redis could not be asked.
    pub degraded: bool,
}

/// One part of a list of users, in which a `C` names a place.
#[derive(Debug, Clone)]
pub struct Listing<C> {
    /// The page.
    pub users: Vec<User>,
    /// How many users match, on all pages.
    pub total: i64,
    /// How many users are online or away, whatever the page and the filter.
    pub online_count: i64,
    /// Behind whom the next part begins; `None` at the end.
    pub next: Option<C>,
    /// Those who asked, as SQL has them at that instant; those who exist, in any order.
    pub askers: Vec<Account>,
}

/// Which users a list shows.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct ListQuery {
    /// Only users whose username holds this, whatever the case.
    pub search: Option<String>,
    /// Whether the e-mail is searched too.
    pub search_email: EmailSearch,
    /// Only accounts of this standing.
    pub status: Option<AccountStatus>,
    /// Only users of this effective status.
    pub online_status: Option<OnlineStatus>,
}

impl ListQuery {
    /// Whether it asks for some of the accounts: to find and to count them every account is read.
    pub const fn is_narrowed(&self) -> bool {
        self.search.is_some() || self.status.is_some() || self.online_status.is_some()
    }
}

/// The service; clones share one inside.
#[derive(Clone)]
pub struct PresenceService {
    inner: Arc<Inner>,
}

struct Inner {
    live: LiveSet,
    store: Arc<dyn Store>,
    fence: FenceKeeper,
    batcher: Batcher,
    counts: Counts,
    heartbeat_trouble: Trouble,
    redis_trouble: Trouble,
    /// Whether the latest heartbeat or read found Redis silent: the first for all shards where one server has them, else
    /// one each. Every request that reads begins with a heartbeat, so a read which finds the one server's set does not wait
    /// for Redis once more.
    silent: Vec<AtomicBool>,
    /// Told when that is over.
    answers_again: Notify,
    health: ProbeCache<Health>,
    measured: ProbeCache<Arc<Registry>>,
}

impl Inner {
    /// Notes whether Redis has just answered about this user.
    fn heard(&self, user: UserId, answered: bool) {
        let shard = if self.silent.len() == 1 { 0 } else { self.live.shard_of(user) };
        let silent = &self.silent[shard as usize];
        // Written only where it changes: heartbeats on all cores share this line of the cache.
        if silent.load(Ordering::Relaxed) == answered {
            silent.store(!answered, Ordering::Relaxed);
            if answered {
                self.answers_again.notify_one();
            }
        }
    }
}

impl PresenceService {
    /// Puts the service together; `ended_ttl` is the lifetime of an access token.
    pub fn new(live: LiveSet, store: Arc<dyn Store>, ended_ttl: Duration) -> Self {
        let fence = FenceKeeper::new(live.clone(), store.clone(), ended_ttl);
        let counts = Counts::new();
        let batcher = Batcher::start(&live, &fence, &counts.batch_sizes);
        let redis_trouble = Trouble::new("Redis does not answer; reads come from SQL, marked degraded");
        let servers_apart = if live.is_on_one_server() { 1 } else { live.shards().len() };
        let inner = Inner {
            live,
            store,
            fence,
            batcher,
            counts,
            heartbeat_trouble: Trouble::new("heartbeats get 503: Redis does not take them"),
            redis_trouble,
            silent: (0..servers_apart).map(|_| AtomicBool::new(false)).collect(),
            answers_again: Notify::new(),
            health: ProbeCache::new(health::GOOD_FOR),
            measured: ProbeCache::new(health::GOOD_FOR),
        };
        Self { inner: Arc::new(inner) }
    }

    /// Records a heartbeat: one entry in the group commit.
    ///
    /// # Errors
    /// [`PresenceError::Blocked`], [`PresenceError::SessionEnded`], [`PresenceError::RedisUnavailable`],
    /// [`PresenceError::RedisRefuses`], [`PresenceError::Overloaded`].
    pub async fn heartbeat(&self, who: &SessionKey, word: HeartbeatWord) -> Result<Beat, PresenceError> {
        let outcome = self.inner.batcher.submit(Heartbeat { who: who.clone(), word }).await;
        self.inner.counts.count(&outcome);
        match &outcome {
            Err(error @ PresenceError::RedisUnavailable(_)) => {
                self.inner.heard(who.user, false);
                self.inner.heartbeat_trouble.note(error);
            }
            // It answers, and may be read.
            Err(error @ PresenceError::RedisRefuses(_)) => {
                self.inner.heard(who.user, true);
                self.inner.heartbeat_trouble.note(error);
            }
            Err(PresenceError::Overloaded) => {}
            _ => {
                self.inner.heard(who.user, true);
                self.inner.heartbeat_trouble.over();
            }
        }
        outcome
    }

    /// Lets a reader in: an activity touch, where the request counts as one. Where Redis is away or takes no changes, SQL
    /// says whether account and session still may.
    pub async fn admit_reader(&self, who: &SessionKey, activity: Activity) -> Result<(), PresenceError> {
        match self.admit_writer(who, activity).await {
            Err(PresenceError::RedisUnavailable(_) | PresenceError::RedisRefuses(_)) => {
                self.admit_by_sql(who).await
            }
            admitted => admitted,
        }
    }

    /// Lets a writer in: an activity touch, where the request counts as one. Redis must have heard of the caller.
    pub async fn admit_writer(&self, who: &SessionKey, activity: Activity) -> Result<(), PresenceError> {
        match activity {
            Activity::Counts => self.heartbeat(who, HeartbeatWord::Touch).await.map(drop),
            Activity::DoesNotCount => self.check_in_time(who).await,
        }
    }

    /// [`Self::check`] within the time that a heartbeat has, on data that are whole: a Redis that has lost them would let
    /// blocked accounts and ended sessions in, so the fence must stand first, as for a heartbeat.
    async fn check_in_time(&self, who: &SessionKey) -> Result<(), PresenceError> {
        let checked = async {
            self.inner.fence.stand(self.inner.live.shard_of(who.user)).await?;
            self.check(who).await
        };
        let late = || PresenceError::RedisUnavailable("it did not answer in time".into());
        let checked = tokio::time::timeout(HEARTBEAT_PATIENCE, Box::pin(checked)).await;
        let checked = checked.unwrap_or_else(|_| Err(late()));
        match &checked {
            // The fence is built from SQL, without which nothing is known of the caller.
            Err(PresenceError::Overloaded | PresenceError::Store(_)) => {}
            Err(PresenceError::RedisUnavailable(_)) => self.inner.heard(who.user, false),
            _ => self.inner.heard(who.user, true),
        }
        checked
    }

    async fn admit_by_sql(&self, who: &SessionKey) -> Result<(), PresenceError> {
        let store = &self.inner.store;
        let account = store.account(who.user).await?.ok_or(PresenceError::NoSuchAccount)?;
        if !account.may_be_present() {
            return Err(PresenceError::Blocked);
        }
        match &who.sid {
            Some(sid) if store.session_has_ended(who.user, sid).await? => Err(PresenceError::SessionEnded),
            _ => Ok(()),
        }
    }

    /// Whether account and session still may, without counting as activity (for a logout).
    pub async fn check(&self, who: &SessionKey) -> Result<(), PresenceError> {
        let mut checked = self.inner.live.check(who.user, who.sid.as_ref()).await?;
        if checked == Checked::Unfenced {
            self.inner.fence.stand(self.inner.live.shard_of(who.user)).await?;
            checked = self.inner.live.check(who.user, who.sid.as_ref()).await?;
        }
        match checked {
            Checked::Good => Ok(()),
            Checked::Blocked => Err(PresenceError::Blocked),
            Checked::SessionEnded => Err(PresenceError::SessionEnded),
            Checked::Unfenced => Err(being_prepared()),
        }
    }

    /// A session ends: its tokens stop working, and the user is offline unless another session is alive. Without a
    /// `sid` there is no session that could end. Where Redis does not hear it, it is told again once it answers
    /// ([`Self::answers_again`]).
    pub async fn leave(&self, who: &SessionKey) -> Result<(), PresenceError> {
        self.leave_until(who, Millis(0)).await
    }

    /// As [`Self::leave`], where a token of the session is known that is good until then.
    pub async fn leave_until(&self, who: &SessionKey, expires_at: Millis) -> Result<(), PresenceError> {
        if let Some(sid) = &who.sid {
            let left = self.inner.live.leave(who.user, sid, expires_at).await;
            if left.is_err() {
                self.inner.heard(who.user, false);
            }
            left?;
        }
        Ok(())
    }

    /// An administrator sets a status.
    pub async fn set_status(&self, user: UserId, to: OnlineStatus) -> Result<User, PresenceError> {
        let account = self.inner.store.account(user).await?.ok_or(PresenceError::NoSuchAccount)?;
        if to.is_online() && !account.may_be_present() {
            return Err(PresenceError::Blocked);
        }
        let mut outcome = self.inner.live.set_status(user, to).await?;
        if outcome != StatusOutcome::Done {
            // No fence yet, or one that has not heard what SQL has just said.
            self.inner.fence.apply(&[user]).await?;
            outcome = self.inner.live.set_status(user, to).await?;
        }
        match outcome {
            StatusOutcome::Done => {}
            StatusOutcome::Blocked => return Err(PresenceError::Blocked),
            StatusOutcome::Unfenced => {
                return Err(being_prepared());
            }
        }
        let read = self.read(vec![account]).await?;
        read.value.into_iter().next().ok_or(PresenceError::NoSuchAccount)
    }

    /// Brings the fence in Redis, and with it the live set, in line with what SQL now says of these accounts. Returns
    /// how many were taken offline by it.
    pub async fn account_changed(&self, users: &[UserId]) -> Result<u64, PresenceError> {
        self.inner.fence.apply(users).await
    }

    /// Follows SQL's log of account changes to its end; for the loop that watches it.
    pub async fn follow_account_changes(&self) -> Result<u64, PresenceError> {
        self.inner.fence.follow().await
    }

    /// Redis was away, restarted, or has lost data: makes sure that the fence stands, and tells Redis what it may have
    /// missed.
    ///
    /// # Errors
    /// Where a shard could not be told; all others were.
    pub async fn restore_fence(&self) -> Result<(), PresenceError> {
        let stands = self.inner.fence.stand_everywhere().await;
        self.inner.fence.end_sessions_again();
        let followed = self.inner.fence.follow().await.map(drop);
        stands.and(followed)
    }

    /// Sessions of a user have ended in SQL: their tokens stop working, and the user is offline unless another session is
    /// alive. Where Redis does not hear it, it is told again.
    pub async fn sessions_ended(&self, user: UserId, sids: &[SessionId]) -> Result<(), PresenceError> {
        let ended = self.inner.fence.end_now(user, sids).await;
        if ended.is_err() {
            self.inner.heard(user, false);
        }
        ended
    }

    /// Tells Redis of all ends of sessions that it was not told of; for the task that does so. Whether it is noted of each
    /// that Redis was told: not where another transaction holds its row.
    ///
    /// # Errors
    /// Where a shard could not be told, or SQL failed.
    pub async fn tell_session_ends(&self) -> Result<bool, PresenceError> {
        self.inner.fence.tell_untold_ends().await
    }

    /// Says that sessions may have ended in SQL: [`Self::untold_session_ends`] returns.
    pub fn sessions_may_have_ended(&self) {
        self.inner.fence.end_sessions_again();
    }

    /// Returns when sessions may have ended of which Redis was not told.
    pub async fn untold_session_ends(&self) {
        self.inner.fence.sessions_ended().await;
    }

    /// The process ends: what it was preparing in Redis is somebody else's to begin at once.
    pub async fn resign(&self) -> Result<(), PresenceError> {
        self.inner.fence.give_up().await
    }

    /// Waits until Redis answers after it did not. It may have missed the end of sessions meanwhile, and may have taken
    /// a login that had been given up: [`Self::restore_fence`] puts both right. There need not have been a reconnection.
    pub async fn answers_again(&self) {
        self.inner.answers_again.notified().await;
    }

    /// Returns when a worker of the group commit has died, which none should, and says so: what waits for it would wait
    /// in vain.
    pub async fn failed(&self) -> String {
        self.inner.batcher.worker_died().await;
        "a worker of the group commit has died".to_string()
    }
}

fn being_prepared() -> PresenceError {
    PresenceError::RedisUnavailable("it has lost data and is being prepared".into())
}

/// A name that nobody else has.
fn random_token() -> String {
    let mut bytes = [0; 16];
    // Without a source of randomness the time must do; it is told apart from others, not kept secret.
    if getrandom::fill(&mut bytes).is_err() {
        bytes[..8].copy_from_slice(&chrono::Utc::now().timestamp_micros().to_le_bytes());
    }
    format!("{:032x}", u128::from_le_bytes(bytes))
}

impl From<&LiveError> for PresenceError {
    fn from(error: &LiveError) -> Self {
        match error {
            LiveError::Refused(reason) => Self::RedisRefuses(reason.clone()),
            other => Self::RedisUnavailable(other.to_string()),
        }
    }
}

impl From<LiveError> for PresenceError {
    fn from(error: LiveError) -> Self {
        Self::from(&error)
    }
}
