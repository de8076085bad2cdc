//! PostgreSQL: the production database. Any number of processes share it.
//!
//! Owns the pool, its bounds and the meaning of PostgreSQL's errors. No transaction waits for another one while it holds
//! locks (`calls`); all run at READ COMMITTED, whatever the server's default, because a look behind a lock must see what
//! its last holder wrote.

mod accounts;
mod audit;
mod calls;
mod changes;
mod connections;
mod hashes;
mod history;
mod import;
mod lists;
mod names;
mod session_ends;
mod sessions;
mod trail;
mod upkeep;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use sqlx::PgPool;
use sqlx::postgres::PgConnectOptions;
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

/// A batch may take this long: thousands of rows on a slow disk, or behind another batch of its shard.
const BATCH_TIMEOUT: Duration = Duration::from_secs(10);
/// An import may take this long: some seconds for a hundred thousand accounts.
const IMPORT_TIMEOUT: Duration = Duration::from_mins(10);
/// A count of all accounts may take this long: a fraction of a second for a million, on a disk that is not busy.
const COUNT_TIMEOUT: Duration = Duration::from_mins(1);

type PgLease = Lease<sqlx::Postgres>;

impl Dialect for sqlx::Postgres {
    fn meaning(error: &dyn sqlx::error::DatabaseError) -> Meaning {
        match (error.constraint(), error.code().as_deref().unwrap_or_default()) {
            // Of `login_names_key` the caller learns which name it is (`names::named`).
            (Some("users_username_key" | "login_names_key"), "23505") => Meaning::Taken("username"),
            (Some("users_email_key"), "23505") => Meaning::Taken("email"),
            // No lock in time, deadlock, could not serialise.
            (_, "55P03" | "40P01" | "40001") => Meaning::Locked,
            // Cancelled, idle too long, and a server that has become a standby; and a schema that is not there yet.
            (_, "57014" | "25P03" | "25006" | "42P01") => Meaning::Unavailable,
            // Connection lost, out of resources, shutting down or starting up.
            (_, code) if ["08", "53", "57P0"].iter().any(|class| code.starts_with(class)) => {
                Meaning::Unavailable
            }
            _ => Meaning::Refused,
        }
    }
}

/// The store on PostgreSQL.
#[derive(Debug)]
pub struct Postgres {
    pool: PgPool,
    /// For statements that read every account.
    scan_pool: PgPool,
    scans: ScanLane,
    connect: PgConnectOptions,
    timeout: Duration,
    tally: Arc<Tally>,
    watch: Watch,
}

fn too_slow() -> StoreError {
    StoreError::Unavailable(Box::new(sqlx::Error::PoolTimedOut))
}

fn unavailable(error: sqlx::Error) -> StoreError {
    StoreError::Unavailable(Box::new(error))
}

/// Begins a transaction that locks rows.
async fn begin(lease: &mut PgLease) -> Result<()> {
    lease.begin("BEGIN ISOLATION LEVEL READ COMMITTED", 1).await
}

#[async_trait]
impl Store for Postgres {
    async fn migrate(&self) -> Result<Vec<String>> {
        self.run_migrations().await
    }

    async fn ping(&self) -> Result<()> {
        self.with(async |lease| lease.execute(sqlx::query("SELECT 1")).await.map(drop)).await
    }

    fn statements(&self) -> u64 {
        self.tally.statements()
    }

    async fn installation(&self) -> Result<String> {
        let id = "SELECT CAST(id AS text) FROM installation";
        let row: Option<(String,)> = self.with(async |lease| lease.row(sqlx::query_as(id)).await).await?;
        Ok(row.ok_or_else(super::rows::no_row)?.0)
    }

    async fn create_account(&self, new: &NewAccount, by: Option<&Actor>) -> Result<Account> {
        self.with(async |lease| accounts::create(lease, new, by).await).await
    }

    async fn administrator(&self) -> Result<Option<Account>> {
        self.with(async |lease| accounts::administrator(lease).await).await
    }

    async fn account(&self, id: UserId) -> Result<Option<Account>> {
        self.with(async |lease| Ok(accounts::by_ids(lease, &[id]).await?.pop())).await
    }

    async fn accounts(&self, ids: &[UserId]) -> Result<Vec<Account>> {
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        self.with(async |lease| accounts::by_ids(lease, ids).await).await
    }

    async fn credentials(&self, login: &str) -> Result<Option<Credentials>> {
        self.with(async |lease| names::credentials(lease, login).await).await
    }

    async fn complete_login_names(&self, limit: u32) -> Result<u64> {
        self.within(BATCH_TIMEOUT, async |lease| names::complete(lease, limit).await).await
    }

    async fn mark_incomplete_login_names(&self) -> Result<u64> {
        self.within(COUNT_TIMEOUT, async |lease| names::mark_incomplete(lease).await).await
    }

    async fn mark_login_names(&self, users: &[UserId]) -> Result<()> {
        self.with(async |lease| names::mark(lease, users).await).await
    }

    async fn login_name_clashes(&self, after: UserId, limit: u32) -> Result<Vec<NameClash>> {
        self.with(async |lease| names::clashes(lease, after, limit).await).await
    }

    async fn login_names_after(&self, after: UserId, limit: u32) -> Result<Vec<NamesInSql>> {
        self.with(async |lease| names::after(lease, after, limit).await).await
    }

    async fn login_names(&self, users: &[UserId]) -> Result<Vec<NamesInSql>> {
        self.with(async |lease| names::of(lease, users).await).await
    }

    async fn list_accounts(
        &self,
        filter: &AccountFilter,
        place: Place<UserId>,
        askers: &[UserId],
    ) -> Result<AccountList> {
        let read = async |lease: &mut PgLease| lists::all(lease, filter, place, askers).await;
        if filter.is_open() { self.with(read).await } else { self.scan(read).await }
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
        self.within(COUNT_TIMEOUT, async |lease| lists::mend_counts(lease).await).await
    }

    async fn update_account(
        &self,
        id: UserId,
        patch: &AccountPatch,
        by: Option<&Actor>,
    ) -> Result<Option<Account>> {
        self.with(async |lease| accounts::update(lease, id, patch, by).await).await
    }

    async fn delete_account(&self, id: UserId, by: Option<&Actor>) -> Result<bool> {
        self.with(async |lease| accounts::delete(lease, id, by).await).await
    }

    async fn replace_password_hash(
        &self,
        id: UserId,
        old: &PasswordHash,
        new: &PasswordHash,
    ) -> Result<bool> {
        self.with(async |lease| accounts::replace_hash(lease, id, old, new).await).await
    }

    async fn foreign_hashes(&self, limit: u32) -> Result<Vec<PasswordHash>> {
        self.with(async |lease| hashes::foreign(lease, limit).await).await
    }

    async fn import_accounts(&self, rows: &[ImportRow], dry_run: bool) -> Result<Vec<Imported>> {
        self.within(IMPORT_TIMEOUT, async |lease| import::import(lease, rows, dry_run).await).await
    }

    async fn add_to_trail(&self, by: &Actor, deed: &Deed) -> Result<()> {
        self.with(async |lease| trail::add(lease, by, deed).await).await
    }

    async fn trail(&self, filter: &TrailFilter, page: Page) -> Result<Trail> {
        self.with(async |lease| trail::list(lease, filter, page).await).await
    }

    async fn standings(&self, ids: &[UserId]) -> Result<Vec<(UserId, Standing)>> {
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        self.with(async |lease| changes::standings(lease, ids).await).await
    }

    async fn blocked_after(&self, after: UserId, limit: u32) -> Result<Vec<UserId>> {
        self.with(async |lease| changes::blocked_after(lease, after, limit).await).await
    }

    async fn change_cursor(&self) -> Result<ChangeCursor> {
        self.with(async |lease| changes::cursor(lease).await).await
    }

    async fn account_changes(&self, since: &ChangeCursor) -> Result<AccountChanges> {
        self.with(async |lease| changes::since(lease, since).await).await
    }

    async fn read_changes(&self, range: &mut ChangeRange) -> Result<Vec<UserId>> {
        // Run from its start again where it met a lock: from the range as it was.
        let before = &*range;
        let page = self.with(async |lease| {
            let mut after = before.clone();
            Ok((changes::page(lease, &mut after).await?, after))
        });
        let (users, after) = page.await?;
        *range = after;
        if self.watch.prune_is_due() {
            // A failure costs nothing but space, and the next hour tries again.
            let pruned = self.with(async |lease| changes::prune(lease, &range.since).await).await;
            if let Err(error) = pruned {
                tracing::warn!(%error, "the log of account changes was not pruned");
            }
        }
        Ok(users)
    }

    async fn wait_for_account_change(&self, timeout: Duration) -> Result<Woken> {
        self.watch.wait(Instant::now() + timeout).await
    }

    async fn create_session(&self, new: &NewSession) -> Result<Option<Begun>> {
        self.with(async |lease| sessions::create(lease, new).await).await
    }

    async fn sessions(&self, user: UserId, now: Millis, page: Page) -> Result<SessionList> {
        self.with(async |lease| sessions::of_user(lease, user, now, page).await).await
    }

    async fn rotate_refresh(&self, request: &RotationRequest) -> Result<Rotation> {
        self.with(async |lease| sessions::rotate(lease, request).await).await
    }

    async fn end_sessions(&self, end: &SessionEnd<'_>) -> Result<Ended> {
        self.with(async |lease| sessions::end(lease, end).await).await
    }

    async fn session_has_ended(&self, user: UserId, sid: &SessionId) -> Result<bool> {
        self.with(async |lease| sessions::has_ended(lease, user, sid).await).await
    }

    async fn sessions_ended_since(&self, since: Millis) -> Result<Vec<(UserId, SessionId)>> {
        self.with(async |lease| session_ends::since(lease, since).await).await
    }

    async fn untold_ends(&self, after: UserId) -> Result<UntoldEnds> {
        self.with(async |lease| session_ends::untold(lease, after).await).await
    }

    async fn untold_ends_of(&self, users: &[UserId]) -> Result<Vec<UntoldEnd>> {
        if users.is_empty() {
            return Ok(Vec::new());
        }
        self.with(async |lease| session_ends::untold_of(lease, users).await).await
    }

    async fn ends_told(&self, told: &[(String, Millis)]) -> Result<u64> {
        if told.is_empty() {
            return Ok(0);
        }
        self.with(async |lease| session_ends::told(lease, told).await).await
    }

    async fn newest_transition(&self, shard: u32) -> Result<Option<Millis>> {
        self.with(async |lease| history::newest(lease, shard).await).await
    }

    async fn newest_transition_id(&self) -> Result<Option<StreamId>> {
        self.with(async |lease| history::newest_id(lease).await).await
    }

    async fn record(&self, shard: u32, batch: &[Transition], now: Millis) -> Result<RecordOutcome> {
        if batch.is_empty() {
            return Ok(RecordOutcome::default());
        }
        self.within(BATCH_TIMEOUT, async |lease| history::record(lease, shard, batch, now).await).await
    }

    async fn touch_last_seen(&self, seen: &[(UserId, Millis)], now: Millis) -> Result<u64> {
        if seen.is_empty() {
            return Ok(0);
        }
        self.within(BATCH_TIMEOUT, async |lease| history::touch(lease, seen, now).await).await
    }

    async fn present_in_mirror_after(&self, after: UserId, limit: u32) -> Result<Vec<MirrorRow>> {
        self.with(async |lease| history::present_after(lease, after, limit).await).await
    }

    async fn presences_after(&self, after: UserId, limit: u32) -> Result<Vec<InSql>> {
        self.with(async |lease| audit::presences_after(lease, after, limit).await).await
    }

    async fn presences(&self, ids: &[UserId]) -> Result<Vec<InSql>> {
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        self.with(async |lease| audit::presences(lease, ids).await).await
    }

    async fn history_after(&self, user: UserId, id: i64, limit: u32) -> Result<Vec<HistoryStep>> {
        self.with(async |lease| audit::history_after(lease, user, id, limit).await).await
    }

    async fn set_aside(&self) -> Result<SetAside> {
        self.with(async |lease| audit::set_aside(lease).await).await
    }

    async fn mend_mirror(&self, users: &[(UserId, i64)]) -> Result<u64> {
        if users.is_empty() {
            return Ok(0);
        }
        self.within(BATCH_TIMEOUT, async |lease| audit::mend_mirror(lease, users).await).await
    }

    async fn lower_versions(&self, users: &[(UserId, i64)], to: i64) -> Result<u64> {
        if users.is_empty() {
            return Ok(0);
        }
        self.within(BATCH_TIMEOUT, async |lease| audit::lower_versions(lease, users, to).await).await
    }

    async fn mend_history(&self, broken: &Break) -> Result<bool> {
        self.within(BATCH_TIMEOUT, async |lease| audit::mend_history(lease, broken).await).await
    }

    async fn upkeep(&self) -> Result<Upkeep> {
        self.run_upkeep().await
    }

    async fn mend_mirrors_after(&self, after: UserId, limit: u32) -> Result<MirrorPage> {
        self.compare_mirrors(after, limit).await
    }

    async fn max_user_id(&self) -> Result<UserId> {
        self.with(async |lease| upkeep::largest_id(lease).await).await
    }

    async fn raise_user_id_sequence(&self, at_least: UserId) -> Result<bool> {
        self.with(async |lease| upkeep::raise_ids(lease, at_least).await).await
    }
}
