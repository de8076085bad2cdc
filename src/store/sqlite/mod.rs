//! SQLite: the embedded default, for one machine.
//!
//! Owns the file, its one writer and its readers, and the meaning of SQLite's errors. All that writes goes through the
//! writer, whose transactions take the write lock when they begin (`BEGIN IMMEDIATE`), so what they read is what they
//! change; another process on the same file waits for the lock within the busy timeout. SQLite's `lower` folds ASCII alone,
//! and a function of our own in an index would lock every other tool out of the file: other names are folded here
//! (`names`).

mod accounts;
mod audit;
mod changes;
mod connections;
mod file;
mod hashes;
mod history;
mod import;
mod interrupt;
mod lists;
mod names;
mod session_ends;
mod sessions;
mod trail;
mod upkeep;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use sqlx::sqlite::SqlitePool;
use tokio::time::Instant;

use super::lease::{Dialect, Lease, Meaning, Tally};
use super::scans::ScanLane;
use super::{
    AccountChanges, AccountFilter, AccountList, AccountPatch, Begun, ChangeCursor, ChangeRange, Credentials,
    Ended, ImportRow, Imported, MirrorPage, MirrorRow, NameClash, NamesInSql, NewAccount, NewSession,
    PasswordHash, RecordOutcome, Result, Rotation, RotationRequest, SessionEnd, SessionList, SetAside,
    Standing, Store, StoreError, Trail, TrailFilter, UntoldEnd, UntoldEnds, Upkeep, Woken,
};
use crate::model::audit::{Break, HistoryStep, InSql};
use crate::model::{Account, Actor, Deed, Millis, Page, Place, SessionId, StreamId, Transition, UserId};
use changes::Watch;

/// A batch may take this long: thousands of rows on a slow disk.
const BATCH_TIMEOUT: Duration = Duration::from_secs(10);
/// An import may take this long: some seconds for a hundred thousand accounts.
const IMPORT_TIMEOUT: Duration = Duration::from_mins(10);
/// A count of all accounts may take this long: a fraction of a second for a million, on a disk that is not busy.
const COUNT_TIMEOUT: Duration = Duration::from_mins(1);

type SqliteLease = Lease<sqlx::Sqlite>;

impl Dialect for sqlx::Sqlite {
    fn meaning(error: &dyn sqlx::error::DatabaseError) -> Meaning {
        // The low byte of an extended code is the code itself.
        let code = error.code().and_then(|code| code.parse::<u32>().ok()).unwrap_or_default() & 0xff;
        match code {
            // BUSY, LOCKED, READONLY, IOERR, FULL, CANTOPEN, PROTOCOL.
            5 | 6 | 8 | 10 | 13 | 14 | 15 => Meaning::Unavailable,
            _ if error.message().contains("users_username_key") => Meaning::Taken("username"),
            // Which name it is the caller learns (`names::named`).
            _ if error.message().contains("login_names.name_key") => Meaning::Taken("username"),
            // A schema that is not there yet.
            _ if error.message().starts_with("no such table") => Meaning::Unavailable,
            _ if error.message().contains("users_email_key") => Meaning::Taken("email"),
            _ => Meaning::Refused,
        }
    }
}

/// The store on SQLite.
#[derive(Debug)]
pub struct Sqlite {
    writer: SqlitePool,
    readers: SqlitePool,
    /// For statements that read every account.
    scan_readers: SqlitePool,
    scans: ScanLane,
    timeout: Duration,
    tally: Arc<Tally>,
    watch: Watch,
}

/// The file that a URL names, where it is one of SQLite's.
pub(super) fn file_of(url: &str) -> Result<Option<PathBuf>> {
    if !url.starts_with("sqlite:") {
        return Ok(None);
    }
    Ok(Some(file::from_url(url)?.get_filename().to_owned()))
}

fn too_slow() -> StoreError {
    StoreError::Unavailable(Box::new(sqlx::Error::PoolTimedOut))
}

/// Begins a transaction that writes.
async fn begin(lease: &mut SqliteLease) -> Result<()> {
    lease.begin("BEGIN IMMEDIATE", 1).await
}

/// An instant as the file keeps it. Beyond the years of four digits text would no longer sort as time does.
fn text(at: Millis) -> String {
    const LAST: i64 = 253_402_300_799_999;
    Millis(at.0.clamp(0, LAST)).to_string()
}

/// Ids as one parameter for `json_each`.
fn json_ids(ids: &[UserId]) -> String {
    serde_json::Value::from(ids).to_string()
}

#[async_trait]
impl Store for Sqlite {
    async fn migrate(&self) -> Result<Vec<String>> {
        self.run_migrations().await
    }

    async fn ping(&self) -> Result<()> {
        self.read(async |lease| lease.execute(sqlx::query("SELECT 1")).await.map(drop)).await
    }

    fn statements(&self) -> u64 {
        self.tally.statements()
    }

    async fn installation(&self) -> Result<String> {
        let id = "SELECT CAST(id AS text) FROM installation";
        let row: Option<(String,)> = self.read(async |lease| lease.row(sqlx::query_as(id)).await).await?;
        Ok(row.ok_or_else(super::rows::no_row)?.0)
    }

    async fn create_account(&self, new: &NewAccount, by: Option<&Actor>) -> Result<Account> {
        self.write_accounts(async |lease| accounts::create(lease, new, by).await).await
    }

    async fn administrator(&self) -> Result<Option<Account>> {
        self.read(async |lease| accounts::administrator(lease).await).await
    }

    async fn account(&self, id: UserId) -> Result<Option<Account>> {
        self.read(async |lease| Ok(accounts::by_ids(lease, &[id]).await?.pop())).await
    }

    async fn accounts(&self, ids: &[UserId]) -> Result<Vec<Account>> {
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        self.read(async |lease| accounts::by_ids(lease, ids).await).await
    }

    async fn credentials(&self, login: &str) -> Result<Option<Credentials>> {
        self.read(async |lease| names::credentials(lease, login).await).await
    }

    async fn complete_login_names(&self, limit: u32) -> Result<u64> {
        // Mostly there is nothing to do, which a reader sees without waiting for the writer.
        if !self.read(async |lease| names::are_marked(lease).await).await? {
            return Ok(0);
        }
        self.within(BATCH_TIMEOUT, &self.writer, async |lease| names::complete(lease, limit).await).await
    }

    async fn mark_incomplete_login_names(&self) -> Result<u64> {
        let look = async |lease: &mut SqliteLease| names::are_incomplete(lease).await;
        if !self.within(COUNT_TIMEOUT, &self.readers, look).await? {
            return Ok(0);
        }
        self.within(COUNT_TIMEOUT, &self.writer, async |lease| names::mark_incomplete(lease).await).await
    }

    async fn mark_login_names(&self, users: &[UserId]) -> Result<()> {
        self.write(async |lease| names::mark(lease, users).await).await
    }

    async fn login_name_clashes(&self, after: UserId, limit: u32) -> Result<Vec<NameClash>> {
        self.read(async |lease| names::clashes(lease, after, limit).await).await
    }

    async fn login_names_after(&self, after: UserId, limit: u32) -> Result<Vec<NamesInSql>> {
        self.read(async |lease| names::after(lease, after, limit).await).await
    }

    async fn login_names(&self, users: &[UserId]) -> Result<Vec<NamesInSql>> {
        self.read(async |lease| names::of(lease, users).await).await
    }

    async fn list_accounts(
        &self,
        filter: &AccountFilter,
        place: Place<UserId>,
        askers: &[UserId],
    ) -> Result<AccountList> {
        let read = async |lease: &mut SqliteLease| lists::all(lease, filter, place, askers).await;
        if filter.is_open() { self.read(read).await } else { self.scan(read).await }
    }

    async fn list_present_in_mirror(
        &self,
        since: Millis,
        place: Place<(Millis, UserId)>,
        askers: &[UserId],
    ) -> Result<AccountList> {
        self.scan(async |lease| lists::present(lease, since, place, askers).await).await
    }

    async fn mend_counts(&self) -> Result<u64> {
        let wrong =
            self.within(COUNT_TIMEOUT, &self.readers, async |lease| lists::wrong_counts(lease).await).await?;
        if wrong > 0 {
            self.within(COUNT_TIMEOUT, &self.writer, async |lease| lists::count_anew(lease).await).await?;
        }
        Ok(wrong)
    }

    async fn update_account(
        &self,
        id: UserId,
        patch: &AccountPatch,
        by: Option<&Actor>,
    ) -> Result<Option<Account>> {
        self.write_accounts(async |lease| accounts::update(lease, id, patch, by).await).await
    }

    async fn delete_account(&self, id: UserId, by: Option<&Actor>) -> Result<bool> {
        self.write_accounts(async |lease| accounts::delete(lease, id, by).await).await
    }

    async fn replace_password_hash(
        &self,
        id: UserId,
        old: &PasswordHash,
        new: &PasswordHash,
    ) -> Result<bool> {
        self.write(async |lease| accounts::replace_hash(lease, id, old, new).await).await
    }

    async fn foreign_hashes(&self, limit: u32) -> Result<Vec<PasswordHash>> {
        self.read(async |lease| hashes::foreign(lease, limit).await).await
    }

    async fn import_accounts(&self, rows: &[ImportRow], dry_run: bool) -> Result<Vec<Imported>> {
        let outcome = self
            .within(IMPORT_TIMEOUT, &self.writer, async |lease| import::import(lease, rows, dry_run).await)
            .await;
        self.watch.wake();
        outcome
    }

    async fn add_to_trail(&self, by: &Actor, deed: &Deed) -> Result<()> {
        self.write(async |lease| trail::add(lease, by, deed).await).await
    }

    async fn trail(&self, filter: &TrailFilter, page: Page) -> Result<Trail> {
        self.read(async |lease| trail::list(lease, filter, page).await).await
    }

    async fn standings(&self, ids: &[UserId]) -> Result<Vec<(UserId, Standing)>> {
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        self.read(async |lease| changes::standings(lease, ids).await).await
    }

    async fn blocked_after(&self, after: UserId, limit: u32) -> Result<Vec<UserId>> {
        self.read(async |lease| changes::blocked_after(lease, after, limit).await).await
    }

    async fn change_cursor(&self) -> Result<ChangeCursor> {
        self.read(async |lease| changes::cursor(lease).await).await
    }

    async fn account_changes(&self, since: &ChangeCursor) -> Result<AccountChanges> {
        self.read(async |lease| changes::since(lease, since).await).await
    }

    async fn read_changes(&self, range: &mut ChangeRange) -> Result<Vec<UserId>> {
        let users = self.read(async |lease| changes::page(lease, range).await).await?;
        if self.watch.prune_is_due() {
            // Costs nothing but space where it fails, and the next hour tries again.
            let pruned = self.write(async |lease| changes::prune(lease, &range.since).await).await;
            if let Err(error) = pruned {
                tracing::warn!(%error, "the log of account changes was not pruned");
            }
        }
        Ok(users)
    }

    async fn wait_for_account_change(&self, timeout: Duration) -> Result<Woken> {
        self.watch.wait(Instant::now() + timeout, self.timeout).await
    }

    async fn create_session(&self, new: &NewSession) -> Result<Option<Begun>> {
        self.write(async |lease| sessions::create(lease, new).await).await
    }

    async fn sessions(&self, user: UserId, now: Millis, page: Page) -> Result<SessionList> {
        self.read(async |lease| sessions::of_user(lease, user, now, page).await).await
    }

    async fn rotate_refresh(&self, request: &RotationRequest) -> Result<Rotation> {
        self.write(async |lease| sessions::rotate(lease, request).await).await
    }

    async fn end_sessions(&self, end: &SessionEnd<'_>) -> Result<Ended> {
        self.write(async |lease| sessions::end(lease, end).await).await
    }

    async fn session_has_ended(&self, user: UserId, sid: &SessionId) -> Result<bool> {
        self.read(async |lease| sessions::has_ended(lease, user, sid).await).await
    }

    async fn sessions_ended_since(&self, since: Millis) -> Result<Vec<(UserId, SessionId)>> {
        self.read(async |lease| session_ends::since(lease, since).await).await
    }

    async fn untold_ends(&self, after: UserId) -> Result<UntoldEnds> {
        self.read(async |lease| session_ends::untold(lease, after).await).await
    }

    async fn untold_ends_of(&self, users: &[UserId]) -> Result<Vec<UntoldEnd>> {
        if users.is_empty() {
            return Ok(Vec::new());
        }
        self.read(async |lease| session_ends::untold_of(lease, users).await).await
    }

    async fn ends_told(&self, told: &[(String, Millis)]) -> Result<u64> {
        if told.is_empty() {
            return Ok(0);
        }
        self.write(async |lease| session_ends::told(lease, told).await).await
    }

    async fn newest_transition(&self, shard: u32) -> Result<Option<Millis>> {
        self.read(async |lease| history::newest(lease, shard).await).await
    }

    async fn newest_transition_id(&self) -> Result<Option<StreamId>> {
        self.read(async |lease| history::newest_id(lease).await).await
    }

    async fn record(&self, shard: u32, batch: &[Transition], now: Millis) -> Result<RecordOutcome> {
        if batch.is_empty() {
            return Ok(RecordOutcome::default());
        }
        let record = async |lease: &mut SqliteLease| history::record(lease, shard, batch, now).await;
        self.within(BATCH_TIMEOUT, &self.writer, record).await
    }

    async fn touch_last_seen(&self, seen: &[(UserId, Millis)], now: Millis) -> Result<u64> {
        if seen.is_empty() {
            return Ok(0);
        }
        self.within(BATCH_TIMEOUT, &self.writer, async |lease| history::touch(lease, seen, now).await).await
    }

    async fn present_in_mirror_after(&self, after: UserId, limit: u32) -> Result<Vec<MirrorRow>> {
        self.read(async |lease| history::present_after(lease, after, limit).await).await
    }

    async fn presences_after(&self, after: UserId, limit: u32) -> Result<Vec<InSql>> {
        self.read(async |lease| audit::presences_after(lease, after, limit).await).await
    }

    async fn presences(&self, ids: &[UserId]) -> Result<Vec<InSql>> {
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        self.read(async |lease| audit::presences(lease, ids).await).await
    }

    async fn history_after(&self, user: UserId, id: i64, limit: u32) -> Result<Vec<HistoryStep>> {
        self.read(async |lease| audit::history_after(lease, user, id, limit).await).await
    }

    async fn set_aside(&self) -> Result<SetAside> {
        self.read(async |lease| audit::set_aside(lease).await).await
    }

    async fn mend_mirror(&self, users: &[(UserId, i64)]) -> Result<u64> {
        if users.is_empty() {
            return Ok(0);
        }
        self.within(BATCH_TIMEOUT, &self.writer, async |lease| audit::mend_mirror(lease, users).await).await
    }

    async fn lower_versions(&self, users: &[(UserId, i64)], to: i64) -> Result<u64> {
        if users.is_empty() {
            return Ok(0);
        }
        self.within(BATCH_TIMEOUT, &self.writer, async |lease| audit::lower_versions(lease, users, to).await)
            .await
    }

    async fn mend_history(&self, broken: &Break) -> Result<bool> {
        self.within(BATCH_TIMEOUT, &self.writer, async |lease| audit::mend_history(lease, broken).await).await
    }

    async fn upkeep(&self) -> Result<Upkeep> {
        self.run_upkeep().await
    }

    async fn mend_mirrors_after(&self, after: UserId, limit: u32) -> Result<MirrorPage> {
        self.compare_mirrors(after, limit).await
    }

    async fn max_user_id(&self) -> Result<UserId> {
        self.read(async |lease| upkeep::largest_id(lease).await).await
    }

    async fn raise_user_id_sequence(&self, at_least: UserId) -> Result<bool> {
        self.write(async |lease| upkeep::raise_ids(lease, at_least).await).await
    }
}
