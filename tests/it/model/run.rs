//! One case: each op as its calls, each call made to Redis and told to the model, which must find an instant at which it
//! does what Redis did.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use presenced::live::{LiveSet, Turn, Verdict, Work};
use presenced::model::{HeartbeatWord, OnlineStatus, Page, UserId};

use super::answers::Model;
use super::calls::{Beat, Call, FEW, MANY, Reply};
use super::invariants::{Ending, Facts};
use super::ops::{Boundary, Fate, Op, Resend, Sid};
use super::persisted::{HeldWork, Persisted};
use super::probe::{Look, Probe, ShardLook};
use super::reference::{ENDED_TTL, LEASE, TTL, When};

pub const USERS: std::ops::RangeInclusive<UserId> = 1..=4;
type Done = Result<(), String>;

/// A Redis database with a number of shards, and the persisters of it.
pub struct Place {
    pub probe: Probe,
    pub consumers: Vec<LiveSet>,
    pub shards: u32,
}

/// How often what happened, over all cases.
pub type Counts = BTreeMap<String, u64>;

pub struct Run<'a> {
    place: &'a mut Place,
    counts: &'a mut Counts,
    model: Model,
    look: Look,
    sql: Persisted,
    facts: Facts,
    later: Option<Call>,
}

impl<'a> Run<'a> {
    /// Plays a case, from an empty Redis on.
    pub async fn case(place: &'a mut Place, counts: &'a mut Counts, ops: &[Op]) -> Done {
        let model = Model::new(place.shards);
        place.probe.lose_everything().await;
        place.probe.offset = 0;
        let look = place.probe.look().await;
        let (sql, facts) = (Persisted::new(), Facts::default());
        let mut run = Self { place, counts, model, look, sql, facts, later: None };
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
                let beats =
                    beats.map(|(user, sid, word)| Beat { user, sid: name(user, sid), word }).collect();
                self.send(Call::Heartbeat { shard, beats }, resend).await
            }
            Op::Outlive(user, sids, after) => {
                let shard = self.model.shard_of(user);
                let mut heard = 0;
                for (sid, word) in sids.into_iter().zip([HeartbeatWord::Online, HeartbeatWord::Away]) {
                    heard = if heard == 0 { self.look.now } else { heard };
                    let beats = vec![Beat { user, sid: name(user, sid), word }];
                    self.call(&Call::Heartbeat { shard, beats }).await?;
                    self.place.probe.step_by(TTL / 4).await;
                    self.looks_the_same().await?;
                }
                self.place.probe.step_to(heard + TTL + after).await;
                self.looks_the_same().await
            }
            Op::Leave(user, sid, long, resend) => {
                let expires_at = long.then_some(self.look.now + 2 * ENDED_TTL);
                let sid = name(user, sid);
                let ending = Ending { user, at: self.look.now, expires_at };
                let ending = match self.facts.ended.get(&sid) {
                    Some(former) => Ending { expires_at: expires_at.max(former.expires_at), ..ending },
                    None => ending,
                };
                self.facts.ended.insert(sid.clone(), ending);
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

    fn shards(&self) -> std::ops::Range<u32> {
        0..self.place.shards
    }

    /// The instants at which something happens by itself, in order.
    fn boundaries(&self) -> BTreeSet<i64> {
        let mut at = BTreeSet::new();
        for shard in &self.model.shards {
            for life in shard.live.values() {
                at.insert(life.deadline);
                at.extend(life.sessions.values().map(|session| session.seen + TTL));
            }
            at.extend(shard.ended.values());
            at.extend(shard.hold_until);
            at.extend(shard.epoch.map(|since| since + TTL));
            at.extend(shard.turns.first().map(|(_, at)| at + LEASE));
        }
        at
    }

    /// The ends of sessions that their users outlive.
    fn deaths(&self) -> BTreeSet<i64> {
        let lives = self.model.shards.iter().flat_map(|shard| shard.live.values());
        let ends = lives.flat_map(|life| {
            life.sessions.values().map(|one| one.seen + TTL).filter(|end| *end < life.deadline)
        });
        ends.collect()
    }

    fn passes_boundary(&self, from: i64, to: i64) -> bool {
        self.boundaries().range(from - 1..=to).next().is_some()
    }

    /// Makes a call, and makes it again.
    async fn send(&mut self, call: Call, resend: Resend) -> Done {
        let (from, mut boundaries) = (self.look.now, self.boundaries());
        self.call(&call).await?;
        match resend {
            Resend::No => {}
            Resend::Later => self.later = Some(call),
            Resend::AtOnce => {
                boundaries.extend(self.boundaries());
                let first = self.timeless();
                self.call(&call).await.map_err(|error| format!("again: {error}"))?;
                let passed = boundaries.range(from - 1..=self.look.now).next().is_some();
                if !call.repeats() && !passed {
                    let second = self.timeless();
                    if first != second {
                        return Err(format!(
                            "made twice it changes more than times:\n  {first:#?}\n  {second:#?}"
                        ));
                    }
                    self.count("made twice");
                }
            }
        }
        Ok(())
    }

    /// What Redis holds but for its times.
    fn timeless(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for (number, shard) in &self.look.shards {
            for (user, key) in &shard.keys {
                let alive = key.sessions.iter().filter(|(_, (seen, _))| seen + TTL >= self.look.now);
                let sessions: Vec<_> = alive.map(|(field, (_, away))| (field, away)).collect();
                lines.push(format!("{user} {} {sessions:?}", key.status));
            }
            let (live, ended): (Vec<_>, Vec<_>) = (shard.live.keys().collect(), shard.ended.keys().collect());
            lines.push(format!("{number} {live:?} {ended:?} {:?} {:?}", shard.blocked, shard.fence));
            lines.push(format!("{} {:?} {:?}", shard.moves, shard.stream, shard.pending));
        }
        lines
    }

    fn count(&mut self, what: &str) {
        *self.counts.entry(what.to_owned()).or_default() += 1;
    }

    /// Makes a call to Redis, tells the model, and checks that both agree and that all holds.
    async fn call(&mut self, call: &Call) -> Result<Reply, String> {
        let before = self.look.now;
        let reply = call.make(&self.place.consumers, self.place.probe.offset).await;
        let look = self.place.probe.look().await;
        let both = matches!(call, Call::Online { .. } | Call::Read { .. } | Call::Unsettled);
        if both && self.place.shards > 1 && self.passes_boundary(before, look.now) {
            // Shards are asked one by one: with a boundary between them the answer is that of no instant.
            self.look = look;
            return Ok(reply);
        }
        let doubtful = self.model.shards.iter().flat_map(|shard| &shard.live);
        let doubtful = doubtful.filter(|(_, life)| (before - 1..=look.now).contains(&life.deadline));
        let doubtful = doubtful.map(|(user, _)| *user).collect();
        self.model = self
            .explained(call, &reply, &look)
            .map_err(|error| format!("{call:?}\n  {reply:?}\n  {error}\n  of {:#?}", self.model))?;
        let nothing = ShardLook::default();
        let mut happened = vec![happened(&reply)];
        for (number, shard) in (0..).zip(&mut self.model.shards) {
            let found = look.shards.get(&number).unwrap_or(&nothing);
            self.facts.counted(number, &shard.moves, &found.moves)?;
            let known = shard.stream.iter().take_while(|entry| entry.raw.is_some()).count();
            for (entry, raw) in shard.stream[known..].iter_mut().zip(&found.stream[known..]) {
                entry.raw = Some(raw.clone());
                self.sql.appended(number, entry);
                happened.push(format!("{} {}", entry.to, entry.reason.as_str()));
            }
            self.facts.appended(call, &shard.stream[known..], found, &doubtful)?;
        }
        self.model.learn(&look);
        self.look = look;
        self.facts.hold(&self.look, before)?;
        for shard in self.shards() {
            let users = USERS.filter(|user| self.model.shard_of(*user) == shard);
            self.facts.settles(users, &self.model.shards[shard as usize], &self.sql)?;
        }
        for what in happened {
            self.count(&what);
        }
        Ok(reply)
    }

    /// The model after this call, made at an instant between the last look and this one at which it does what Redis did.
    fn explained(&self, call: &Call, reply: &Reply, look: &Look) -> Result<Model, String> {
        let nows = match reply {
            Reply::Beats(now, _) => (*now).max(self.look.now)..=(*now).min(look.now),
            _ => self.look.now..=look.now,
        };
        let mut why = format!("at no instant of {nows:?}:");
        // Redis began the call at the last look or later: where a key's time was over between the two, before or after.
        let expiring = self.model.shards.iter().flat_map(|shard| {
            let deadlines = shard.live.values().map(|life| life.deadline);
            deadlines.chain(shard.ended.values().copied()).chain(shard.hold_until)
        });
        let mut began: BTreeSet<i64> = expiring.map(|at| at + 1).collect();
        began.insert(self.look.now);
        for now in nows {
            for keys in began.range(self.look.now..=now + 1) {
                let mut model = self.model.clone();
                let answered = model.call(call, reply, When { keys: *keys, now });
                match answered.err().or_else(|| model.differs(look, self.place.probe.offset)) {
                    None => return Ok(model),
                    // The instants of a slow call are many, and all say much the same.
                    Some(error) if why.len() < 2_000 => {
                        write!(why, "\n    at {now}, begun at {keys}: {error}").unwrap();
                    }
                    Some(_) => {}
                }
            }
        }
        Err(why)
    }

    /// Time has passed, and nothing else has changed.
    async fn looks_the_same(&mut self) -> Done {
        let look = self.place.probe.look().await;
        if let Some(difference) = self.model.differs(&look, self.place.probe.offset) {
            return Err(format!("time alone changed something: {difference}"));
        }
        self.look = look;
        Ok(())
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
        for (sid, ending) in self.facts.ended.clone() {
            if ending.at + ENDED_TTL >= self.look.now {
                self.call(&Call::EndAgain { user: ending.user, sid }).await?;
            }
        }
        for shard in self.shards() {
            self.call(&Call::RaiseFence { shard, held }).await?;
        }
        self.call(&Call::EndFence).await.map(drop)
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
            calls.extend([Call::Due { shard, most: FEW }, Call::Seen { shard }]);
        }
        calls.extend(USERS.map(|user| Call::Refuses { user, sid: name(user, 1) }));
        for call in calls {
            let (from, before) = (self.look.now, self.timeless());
            self.call(&call).await?;
            if before != self.timeless() && !self.passes_boundary(from, self.look.now) {
                return Err(format!("a read writes: {call:?}"));
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
                if work == Work::default() {
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

/// A session's name: of one user, as real ones are.
fn name(user: UserId, sid: Sid) -> String {
    if sid == 0 { String::new() } else { format!("{user}-{sid}") }
}

/// What to count.
fn happened(reply: &Reply) -> String {
    match reply {
        Reply::Beats(_, outcomes) => format!("{:?}", outcomes[0]),
        Reply::Status(outcome) => format!("status {outcome:?}"),
        Reply::Turn(Turn::Others(_)) => "another's turn".into(),
        Reply::Turn(Turn::Mine(_)) => "a turn".into(),
        Reply::Count(None) => "overtaken, or too early".into(),
        _ => "other".into(),
    }
}
