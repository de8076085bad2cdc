//! Everything SQL: accounts, login sessions, the history of transitions, and the log of account changes.
//!
//! One trait, two databases: [`postgres`] for production, [`sqlite`] embedded. Both pass the conformance suite in
//! `tests/it/store/`. No other room knows a column or writes a statement; nobody here knows Redis or HTTP.

mod administrators;
mod batch;
mod change_range;
mod import;
mod lease;
mod list_query;
mod listing;
mod names;
pub mod postgres;
mod rotation;
mod rows;
mod scans;
mod schema;
pub mod sqlite;
mod texts;
mod types;
mod upkeep;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use crate::model::audit::{Break, HistoryStep, InSql};
use crate::model::{Account, Actor, Deed, Millis, Page, Place, SessionId, StreamId, Transition, UserId};

pub use change_range::ChangeRange;
pub use import::{Clash, ImportRow, Imported};
pub use names::{Holder, NAMES_AT_ONCE, NameClash, NamesInSql};
pub use types::{
    AccountChanges, AccountFilter, AccountList, AccountPatch, Begun, ChangeCursor, Credentials, EmailSearch,
    Ended, MirrorRow, NewAccount, NewSession, PasswordHash, PresenceFilter, RecordOutcome, RefreshHash,
    Rotation, RotationRequest, Session, SessionEnd, SessionList, SetAside, Standing, StoreError, Trail,
    TrailFilter, UntoldEnd, UntoldEnds, Woken,
};
pub use upkeep::{MirrorPage, Upkeep};

type Result<T> = std::result::Result<T, StoreError>;

/// Opens the database that `url` names (`postgres://…` or `sqlite://…`), without asking it anything yet: an absent
/// PostgreSQL shows at the first statement, so that a start can wait for it.
///
/// # Errors
/// [`StoreError::Url`] where the URL is of neither kind or cannot be read.
pub async fn open(url: &str, options: &Options) -> Result<Arc<dyn Store>> {
    let scheme = url.split_once(':').map_or("", |(scheme, _)| scheme);
    match scheme {
        "postgres" | "postgresql" => Ok(Arc::new(postgres::Postgres::open(url, options)?)),
        "sqlite" => Ok(Arc::new(sqlite::Sqlite::open(url, options).await?)),
        _ => Err(StoreError::Url(format!("the scheme '{scheme}' is neither postgres:// nor sqlite://"))),
    }
}

/// Opens the SQLite database at a path, which is no URL: it may have any character.
///
/// # Errors
/// [`StoreError::Url`] where the path is not UTF-8, [`StoreError::File`] where it is not private and cannot be made so.
pub async fn open_file(path: &Path, options: &Options) -> Result<Arc<dyn Store>> {
    Ok(Arc::new(sqlite::Sqlite::open_file(path, options).await?))
}

/// The file of the SQLite database that a URL names; `None` for another kind of database.
///
/// # Errors
/// [`StoreError::Url`] where the URL names no file.
pub fn file_of(url: &str) -> Result<Option<PathBuf>> {
    sqlite::file_of(url)
}

/// How a database is used.
#[derive(Debug, Clone)]
pub struct Options {
    /// Connections at most (PostgreSQL) or readers (SQLite, which has one writer besides). Statements that read every account
    /// have connections of their own besides, a quarter as many.
    pub max_connections: u32,
    /// How long a statement may wait for a connection and, apart, how long it may run; what takes longer is
    /// [`StoreError::Unavailable`].
    pub timeout: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self { max_connections: 10, timeout: Duration::from_millis(2_500) }
    }
}

/// A database. Every method is one transaction; every failure of the database itself is
/// [`StoreError::Unavailable`] (gone, refused, too slow: worth a retry), [`StoreError::Locked`] (another transaction was in
/// the way for as long as the call could wait: worth a retry), or [`StoreError::Database`] (it answered, and the answer was
/// no). A statement that reads every account may be [`StoreError::Busy`] too, and ends in the database when its caller gives
/// up.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// Brings the schema up to date; safe to run by several processes at once. Returns the migrations applied now.
    async fn migrate(&self) -> Result<Vec<String>>;

    /// Whether the database answers.
    async fn ping(&self) -> Result<()>;

    /// How many statements this handle has sent since it was opened, waiting for notices apart: what invariant 2 is
    /// tested by.
    fn statements(&self) -> u64;

    /// The random id of the installation that this database is of.
    async fn installation(&self) -> Result<String>;

    // Accounts.

    /// Adds an account. Errors: [`StoreError::Taken`] names the field (`username` or `email`) whose text is another account's
    /// username or e-mail address, by the rule of [`crate::model::login_name`].
    /// Where an administrator did it, the trail says so; as in [`Self::update_account`] and [`Self::delete_account`].
    async fn create_account(&self, new: &NewAccount, by: Option<&Actor>) -> Result<Account>;
    /// The oldest account that can administer; `None` where there is none.
    async fn administrator(&self) -> Result<Option<Account>>;
    /// One account.
    async fn account(&self, id: UserId) -> Result<Option<Account>>;
    /// The accounts with these ids, those that exist, in any order.
    async fn accounts(&self, ids: &[UserId]) -> Result<Vec<Account>>;
    /// The account whose username or e-mail address is `login` by the rule of [`crate::model::login_name`], with its password
    /// hash. An account that plain SQL has just added is found too.
    async fn credentials(&self, login: &str) -> Result<Option<Credentials>>;
    /// Computes the keys of up to `limit` accounts whose names the database cannot fold; how many these were. Of two accounts
    /// with the same name the one that holds it goes on holding it, or the older of those from before the keys.
    async fn complete_login_names(&self, limit: u32) -> Result<u64>;
    /// Marks every account that lacks a key, to be completed; how many. Only triggers that were off leave such. Reads all
    /// accounts; may take a minute.
    async fn mark_incomplete_login_names(&self) -> Result<u64>;
    /// Marks these accounts, to be completed.
    async fn mark_login_names(&self, users: &[UserId]) -> Result<()>;
    /// Up to `limit` accounts that share a login name with another which holds it, ascending by id, all ids greater than
    /// `after`.
    async fn login_name_clashes(&self, after: UserId, limit: u32) -> Result<Vec<NameClash>>;
    /// Up to `limit` accounts with the keys of their names, ascending by id, all ids greater than `after`.
    async fn login_names_after(&self, after: UserId, limit: u32) -> Result<Vec<NamesInSql>>;
    /// The same for these ids, those that exist.
    async fn login_names(&self, users: &[UserId]) -> Result<Vec<NamesInSql>>;
    /// One part of the accounts that match, ordered by id, how many match in all, and the accounts `askers`. One statement,
    /// so all of it is as of one instant. Without a filter it reads what it returns, and at a page by its number the counts
    /// of the blocks and one block besides; with one it reads all accounts, to count.
    async fn list_accounts(
        &self,
        filter: &AccountFilter,
        place: Place<UserId>,
        askers: &[UserId],
    ) -> Result<AccountList>;
    /// One part of the accounts that may be present, whose mirror says that they are, and that were last seen at
    /// `since` or later, most recently seen first (then the larger id): who is online as far as SQL can tell. A cursor is
    /// the `last_seen` and the id of the one before. Otherwise as [`Self::list_accounts`]; reads all accounts.
    async fn list_present_in_mirror(
        &self,
        since: Millis,
        place: Place<(Millis, UserId)>,
        askers: &[UserId],
    ) -> Result<AccountList>;
    /// Puts right how many accounts there are said to be, in all and in each block of ids; returns how many of these
    /// numbers were wrong. They can be only where triggers were off (a restore, `INSERT OR REPLACE` on SQLite). Reads all
    /// accounts and keeps nobody waiting but SQLite's other writers, where something is wrong; may take a minute.
    async fn mend_counts(&self) -> Result<u64>;
    /// Changes what `patch` names; `None` where there is no such account. A new password, or a change after which the
    /// account may not be present, ends its sessions. Errors: [`StoreError::Taken`], [`StoreError::LastAdministrator`].
    async fn update_account(
        &self,
        id: UserId,
        patch: &AccountPatch,
        by: Option<&Actor>,
    ) -> Result<Option<Account>>;
    /// Deletes the account, its sessions and its history; whether there was one. Errors:
    /// [`StoreError::LastAdministrator`].
    async fn delete_account(&self, id: UserId, by: Option<&Actor>) -> Result<bool>;
    /// Puts another hash of the same password in the place of `old`; whether that still was the account's. Ends no
    /// session.
    async fn replace_password_hash(&self, id: UserId, old: &PasswordHash, new: &PasswordHash)
    -> Result<bool>;

    /// Up to `limit` hashes that are neither as `identity` makes them nor marked as unusable, of the newest accounts. Has an
    /// index of its own.
    async fn foreign_hashes(&self, limit: u32) -> Result<Vec<PasswordHash>>;

    /// Brings accounts in, all of them or, where one is refused, none; and none in a dry run. What became of each, in order.
    /// An account that is there already is left as it is. May take minutes. Errors: [`StoreError::Taken`] where somebody
    /// added one of them meanwhile.
    async fn import_accounts(&self, rows: &[ImportRow], dry_run: bool) -> Result<Vec<Imported>>;

    // The trail of administrators.

    /// Adds what an administrator did that is no change of an account's row.
    async fn add_to_trail(&self, by: &Actor, deed: &Deed) -> Result<()>;
    /// One page of the trail, newest first, and how many entries match.
    async fn trail(&self, filter: &TrailFilter, page: Page) -> Result<Trail>;

    // The account rule, as the fence in Redis needs it (invariant 6).

    /// Each id's standing now, in the order of `ids`.
    async fn standings(&self, ids: &[UserId]) -> Result<Vec<(UserId, Standing)>>;
    /// Up to `limit` ids of accounts that may not be present, ascending, all greater than `after`.
    async fn blocked_after(&self, after: UserId, limit: u32) -> Result<Vec<UserId>>;
    /// Where the log of account changes stands: a cursor such that every change which commits later, or is not yet
    /// visible, is returned by [`Self::account_changes`] from it.
    async fn change_cursor(&self) -> Result<ChangeCursor>;
    /// The accounts changed since `since`, each once, and the cursor to go on from. Never misses a change, however
    /// transactions overlapped.
    async fn account_changes(&self, since: &ChangeCursor) -> Result<AccountChanges>;
    /// The next page of a part of the log of account changes; empty where all is read. The pages of a range name each of its
    /// changes once, an account perhaps on several pages.
    async fn read_changes(&self, range: &mut ChangeRange) -> Result<Vec<UserId>>;
    /// Returns as soon as accounts or sessions may have changed, or after `timeout`; a mere wake-up. An error means that
    /// the watch was lost and set up anew at the next call: look at the log then.
    async fn wait_for_account_change(&self, timeout: Duration) -> Result<Woken>;

    // Login sessions.

    /// Adds a session with its first refresh token, if the account may be present and still is as
    /// [`NewSession::password_hash`] says; `None` where not. Ends older sessions where the account would have more alive
    /// than [`NewSession::most_alive`]: first those whose last refresh token has expired, then the oldest. Costs the same
    /// however many sessions of the account have ended.
    async fn create_session(&self, new: &NewSession) -> Result<Option<Begun>>;
    /// A page of the user's sessions that have not ended and whose last refresh token has not expired, newest first.
    async fn sessions(&self, user: UserId, now: Millis, page: Page) -> Result<SessionList>;
    /// Spends a refresh token and issues its successor; see [`Rotation`].
    async fn rotate_refresh(&self, request: &RotationRequest) -> Result<Rotation>;
    /// Ends sessions: their refresh tokens are void from now on. Ending an ended one changes nothing. Where an
    /// administrator does it, the trail has the record, or nothing ends ([`StoreError::Unrecorded`]).
    async fn end_sessions(&self, end: &SessionEnd<'_>) -> Result<Ended>;
    /// Whether a session of that user and name is known and has ended (`false` for names SQL does not know: tokens
    /// may be minted elsewhere).
    async fn session_has_ended(&self, user: UserId, sid: &SessionId) -> Result<bool>;
    /// The sessions whose end Redis was told of at `since` or later, by the clock of Redis; and those of which it was not
    /// told, of accounts that may be present. Of a blocked account Redis refuses every token.
    async fn sessions_ended_since(&self, since: Millis) -> Result<Vec<(UserId, SessionId)>>;
    /// Ends that Redis has not been told of, of accounts greater than `after`: a bounded number of each account, so that
    /// one with many holds up no other.
    async fn untold_ends(&self, after: UserId) -> Result<UntoldEnds>;
    /// The same for these accounts, a bounded number of each and of all: first one of each, then the next of each.
    async fn untold_ends_of(&self, users: &[UserId]) -> Result<Vec<UntoldEnd>>;
    /// Notes that Redis was told of the ends of these sessions, each at that instant by the clock of Redis; returns how
    /// many were untold until now. Rows that another transaction holds are left as they are.
    async fn ends_told(&self, told: &[(String, Millis)]) -> Result<u64>;

    // The history.

    /// Redis's time of the newest stream entry of a shard that SQL has taken, whether or not the history still holds it.
    async fn newest_transition(&self, shard: u32) -> Result<Option<Millis>>;
    /// A stream id that is no older than any entry that SQL has taken, of whatever shard (with another number of shards,
    /// users move between them); `None` where SQL has taken none. Transitions count in SQL if their ids are newer.
    async fn newest_transition_id(&self) -> Result<Option<StreamId>>;

    /// Writes a batch of one shard's transitions, in stream order, in one transaction: history rows by
    /// [`crate::model::history::chain`], the mirror and `last_seen` in `users`. Running it again with the same or an
    /// overlapping batch adds nothing. Transitions of users whom SQL does not know go to `presence_set_aside`; those of
    /// users whose row another transaction holds are left out, and the outcome names these users. `now` is Redis's clock
    /// when the batch was taken: a `users.last_seen` far ahead of it gives way. Batches of one shard never run side by
    /// side.
    async fn record(&self, shard: u32, batch: &[Transition], now: Millis) -> Result<RecordOutcome>;
    /// Write-behind: moves `users.last_seen` forward, never back, unless it lies far ahead of `now`, Redis's clock; leaves
    /// out rows that another transaction holds. Returns how many rows changed.
    async fn touch_last_seen(&self, seen: &[(UserId, Millis)], now: Millis) -> Result<u64>;
    /// Up to `limit` users whose mirror says that they are present, ascending by id, all ids greater than `after`.
    async fn present_in_mirror_after(&self, after: UserId, limit: u32) -> Result<Vec<MirrorRow>>;

    // The comparison with Redis, and what it mends (`presenced doctor`).

    /// Up to `limit` accounts as far as presence goes, ascending by id, all ids greater than `after`. Each with the newest
    /// row of its history, as of one instant.
    async fn presences_after(&self, after: UserId, limit: u32) -> Result<Vec<InSql>>;
    /// The same for these ids, those that exist, in any order.
    async fn presences(&self, ids: &[UserId]) -> Result<Vec<InSql>>;
    /// Up to `limit` rows of the history behind that row of that user, ordered by user and id.
    async fn history_after(&self, user: UserId, id: i64, limit: u32) -> Result<Vec<HistoryStep>>;
    /// How many transitions were set aside.
    async fn set_aside(&self) -> Result<SetAside>;
    /// Sets the mirror of these users to where their history leads (offline where there is neither a row nor a version),
    /// each if its version still is this one and no other transaction holds the row; returns for how many it was another.
    async fn mend_mirror(&self, users: &[(UserId, i64)]) -> Result<u64>;
    /// Lowers the versions of these users to `to`, each if it still is this one: newer transitions are taken again after
    /// Redis's clock went back.
    async fn lower_versions(&self, users: &[(UserId, i64)], to: i64) -> Result<u64>;
    /// Chains a row to the one before it, as [`crate::model::history::chain`] would have: it begins where that one
    /// ended, or goes where it led nowhere else. Whether it did: not where the two have changed.
    async fn mend_history(&self, broken: &Break) -> Result<bool>;

    // What other applications and restored dumps leave to put right.

    /// Looks after what is not the accounts' own: triggers that were disabled, a sequence of ids that was left behind.
    /// Cheap where nothing is to be done; not counted by [`Self::statements`] then.
    async fn upkeep(&self) -> Result<Upkeep>;
    /// Compares the mirror of up to `limit` accounts with their history, ascending by id, all ids greater than `after`, and
    /// puts right what differs. Reads one row of the history for each account; not counted by [`Self::statements`] where
    /// all agree.
    async fn mend_mirrors_after(&self, after: UserId, limit: u32) -> Result<MirrorPage>;
    /// The largest id that was ever given to an account, as far as this database tells; 0 for none.
    async fn max_user_id(&self) -> Result<UserId>;
    /// Sees to it that new accounts get ids greater than `at_least` and than every id that there is; whether the sequence
    /// of ids lay behind. Never takes it back.
    async fn raise_user_id_sequence(&self, at_least: UserId) -> Result<bool>;
}
