//! One case: each op as its calls.

use std::collections::BTreeMap;

use presenced::live::{LiveSet, Turn, Verdict};
use presenced::model::{HeartbeatWord, OnlineStatus, Page, UserId};

use super::answers::Model;
use super::calls::{Beat, Call, FEW, MANY, Reply};
use super::invariants::{Ending, Facts};
use super::ops::{Boundary, Fate, Op, Resend, Sid};
use super::persisted::{HeldWork, Persisted};
use super::probe::{Look, Probe};
use super::reference::{ENDED_TTL, LEASE, TTL};
use super::whole::Part;

pub const USERS: std::ops::RangeInclusive<UserId> = 1..=4;
pub type Done = Result<(), String>;

/// A Redis database with a number of shards, and the persisters of it.
pub struct Place {
    pub probe: Probe,
    pub consumers: Vec<LiveSet>,
    pub shards: u32,
}

/// How often what happened, over all cases.
pub type Counts = BTreeMap<String, u64>;

pub struct Run<'a> {
    pub(super) place: &'a mut Place,
    pub(super) counts: &'a mut Counts,
    pub(super) model: Model,
    pub(super) look: Look,
    pub(super) sql: Persisted,
    pub(super) facts: Facts,
    pub(super) later: Option<Call>,
    /// The last moment at which data served that are lost, until a fence is raised over what is left.
    pub(super) lost: Option<i64>,
}

impl<'a> Run<'a> {
    /// Plays a case, from an empty Redis on.
    pub async fn case(place: &'a mut Place, counts: &'a mut Counts, ops: &[Op]) -> Done {
        let model = Model::new(place.shards);
        place.probe.lose_everything().await;
        place.probe.offset = 0;
        let look = place.probe.look().await;
        let (sql, facts) = (Persisted::new(), Facts::default());
        let mut run = Self { place, counts, model, look, sql, facts, later: None, lost: None };
        run.rebuild(false, false).await?;
        for (index, op) in ops.iter().enumerate() {
            let again = run.later.take();
            run.op(op).await.map_err(|error| format!("op {index}, {op:?}\n  {error}"))?;
            if let Some(call) = again {
                run.call(&call)
                    .await
                    .map_err(|error| format!("after op {index}: {call:?} again\n  {error}"))?;
            }
        }
        run.drain().await
    }

    async fn op(&mut self, op: &Op) -> Done {
        match op.clone() {
            Op::Beat(beats, resend) => {
                let shard = self.model.shard_of(beats[0].0);
                let beats = beats.into_iter().filter(|(user, ..)| self.model.shard_of(*user) == shard);
                let beats: Vec<_> =
                    beats.map(|(user, sid, word)| Beat { user, sid: name(sid), word }).collect();
                self.send(Call::Heartbeat { shard, beats: beats.clone() }, resend).await?;
                self.send(Call::Arrive { shard, beats }, resend).await
            }
            Op::Outlive(user, sids, after) => {
                let shard = self.model.shard_of(user);
                let mut heard = 0;
                for (sid, word) in sids.into_iter().zip([HeartbeatWord::Online, HeartbeatWord::Away]) {
                    heard = if heard == 0 { self.look.now } else { heard };
                    let beats = vec![Beat { user, sid: name(sid), word }];
                    self.call(&Call::Arrive { shard, beats }).await?;
                    self.place.probe.step_by(TTL / 4).await;
                    self.looks_the_same().await?;
                }
                self.place.probe.step_to(heard + TTL + after).await;
                self.looks_the_same().await
            }
            Op::Leave(user, sid, long, resend) => {
                let expires_at = long.then_some(self.look.now + 2 * ENDED_TTL);
                let sid = name(sid);
                let ending = Ending { at: self.look.now, expires_at };
                let ending = match self.facts.ended.get(&(user, sid.clone())) {
                    Some(former) => Ending { expires_at: expires_at.max(former.expires_at), ..ending },
                    None => ending,
                };
                self.facts.ended.insert((user, sid.clone()), ending);
                self.send(Call::Leave { user, sid, expires_at }, resend).await
            }
            Op::SetStatus(user, to, resend) => self.send(Call::SetStatus { user, to }, resend).await,
            Op::Claim { sweep, resend } => self.claim(sweep, resend).await,
            Op::Tell { verdicts, stale, resend } => self.tell(verdicts, stale, resend).await,
            Op::Rebuild { held, lose_midway } => self.rebuild(held, lose_midway).await,
            Op::MoveFence { right, resend } => {
                let from = if right { "0" } else { "1" }.to_owned();
                let call = Call::MoveFence { shard: 0, from, to: "0".into() };
                self.send(call, resend).await
            }
            Op::Restart { adopt } => self.restart(adopt).await,
            Op::Lose { rebuild } => {
                self.lose().await?;
                if rebuild { self.rebuild(false, false).await } else { Ok(()) }
            }
            Op::Evict { shard, part, rebuild } => self.evict(shard % self.place.shards, part, rebuild).await,
            Op::Mend(resend) => self.mend(resend).await,
            Op::Waver(user, sid, times) => {
                let shard = self.model.shard_of(user);
                for word in
                    [HeartbeatWord::Online, HeartbeatWord::Away].into_iter().cycle().take(times.into())
                {
                    let beats = vec![Beat { user, sid: name(sid), word }];
                    self.call(&Call::Arrive { shard, beats }).await?;
                }
                Ok(())
            }
            Op::Take { consumer, most, fate, resend } => {
                for shard in self.shards() {
                    self.take(shard, consumer, most, fate, resend).await?;
                }
                Ok(())
            }
            Op::Finish(index) => {
                if self.sql.held.is_empty() {
                    return Ok(());
                }
                let held = self.sql.held.remove(index % self.sql.held.len());
                self.sql.commit(held.shard, &held.work)?;
                self.call(&Call::Ack { shard: held.shard, work: held.work }).await.map(drop)
            }
            Op::Reconcile(resend) => self.reconcile(resend).await,
            Op::Read => self.read().await,
            Op::Step(ms) => {
                self.place.probe.step_by(ms).await;
                self.looks_the_same().await
            }
            Op::StepTo(which, after) => {
                let (boundaries, which) = match which {
                    Boundary::Any(which) => (self.boundaries(), which),
                    Boundary::Death(which) => (self.deaths(), which),
                };
                let ahead: Vec<_> = boundaries.range(self.look.now - after + 1..).collect();
                if let Some(at) = ahead.get(which % ahead.len().max(1)) {
                    self.place.probe.step_to(*at + after).await;
                }
                self.looks_the_same().await
            }
        }
    }

    pub(super) fn shards(&self) -> std::ops::Range<u32> {
        0..self.place.shards
    }

    async fn claim(&mut self, sweep: bool, resend: Resend) -> Done {
        for shard in self.shards() {
            let mut users: Vec<_> = USERS.filter(|user| self.model.shard_of(*user) == shard).collect();
            if sweep {
                let Reply::Due(due) = self.call(&Call::Due { shard, most: MANY }).await? else {
                    return Ok(());
                };
                users = due.passed.into_iter().map(|(user, _)| user).collect();
            }
            self.send(Call::Claim { shard, users }, resend).await?;
        }
        Ok(())
    }

    async fn tell(&mut self, verdicts: Vec<(UserId, Verdict)>, stale: bool, resend: Resend) -> Done {
        let shard = self.model.shard_of(verdicts[0].0);
        let verdicts: Vec<_> =
            verdicts.into_iter().filter(|(user, _)| self.model.shard_of(*user) == shard).collect();
        let mut moves = self.model.shards[shard as usize].moves.clone();
        if stale {
            moves.push('0');
        } else {
            for (user, verdict) in &verdicts {
                match verdict {
                    Verdict::Allow => self.facts.blocked.remove(user),
                    Verdict::Block | Verdict::Gone => self.facts.blocked.insert(*user),
                };
                if *verdict == Verdict::Gone {
                    self.sql.deleted.insert(*user);
                    self.facts.adrift.insert(*user);
                }
            }
        }
        self.send(Call::Block { shard, moves, verdicts }, resend).await
    }

    /// As the fence keeper does: block whom SQL blocks, end what has ended, raise the fence.
    async fn rebuild(&mut self, held: bool, lose_midway: bool) -> Done {
        self.call(&Call::BeginFence).await?;
        for shard in self.shards() {
            let blocked = self.facts.blocked.iter().filter(|user| self.model.shard_of(**user) == shard);
            let verdicts: Vec<_> = blocked.map(|user| (*user, Verdict::Block)).collect();
            let moves = self.model.shards[shard as usize].moves.clone();
            self.call(&Call::Block { shard, moves, verdicts }).await?;
        }
        if lose_midway {
            self.lose().await?;
        }
        for ((user, sid), ending) in self.facts.ended.clone() {
            if ending.at + ENDED_TTL >= self.look.now {
                self.call(&Call::EndAgain { user, sid }).await?;
            }
        }
        let mut stands = true;
        for shard in self.shards() {
            let call = Call::RaiseFence { shard, held, lost: self.lost, newest: self.sql.newest };
            stands &= matches!(self.call(&call).await?, Reply::Stands(true));
        }
        if stands {
            self.lost = None;
        }
        self.call(&Call::EndFence).await.map(drop)
    }

    /// A shard loses a key.
    async fn evict(&mut self, shard: u32, part: Part, rebuild: bool) -> Done {
        let before = self.look.now;
        self.place.probe.lose(shard, part).await;
        self.model.shard(shard).evict(part);
        let of_shard = |user: &UserId| self.model.shard_of(*user) == shard;
        match part {
            Part::Live | Part::Stream => {
                self.facts.adrift.extend(USERS.filter(of_shard));
                self.sql.lost();
                self.lost = Some(before);
            }
            // Of a session that ended SQL knows, but of no token of it that lives longer.
            Part::Ended => {
                let ended = self.facts.ended.iter_mut().filter(|((user, _), _)| of_shard(user));
                ended.for_each(|(_, ending)| ending.expires_at = None);
            }
            Part::Blocked | Part::Fence => {}
        }
        if part == Part::Live {
            self.facts.unlisted.extend(self.model.shards[shard as usize].live.keys());
        }
        self.looks_the_same().await?;
        if !rebuild {
            return Ok(());
        }
        self.rebuild(false, false).await?;
        self.mend(Resend::No).await
    }

    async fn mend(&mut self, resend: Resend) -> Done {
        for shard in self.shards() {
            let users = USERS.filter(|user| self.model.shard_of(*user) == shard).collect();
            self.send(Call::Mend { shard, users }, resend).await?;
        }
        Ok(())
    }

    async fn restart(&mut self, adopt: bool) -> Done {
        self.place.probe.begin_another_life().await;
        self.model.begin_another_life();
        self.looks_the_same().await?;
        for shard in self.shards().filter(|_| adopt) {
            let fence = self.place.consumers[0].fence(shard).await.unwrap();
            if let Some(former) = fence.former {
                self.call(&Call::AdoptFence { shard, former }).await?;
            }
        }
        Ok(())
    }

    async fn lose(&mut self) -> Done {
        self.lost = Some(self.look.now);
        self.place.probe.lose_everything().await;
        self.model = Model::new(self.place.shards);
        self.sql.lost();
        self.facts.adrift.extend(USERS);
        for ending in self.facts.ended.values_mut() {
            ending.expires_at = None;
        }
        self.looks_the_same().await
    }

    async fn take(&mut self, shard: u32, consumer: usize, most: u32, fate: Fate, resend: Resend) -> Done {
        let call = Call::Take { consumer, shard, most };
        let taken = self.call(&call).await?;
        if resend == Resend::AtOnce {
            self.call(&call).await?;
        }
        let Reply::Turn(Turn::Mine(work)) = taken else { return Ok(()) };
        if work.is_empty() {
            return Ok(());
        }
        if matches!(fate, Fate::Done | Fate::Unacknowledged) {
            self.sql.commit(shard, &work)?;
        }
        match fate {
            Fate::Done => self.send(Call::Ack { shard, work }, resend).await?,
            Fate::Held => self.sql.held.push(HeldWork { shard, work }),
            Fate::Unacknowledged | Fate::Dropped => {}
        }
        Ok(())
    }

    async fn reconcile(&mut self, resend: Resend) -> Done {
        for shard in self.shards() {
            self.call(&Call::Epoch { shard }).await?;
            let present = USERS.filter(|user| self.model.shard_of(*user) == shard);
            let present = present.filter(|user| !self.sql.deleted.contains(user));
            let present = present.map(|user| (user, self.sql.recorded(user)));
            let present = present.filter(|(_, recorded)| recorded.status != OnlineStatus::Offline);
            let users = present.map(|(user, recorded)| (user, recorded.last_seen.map(|at| at.0))).collect();
            // Later SQL would say something else.
            let resend = if resend == Resend::Later { Resend::No } else { resend };
            self.send(Call::Reconcile { shard, users }, resend).await?;
        }
        Ok(())
    }

    async fn read(&mut self) -> Done {
        let mut calls = vec![Call::Read { users: USERS.collect() }, Call::Unsettled];
        calls.extend([1, 2].map(|number| Call::Online { page: Page { number, size: FEW } }));
        for shard in self.shards() {
            calls.extend([Call::Due { shard, most: FEW }, Call::Seen { shard }, Call::Fence { shard }]);
        }
        calls.extend(USERS.map(|user| Call::Check { user, sid: name(1) }));
        for call in calls {
            // A key that is in no live set is forgotten with its expiry, and the boundary with it.
            let (from, before, boundaries) = (self.look.now, self.timeless(), self.boundaries());
            self.call(&call).await?;
            let passed = boundaries.range(from - 1..=self.look.now).next().is_some();
            if before != self.timeless() && !passed {
                let after = self.timeless();
                return Err(format!("a read writes: {call:?}\n  {before:#?}\n  {after:#?}"));
            }
        }
        Ok(())
    }

    /// A persister comes and finishes the work; then SQL holds the whole history.
    async fn drain(&mut self) -> Done {
        for shard in self.shards() {
            self.place.probe.step_by(LEASE + 1_000).await;
            self.looks_the_same().await?;
            loop {
                let turn = self.call(&Call::Take { consumer: 0, shard, most: 5 }).await?;
                let Reply::Turn(Turn::Mine(work)) = turn else {
                    return Err(format!("no turn at last: {turn:?}"));
                };
                if work.is_empty() {
                    break;
                }
                self.sql.commit(shard, &work)?;
                self.call(&Call::Ack { shard, work }).await?;
            }
        }
        let empty =
            self.look.shards.values().all(|shard| shard.stream.is_empty() && shard.pending.is_empty());
        if empty { self.sql.must_be_whole() } else { Err("the stream does not end".into()) }
    }
}

/// A session's name: two users may have one of the same name.
fn name(sid: Sid) -> String {
    if sid == 0 { String::new() } else { format!("phone-{sid}") }
}
