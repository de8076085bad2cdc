//! A call made to Redis and told to the model, which must find an instant at which it does what Redis did.

use std::collections::BTreeSet;
use std::fmt::Write;

use presenced::live::{Mended, Turn};

use super::answers::Model;
use super::calls::{Call, Reply};
use super::ops::Resend;
use super::probe::{Look, ShardLook};
use super::reference::{LEASE, LENT, MAX_SESSIONS, TTL, When};
use super::run::{Done, Run, USERS};

impl Run<'_> {
    /// The instants at which something happens by itself, in order.
    pub(super) fn boundaries(&self) -> BTreeSet<i64> {
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
    pub(super) fn deaths(&self) -> BTreeSet<i64> {
        let lives = self.model.shards.iter().flat_map(|shard| shard.live.values());
        let ends = lives.flat_map(|life| {
            life.sessions.values().map(|one| one.seen + TTL).filter(|end| *end < life.deadline)
        });
        ends.collect()
    }

    pub(super) fn passes_boundary(&self, from: i64, to: i64) -> bool {
        self.boundaries().range(from - 1..=to).next().is_some()
    }

    /// Makes a call, and makes it again.
    pub(super) async fn send(&mut self, call: Call, resend: Resend) -> Done {
        let (from, mut boundaries) = (self.look.now, self.boundaries());
        let repeats = call.repeats() || self.is_crowded(&call);
        self.call(&call).await?;
        match resend {
            Resend::No => {}
            Resend::Later => self.later = Some(call),
            Resend::AtOnce => {
                boundaries.extend(self.boundaries());
                let first = self.timeless();
                self.call(&call).await.map_err(|error| format!("again: {error}"))?;
                let passed = boundaries.range(from - 1..=self.look.now).next().is_some();
                if !repeats && !passed {
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
    pub(super) fn timeless(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for (number, shard) in &self.look.shards {
            for (user, key) in &shard.keys {
                let alive = key
                    .sessions
                    .iter()
                    .filter(|(field, (seen, _))| *field == LENT || seen + TTL >= self.look.now);
                let sessions: Vec<_> = alive.map(|(field, (_, away))| (field, away)).collect();
                lines.push(format!("{user} {} {sessions:?}", key.status));
            }
            let (live, ended): (Vec<_>, Vec<_>) = (shard.live.keys().collect(), shard.ended.keys().collect());
            lines.push(format!("{number} {live:?} {ended:?} {:?} {:?}", shard.blocked, shard.fence));
            lines.push(format!("{:?} {:?} {:?}", shard.lent, shard.marks, shard.lost));
            lines.push(format!("{} {:?} {:?}", shard.moves, shard.stream, shard.pending));
        }
        lines
    }

    fn count(&mut self, what: &str) {
        *self.counts.entry(what.to_owned()).or_default() += 1;
    }

    /// Makes a call to Redis, tells the model, and checks that both agree and that all holds.
    pub(super) async fn call(&mut self, call: &Call) -> Result<Reply, String> {
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
        let met = self.bounds_met();
        self.model = self
            .explained(call, &reply, &look)
            .map_err(|error| format!("{call:?}\n  {reply:?}\n  {error}\n  of {:#?}", self.model))?;
        let nothing = ShardLook::default();
        let mut happened = vec![happened(&reply)];
        let bounds = self.bounds_met();
        happened.extend((bounds.0 > met.0).then(|| "a change too many".to_owned()));
        happened.extend((bounds.1 > met.1).then(|| "a session too many".to_owned()));
        for (number, shard) in (0..).zip(&mut self.model.shards) {
            let found = look.shards.get(&number).unwrap_or(&nothing);
            self.facts.counted(number, &shard.moves, &found.moves)?;
            let known = shard.stream.iter().take_while(|entry| entry.raw.is_some()).count();
            for (entry, raw) in shard.stream[known..].iter_mut().zip(&found.stream[known..]) {
                entry.raw = Some(raw.clone());
                self.sql.appended(number, entry)?;
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

    /// How many changes of a status were refused so far, and how many sessions forgotten.
    fn bounds_met(&self) -> (u64, u64) {
        let shards = &self.model.shards;
        (shards.iter().map(|shard| shard.refused).sum(), shards.iter().map(|shard| shard.forgotten).sum())
    }

    /// Whether so many sessions of one user speak, beside those that are alive, that one of the same instant may be forgotten: then
    /// a second run forgets another.
    fn is_crowded(&self, call: &Call) -> bool {
        let (Call::Heartbeat { shard, beats } | Call::Arrive { shard, beats }) = call else { return false };
        beats.iter().any(|one| {
            let own = beats.iter().filter(|beat| beat.user == one.user);
            let own: BTreeSet<_> = own.map(|beat| format!("s:{}", beat.sid)).collect();
            let life = self.model.shards[*shard as usize].live.get(&one.user);
            let there =
                life.map_or(0, |life| life.sessions.keys().filter(|field| !own.contains(*field)).count());
            own.len() > 1 && there + own.len() > MAX_SESSIONS as usize
        })
    }

    /// The model after this call, made at an instant between the last look and this one at which it does what Redis did.
    fn explained(&self, call: &Call, reply: &Reply, look: &Look) -> Result<Model, String> {
        let nows = match reply {
            Reply::Beats(now, _) | Reply::Renewed(now, _) => (*now).max(self.look.now)..=(*now).min(look.now),
            _ => self.look.now..=look.now,
        };
        let mut why = format!("at no instant of {nows:?}:");
        // Redis began the call at the last look or later: where a key's time was over between the two, before or after.
        let expiring = self.model.shards.iter().flat_map(|shard| {
            let deadlines = shard.live.values().map(|life| life.deadline);
            deadlines.chain(shard.hold_until)
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
    pub(super) async fn looks_the_same(&mut self) -> Done {
        let look = self.place.probe.look().await;
        if let Some(difference) = self.model.differs(&look, self.place.probe.offset) {
            return Err(format!("time alone changed something: {difference}"));
        }
        self.model.learn(&look);
        self.look = look;
        Ok(())
    }
}

/// What to count.
fn happened(reply: &Reply) -> String {
    match reply {
        Reply::Beats(_, outcomes) => format!("{:?}", outcomes[0]),
        Reply::Renewed(_, statuses) => format!("renewed {:?}", statuses[0]),
        Reply::Status(outcome) => format!("status {outcome:?}"),
        Reply::Turn(Turn::Others(_)) => "another's turn".into(),
        Reply::Turn(Turn::Mine(_)) => "a turn".into(),
        Reply::Count(None) => "overtaken, or too early".into(),
        Reply::Checked(checked) => format!("checked {checked:?}"),
        Reply::Mended(mended) => {
            let done = mended.iter().find(|mended| **mended != Mended::Nothing);
            format!("mended {:?}", done.unwrap_or(&Mended::Nothing))
        }
        Reply::Fence { is_damaged: true, .. } => "damaged".into(),
        Reply::Presences(found) if found.settles => "read on hold".into(),
        _ => "other".into(),
    }
}
