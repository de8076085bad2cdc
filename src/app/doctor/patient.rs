//! What is examined, and how it is asked: Redis per shard, SQL per page.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use super::findings::{ShardTrouble, WhyWaiting};
use super::patience::patiently;
use crate::live::{EntryPlace, Server, Stock};
use crate::model::audit::{Disagreement, Doubt, InRedis, InSql, compare};
use crate::model::{Millis, SessionId, UserId};
use crate::tasks::Context;

/// Accounts, members, or entries in one call.
pub(super) const PAGE: u32 = 1_000;
/// How late a claim may be. The sweeper takes a tenth of it.
const CLAIM_MS: i64 = 1_000;
/// How long a transition may wait for SQL before it is looked at closely.
const LONG_WAIT: Duration = Duration::from_secs(5);
/// A stream longer than this is not searched for what it says about single users.
const SEARCHED: u64 = 100_000;
/// The numbers of shards that there may be.
const MOST_SHARDS: u32 = 1_024;
/// As much as `lua/reconcile.lua` wants before it misses anybody, with a millisecond of its own on either side.
const HEARD_MORE: Duration = Duration::from_millis(2);

/// The whole: Redis and SQL.
pub(super) struct Patient<'a> {
    pub(super) context: &'a Context,
    /// Which server had each shard when it was met.
    servers: Vec<Server>,
    /// For how long a token of an ended session may still come.
    access_ttl: Duration,
    /// The state of each shard when it was met.
    stocks: Vec<Stock>,
    /// Shards without a fence then.
    unfenced: HashSet<u32>,
}

/// Whose transitions wait.
pub(super) struct Waits {
    users: HashSet<UserId>,
    /// Shards whose streams are too long to tell.
    untold: HashSet<u32>,
}

impl<'a> Patient<'a> {
    pub(super) async fn meet(context: &'a Context, access_ttl: Duration) -> anyhow::Result<Self> {
        let (mut servers, mut stocks, mut unfenced) = (Vec::new(), Vec::new(), HashSet::new());
        for shard in context.live.shards() {
            let server = patiently(async || context.live.server(shard).await).await?;
            let stock = patiently(async || context.live.stock(shard, &server).await).await?;
            // Scripts fail on a key of another type; the look at the shard names it.
            let can_be_asked = stock.odd_keys.is_empty();
            if !can_be_asked || patiently(async || context.live.fence(shard).await).await?.cursor.is_none() {
                unfenced.insert(shard);
            }
            stocks.push(stock);
            servers.push(server);
        }
        Ok(Self { context, servers, access_ttl, stocks, unfenced })
    }

    fn server(&self, shard: u32) -> &Server {
        &self.servers[shard as usize]
    }

    pub(super) fn stock(&self, shard: u32) -> &Stock {
        &self.stocks[shard as usize]
    }

    /// Whether Redis can be asked about this shard's users at all.
    pub(super) fn can_be_asked(&self, shard: u32) -> bool {
        self.stock(shard).odd_keys.is_empty()
    }

    /// How long a shard must still be heard before anybody can be missed; `None` where it has been heard for long
    /// enough, and the whole TTL where nobody has begun to listen.
    pub(super) fn unheard_for(&self, shard: u32) -> Option<Duration> {
        let enough = self.context.live.ttl() + HEARD_MORE;
        let heard = self.stock(shard).epoch().map_or(Duration::ZERO, |epoch| epoch.age);
        enough.checked_sub(heard).filter(|left| !left.is_zero())
    }

    /// Shards that have begun another life since they were met: all that they held then may be lost.
    pub(super) async fn reborn(&self, shards: &HashSet<u32>) -> anyhow::Result<HashSet<u32>> {
        let mut reborn = HashSet::new();
        for shard in shards {
            let server = patiently(async || self.context.live.server(*shard).await).await?;
            if server.run_id != self.server(*shard).run_id {
                reborn.insert(*shard);
                continue;
            }
            let stock = patiently(async || self.context.live.stock(*shard, &server).await).await?;
            if stock.heard_since != self.stock(*shard).heard_since {
                reborn.insert(*shard);
            }
        }
        Ok(reborn)
    }

    pub(super) fn by_shard(&self, users: impl IntoIterator<Item = UserId>) -> HashMap<u32, Vec<UserId>> {
        let mut shards: HashMap<u32, Vec<UserId>> = HashMap::new();
        for user in users {
            shards.entry(self.context.live.shard_of(user)).or_default().push(user);
        }
        shards.retain(|shard, _| self.can_be_asked(*shard));
        shards
    }

    /// What Redis holds of these users, those of shards that can be asked.
    pub(super) async fn in_redis(&self, users: &[UserId]) -> anyhow::Result<Vec<InRedis>> {
        let mut found = Vec::with_capacity(users.len());
        for (shard, users) in self.by_shard(users.iter().copied()) {
            for page in users.chunks(PAGE as usize) {
                found.extend(patiently(async || self.context.live.audit(shard, page).await).await?);
            }
        }
        Ok(found)
    }

    pub(super) async fn in_sql(&self, users: &[UserId]) -> anyhow::Result<HashMap<UserId, InSql>> {
        let mut found = HashMap::with_capacity(users.len());
        for chunk in users.chunks(PAGE as usize) {
            let rows = patiently(async || self.context.store.presences(chunk).await).await?;
            found.extend(rows.into_iter().map(|row| (row.user, row)));
        }
        Ok(found)
    }

    /// The sessions that have ended by SQL of which tokens may still come.
    pub(super) async fn ended_sessions(&self) -> anyhow::Result<Vec<(UserId, SessionId)>> {
        let span_ms = i64::try_from(self.access_ttl.as_millis()).unwrap_or(i64::MAX);
        let live = &self.context.live;
        let mut earliest = Millis(i64::MAX);
        for shard in live.shards() {
            earliest = earliest.min(patiently(async || live.now(shard).await).await?);
        }
        let since = earliest.plus(-span_ms);
        let mut ended = patiently(async || self.context.store.sessions_ended_since(since).await).await?;
        ended.retain(|(user, _)| self.can_be_asked(self.shard_of(*user)));
        Ok(ended)
    }

    /// The comparison of one user, given what may be on its way.
    pub(super) fn compare(&self, redis: &InRedis, sql: Option<&InSql>, waits: bool) -> Vec<Disagreement> {
        let shard = self.shard_of(redis.user);
        let unheard = self.unheard_for(shard).is_some();
        compare(redis, sql, Doubt { waits, unheard, unfenced: self.unfenced.contains(&shard) })
    }

    /// Which of these users' transitions wait in the stream.
    pub(super) async fn waits(&self, users: &HashSet<UserId>) -> anyhow::Result<Waits> {
        let mut waits = Waits { users: HashSet::new(), untold: HashSet::new() };
        for shard in self.by_shard(users.iter().copied()).into_keys() {
            let told = self
                .walk_stream(shard, |found, _| {
                    waits.users.extend(found.into_iter().filter(|user| users.contains(user)));
                })
                .await?;
            if !told {
                waits.untold.insert(shard);
            }
        }
        Ok(waits)
    }

    /// Whether this user's transitions may wait.
    pub(super) fn may_wait(&self, waits: &Waits, user: UserId) -> bool {
        waits.users.contains(&user) || waits.untold.contains(&self.shard_of(user))
    }

    pub(super) fn shard_of(&self, user: UserId) -> u32 {
        self.context.live.shard_of(user)
    }

    /// Goes through a shard's stream, giving each page's users and unreadable entries; `false` where it is too long.
    async fn walk_stream(
        &self,
        shard: u32,
        mut page: impl FnMut(Vec<UserId>, Vec<String>),
    ) -> anyhow::Result<bool> {
        let (mut place, mut seen): (Option<EntryPlace>, u64) = (None, 0);
        loop {
            let entries =
                patiently(async || self.context.live.entries(shard, place.clone(), PAGE).await).await?;
            page(entries.users, entries.unreadable);
            place = entries.next;
            if place.is_none() {
                return Ok(true);
            }
            seen += u64::from(PAGE);
            if seen >= SEARCHED {
                return Ok(false);
            }
        }
    }

    /// What is suspicious about a shard as a whole, now.
    pub(super) async fn look_at_shard(&self, shard: u32) -> anyhow::Result<Vec<ShardTrouble>> {
        let live = &self.context.live;
        let stock = patiently(async || live.stock(shard, self.server(shard)).await).await?;
        let mut found: Vec<_> = stock
            .odd_keys
            .iter()
            .map(|(key, kind)| ShardTrouble::OddKey { shard, key: key.clone(), kind: kind.clone() })
            .collect();
        if !found.is_empty() {
            return Ok(found);
        }
        // A server that has only just come up is prepared by the first instance that reaches it.
        let settled = self.server(shard).uptime > live.ttl().min(LONG_WAIT);
        if settled
            && patiently(async || live.fence(shard).await).await?.cursor.is_none()
            && !patiently(async || live.fence_is_being_built(shard).await).await?
        {
            found.push(ShardTrouble::Unfenced { shard });
        }
        let late = Millis(stock.now.0 - CLAIM_MS);
        let due = patiently(async || live.due(shard, PAGE).await).await?;
        // Where nothing may be claimed the service waits on purpose.
        let may_claim = due.fenced && due.held.is_zero();
        let users: Vec<_> =
            due.passed.into_iter().filter(|(_, deadline)| may_claim && *deadline < late).collect();
        if !users.is_empty() {
            found.push(ShardTrouble::Unclaimed { shard, users });
        }
        if let Some(waiting) = waiting(shard, &stock) {
            found.push(waiting);
            // Unreadable ones are dropped as soon as a persister meets them: only where none does they stay.
            let mut ids = Vec::new();
            self.walk_stream(shard, |_, unreadable| ids.extend(unreadable)).await?;
            if !ids.is_empty() {
                ids.truncate(PAGE as usize);
                found.push(ShardTrouble::Unreadable { shard, ids });
            }
        }
        Ok(found)
    }

    /// Shards beyond those in use that still hold transitions.
    pub(super) async fn abandoned(&self) -> anyhow::Result<Vec<ShardTrouble>> {
        let live = &self.context.live;
        let mut found = Vec::new();
        let beyond: Vec<u32> = (live.shards().end..MOST_SHARDS).collect();
        for chunk in beyond.chunks(64) {
            let asked =
                chunk.iter().map(|shard| patiently(async || live.stock(*shard, self.server(0)).await));
            let stocks = futures_util::future::try_join_all(asked).await?;
            found.extend(
                chunk
                    .iter()
                    .zip(stocks)
                    .filter(|(_, stock)| stock.entries > 0)
                    .map(|(shard, stock)| ShardTrouble::Abandoned { shard: *shard, count: stock.entries }),
            );
        }
        Ok(found)
    }
}

fn waiting(shard: u32, stock: &Stock) -> Option<ShardTrouble> {
    let held_for = stock.holder.as_ref().map_or(Duration::ZERO, |(_, idle)| *idle);
    let since = match stock.oldest {
        Some(oldest) => Duration::from_millis(stock.now.0.unsigned_abs().saturating_sub(oldest.ms)),
        None => held_for,
    };
    if since <= LONG_WAIT || (stock.entries == 0 && stock.pending == 0) {
        return None;
    }
    let why = match &stock.holder {
        _ if !stock.has_group => WhyWaiting::NoGroup,
        Some((by, silent)) if *silent > LONG_WAIT => WhyWaiting::Held { by: by.clone(), silent: *silent },
        Some((by, _)) => WhyWaiting::InHand { by: by.clone() },
        None => WhyWaiting::NotTaken,
    };
    let count = stock.entries.max(stock.pending);
    Some(ShardTrouble::Waiting { shard, oldest: stock.oldest, count, since, why })
}
