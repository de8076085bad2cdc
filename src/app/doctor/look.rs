//! The first look, at everything: it only suspects. What it suspects is looked at again, a limited number at a time.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::findings::ShardTrouble;
use super::patience::patiently;
use super::patient::{PAGE, Patient};
use super::report::{self, Report};
use super::{again, mend, names};
use crate::live::MemberPlace;
use crate::model::audit::{Break, Disagreement, breaks};
use crate::model::{SessionId, UserId};
use crate::store::Standing;
use crate::tasks::Context;

/// Rows of the history in one statement.
const HISTORY_PAGE: u32 = 5_000;
/// Suspicions that are kept before they are looked at again: the bound of the memory that this takes.
const KEPT: usize = 10_000;

/// What is suspected.
#[derive(Debug, Default)]
pub(super) struct Suspicions {
    pub(super) users: BTreeMap<UserId, Vec<Disagreement>>,
    pub(super) strays: BTreeSet<(u32, String)>,
    pub(super) sessions: Vec<(UserId, SessionId)>,
    pub(super) breaks: Vec<Break>,
    pub(super) shards: Vec<ShardTrouble>,
}

impl Suspicions {
    pub(super) fn len(&self) -> usize {
        self.users.len() + self.strays.len() + self.sessions.len() + self.breaks.len() + self.shards.len()
    }
}

/// How much was looked at.
#[derive(Debug, Default)]
pub(super) struct Extent {
    pub(super) accounts: u64,
    pub(super) members: u64,
    pub(super) waiting: u64,
    pub(super) rows: u64,
}

/// One look at everything.
pub(super) struct Look<'a> {
    patient: &'a Patient<'a>,
    report: &'a mut Report,
    mending: bool,
    suspicions: Suspicions,
    extent: Extent,
}

impl<'a> Look<'a> {
    pub(super) fn new(patient: &'a Patient<'a>, report: &'a mut Report, mending: bool) -> Self {
        Self { patient, report, mending, suspicions: Suspicions::default(), extent: Extent::default() }
    }

    pub(super) async fn all(mut self) -> anyhow::Result<()> {
        self.shards().await?;
        self.accounts().await?;
        self.names().await?;
        self.members().await?;
        self.sessions().await?;
        self.history().await?;
        self.settle().await?;
        self.remarks().await?;
        report::extent(&self.extent);
        Ok(())
    }

    async fn shards(&mut self) -> anyhow::Result<()> {
        for shard in self.patient.context.live.shards() {
            self.suspicions.shards.extend(self.patient.look_at_shard(shard).await?);
            self.extent.waiting += self.patient.stock(shard).entries;
        }
        self.suspicions.shards.extend(self.patient.abandoned().await?);
        Ok(())
    }

    /// All of SQL's accounts, by id.
    async fn accounts(&mut self) -> anyhow::Result<()> {
        let mut after = 0;
        loop {
            let store = &self.patient.context.store;
            let page = patiently(async || store.presences_after(after, PAGE).await).await?;
            let Some(last) = page.last() else { return Ok(()) };
            after = last.user;
            self.extent.accounts += page.len() as u64;
            let ids: Vec<UserId> = page.iter().map(|row| row.user).collect();
            for redis in self.patient.in_redis(&ids).await? {
                let Ok(place) = page.binary_search_by_key(&redis.user, |row| row.user) else { continue };
                // Whether anything is on its way the second look tells.
                let found = self.patient.compare(&redis, Some(&page[place]), false);
                if !found.is_empty() {
                    self.suspicions.users.insert(redis.user, found);
                }
            }
            self.settle_if_full().await?;
        }
    }

    /// The login names of all accounts. They stand in SQL alone, so there is nothing to hold them against but themselves.
    async fn names(&mut self) -> anyhow::Result<()> {
        let store = &*self.patient.context.store;
        let findings = names::find(store).await?;
        let outcomes = if self.mending { Some(names::mend(store, &findings).await) } else { None };
        self.report.tell(&findings, outcomes.as_deref());
        Ok(())
    }

    /// The live set as it is: whoever is in it and is no account of SQL's.
    async fn members(&mut self) -> anyhow::Result<()> {
        for shard in self.patient.context.live.shards() {
            if !self.patient.can_be_asked(shard) {
                continue;
            }
            let Context { live, store, .. } = self.patient.context;
            let mut place: Option<MemberPlace> = None;
            loop {
                let page = patiently(async || live.members(shard, place.clone(), PAGE).await).await?;
                self.extent.members += (page.users.len() + page.strays.len()) as u64;
                self.suspicions.strays.extend(page.strays.into_iter().map(|member| (shard, member)));
                let standings = patiently(async || store.standings(&page.users).await).await?;
                let unknown = standings.into_iter().filter(|(_, standing)| *standing == Standing::Gone);
                for (user, _) in unknown {
                    self.suspicions.users.entry(user).or_default().push(Disagreement::Stranger);
                }
                self.settle_if_full().await?;
                place = page.next;
                if place.is_none() {
                    break;
                }
            }
        }
        Ok(())
    }

    /// Sessions that ended while tokens of theirs may still come: none may go on in Redis.
    async fn sessions(&mut self) -> anyhow::Result<()> {
        let ended = self.patient.ended_sessions().await?;
        for chunk in ended.chunks(PAGE as usize) {
            let live = &self.patient.context.live;
            let there = patiently(async || live.sessions_present(chunk).await).await?;
            let alive = chunk.iter().zip(there).filter(|(_, there)| *there);
            self.suspicions.sessions.extend(alive.map(|(session, _)| session.clone()));
            self.settle_if_full().await?;
        }
        Ok(())
    }

    /// Everyone's history, row by row in its order.
    async fn history(&mut self) -> anyhow::Result<()> {
        let (mut user, mut id, mut last) = (0, 0, None);
        loop {
            let store = &self.patient.context.store;
            let rows = patiently(async || store.history_after(user, id, HISTORY_PAGE).await).await?;
            let Some(end) = rows.last() else { return Ok(()) };
            (user, id) = (end.user, end.id);
            self.extent.rows += rows.len() as u64;
            self.suspicions.breaks.extend(breaks(&mut last, &rows));
            self.settle_if_full().await?;
        }
    }

    async fn settle_if_full(&mut self) -> anyhow::Result<()> {
        if self.suspicions.len() >= KEPT { self.settle().await } else { Ok(()) }
    }

    /// Looks again at what is suspected; what persists is told, and mended where that is wanted.
    async fn settle(&mut self) -> anyhow::Result<()> {
        let suspicions = std::mem::take(&mut self.suspicions);
        let findings = again::confirm(self.patient, suspicions).await?;
        if findings.is_empty() {
            return Ok(());
        }
        let outcomes = if self.mending { Some(mend::mend(self.patient, &findings).await) } else { None };
        self.report.tell(&findings, outcomes.as_deref());
        Ok(())
    }

    async fn remarks(&mut self) -> anyhow::Result<()> {
        let live = &self.patient.context.live;
        let unheard = live.shards().filter_map(|shard| self.patient.unheard_for(shard)).max();
        let noted = live.shards().all(|shard| self.patient.stock(shard).heard_since.is_some());
        self.report.unheard(unheard.map(|left| left.max(Duration::from_secs(1))), noted);
        self.report.expiry_events(patiently(async || live.publishes_expiries().await).await?);
        let store = &self.patient.context.store;
        self.report.set_aside(patiently(async || store.set_aside().await).await?);
        Ok(())
    }
}
