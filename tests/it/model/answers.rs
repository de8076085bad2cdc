//! What the model answers to a call, and whether Redis may answer as it did.

use std::collections::{BTreeMap, BTreeSet};

use presenced::live::{Checked, Due, HeartbeatOutcome, InShard, StatusOutcome, Turn, Verdict, Work};
use presenced::model::{Millis, OnlineStatus, Presence, UserId};

use super::calls::{Call, FEW, Reply};
use super::reference::{Fence, LEASE, Shard, TTL, When};
use super::whole::Part;

/// Redis counts how long a turn lasts, and a hold, by a clock that ageing hits to the millisecond only each time.
const NEARLY: i64 = 50;

/// All shards.
#[derive(Debug, Clone)]
pub struct Model {
    pub shards: Vec<Shard>,
}

type Verdicts = Result<(), String>;

impl Model {
    pub fn new(shards: u32) -> Self {
        Self { shards: (0..shards).map(|_| Shard::default()).collect() }
    }

    pub fn shard_of(&self, user: UserId) -> u32 {
        u32::try_from(user).unwrap() % u32::try_from(self.shards.len()).unwrap()
    }

    pub fn of(&self, user: UserId) -> &Shard {
        &self.shards[self.shard_of(user) as usize]
    }

    fn of_mut(&mut self, user: UserId) -> &mut Shard {
        let shard = self.shard_of(user);
        self.shard(shard)
    }

    pub fn shard(&mut self, shard: u32) -> &mut Shard {
        &mut self.shards[shard as usize]
    }

    /// The server was restarted with its data.
    pub fn begin_another_life(&mut self) {
        for shard in &mut self.shards {
            shard.epoch = None;
            if let Fence::Stands(cursor) = &shard.fence {
                shard.fence = Fence::Former(cursor.clone());
            }
        }
    }

    /// Moves the model by a call made at that instant; an error where it does not answer as Redis did.
    pub fn call(&mut self, call: &Call, reply: &Reply, when: When) -> Verdicts {
        match (call, reply) {
            (Call::Heartbeat { shard, beats }, Reply::Renewed(now, renewed)) => {
                same("instant", &when.now, now)?;
                self.shard(*shard).hear();
                let mut left = BTreeSet::new();
                for (beat, renewed) in beats.iter().zip(renewed) {
                    let shard = self.shard(*shard);
                    let steady = shard.steady(beat, when).filter(|_| !left.contains(&beat.user));
                    same("renewal", &steady, renewed)?;
                    if steady.is_some() {
                        shard.beat(beat, when);
                    } else {
                        left.insert(beat.user);
                    }
                }
                Ok(())
            }
            (Call::Arrive { shard, beats }, Reply::Beats(now, outcomes)) => {
                same("instant", &when.now, now)?;
                self.shard(*shard).hear();
                for (beat, outcome) in beats.iter().zip(outcomes) {
                    let answers = self.shard(*shard).beat(beat, when);
                    if !answers.contains(outcome) {
                        return Err(format!("{beat:?}: {outcome:?}, not one of {answers:?}"));
                    }
                }
                Ok(())
            }
            (Call::Leave { user, sid, expires_at }, Reply::Nothing) => {
                self.of_mut(*user).leave(*user, sid, *expires_at, when);
                Ok(())
            }
            (Call::EndAgain { user, sid }, Reply::Nothing) => {
                self.of_mut(*user).leave(*user, sid, None, when);
                Ok(())
            }
            (Call::SetStatus { user, to }, Reply::Status(outcome)) => {
                let answer = match self.of_mut(*user).set_status(*user, *to, when) {
                    None => StatusOutcome::Done,
                    Some(HeartbeatOutcome::Blocked) => StatusOutcome::Blocked,
                    Some(_) => StatusOutcome::Unfenced,
                };
                same("outcome", &answer, outcome)
            }
            (Call::Claim { shard, users }, Reply::Count(claimed)) => {
                same("claimed", &Some(self.shard(*shard).claim(users, when)), claimed)
            }
            (Call::Block { shard, moves, verdicts }, Reply::Count(evicted)) => {
                same("evicted", &self.shard(*shard).tell(moves, verdicts, when), evicted)
            }
            (Call::Mend { shard, users }, Reply::Mended(mended)) => {
                let shard = self.shard(*shard);
                let answer: Vec<_> = users.iter().map(|user| shard.mend(*user, when)).collect();
                same("mended", &answer, mended)
            }
            (Call::Reconcile { shard, users }, Reply::Count(declared)) => {
                same("declared", &self.shard(*shard).reconcile(users, when), declared)
            }
            (Call::Take { consumer, shard, most }, Reply::Turn(turn)) => {
                self.shard(*shard).take(*consumer, *most, turn, when)
            }
            (Call::Ack { shard, work }, Reply::Nothing) => {
                let ids = work.transitions.iter().map(|transition| transition.id.to_string()).collect();
                self.shard(*shard).ack(&ids);
                Ok(())
            }
            (Call::Epoch { shard }, Reply::Age(age)) => {
                let since = *self.shard(*shard).epoch.get_or_insert(when.now);
                same("age", &(when.now - since), age)
            }
            _ => self.fence_call(call, reply, when),
        }
    }

    fn fence_call(&mut self, call: &Call, reply: &Reply, when: When) -> Verdicts {
        match (call, reply) {
            (Call::BeginFence, Reply::Stands(begun)) => {
                self.shards.iter_mut().for_each(|shard| shard.building = true);
                // Under way already it is under this very token.
                same("begun", &true, begun)
            }
            (Call::RaiseFence { shard, held, lost, .. }, Reply::Stands(stands)) => {
                let shard = self.shard(*shard);
                if shard.building {
                    shard.raise(*lost);
                    if *held {
                        shard.hold_until = Some(when.now + super::calls::HOLD_MS);
                    }
                }
                same("raised", &shard.building, stands)
            }
            (Call::EndFence, Reply::Nothing) => {
                self.shards.iter_mut().for_each(|shard| shard.building = false);
                Ok(())
            }
            (Call::MoveFence { shard, from, to }, Reply::Stands(moved)) => {
                let shard = self.shard(*shard);
                let there = shard.fence == Fence::Stands(from.clone());
                if there {
                    shard.fence = Fence::Stands(to.clone());
                }
                same("moved", &there, moved)
            }
            (Call::AdoptFence { shard, former }, Reply::Stands(adopted)) => {
                let shard = self.shard(*shard);
                let there = shard.fence == Fence::Former(former.cursor.clone()) && shard.is_whole();
                if there {
                    shard.fence = Fence::Stands(former.cursor.clone());
                }
                same("adopted", &there, adopted)
            }
            _ => self.look(call, reply, when),
        }
    }

    /// The calls that only read.
    fn look(&self, call: &Call, reply: &Reply, when: When) -> Verdicts {
        match (call, reply) {
            (Call::Due { shard, most }, Reply::Due(due)) => {
                self.shards[*shard as usize].due(*most as usize, due, when)
            }
            (Call::Fence { shard }, Reply::Fence { cursor, former, is_damaged }) => {
                let shard = &self.shards[*shard as usize];
                let (stands, before) = match &shard.fence {
                    Fence::Stands(cursor) if shard.is_whole() => (Some(cursor), None),
                    Fence::Former(cursor) if shard.is_whole() => (None, Some(cursor)),
                    _ => (None, None),
                };
                same("cursor", &stands, &cursor.as_ref())?;
                same("former", &before, &former.as_ref())?;
                same("damaged", &shard.is_damaged(), is_damaged)
            }
            (Call::Read { users }, Reply::Presences(found)) => {
                for (user, found) in users.iter().zip(&found.users) {
                    self.reads_as(*user, found, when).map_err(|error| format!("{user}: {error}"))?;
                }
                let present = self.deadlines().filter(|(at, _)| *at >= when.now).count();
                same("count", &Some(i64::try_from(present).unwrap()), &found.count)?;
                self.settles(found.settles, when)
            }
            (Call::Online { page }, Reply::Online(found)) => {
                self.settles(found.settles, when)?;
                let mut users: Vec<_> = self.deadlines().filter(|(at, _)| *at >= when.now).collect();
                users.sort_unstable_by(|a, b| b.cmp(a));
                same("count", &i64::try_from(users.len()).unwrap(), &found.count)?;
                let skip = usize::try_from(page.offset()).unwrap();
                let users: Vec<_> =
                    users.iter().skip(skip).take(page.size as usize).map(|(_, user)| *user).collect();
                same("users", &users, &found.users)
            }
            (Call::Unsettled, Reply::Unsettled(unsettled)) => {
                let mut answer = BTreeMap::new();
                for entry in self.shards.iter().flat_map(|shard| &shard.stream) {
                    answer.insert(entry.user, entry.to);
                }
                for (_, user) in self.deadlines().filter(|(at, _)| *at < when.now) {
                    answer.insert(user, OnlineStatus::Offline);
                }
                same("unsettled", &answer, &unsettled.iter().copied().collect())
            }
            (Call::Seen { shard }, Reply::Seen { users, lent, more }) => {
                let shard = &self.shards[*shard as usize];
                let mut ahead: Vec<_> = shard.deadlines().filter(|(at, _)| *at >= when.now).collect();
                ahead.sort_unstable();
                // Those who share the page's last deadline are on it too.
                let most = FEW as usize;
                let last = ahead.get(most - 1).map_or(i64::MAX, |(at, _)| *at);
                ahead.retain(|(at, _)| *at <= last);
                // No heartbeat made the deadline of a lent presence.
                let (loans, heard): (Vec<_>, Vec<_>) =
                    ahead.iter().partition(|(_, user)| shard.lent.contains(user));
                let answer: Vec<_> = heard.into_iter().map(|(at, user)| (user, Millis(at - TTL))).collect();
                let mut seen = users.clone();
                seen.sort_unstable_by_key(|(user, at)| (*at, *user));
                same("seen", &answer, &seen)?;
                let answer: BTreeSet<_> = loans.into_iter().map(|(_, user)| user).collect();
                same("lent", &answer, &lent.iter().copied().collect())?;
                same("more", &(ahead.len() >= most && last < when.now + TTL), more)
            }
            (Call::Check { user, sid }, Reply::Checked(checked)) => {
                let shard = self.of(*user);
                let answer = match () {
                    () if !shard.fenced() => Checked::Unfenced,
                    () if shard.blocked.contains(user) => Checked::Blocked,
                    () if shard.has_ended(*user, sid) => Checked::SessionEnded,
                    () => Checked::Good,
                };
                same("checked", &answer, checked)
            }
            other => Err(format!("no answer to that: {other:?}")),
        }
    }

    fn deadlines(&self) -> impl Iterator<Item = (i64, UserId)> {
        self.shards.iter().flat_map(Shard::deadlines)
    }

    fn reads_as(&self, user: UserId, found: &InShard, when: When) -> Verdicts {
        let held = self.of(user).is_held(when);
        let presence = self.of(user).life(user, when).and_then(|life| {
            let last_seen = life.last_heard(when.now).map(Millis);
            Some(Presence { status: life.truth(when.now)?, last_seen })
        });
        match found {
            InShard::Silent => Err("a shard is silent".into()),
            InShard::Unheard { .. } if held == Some(false) => {
                Err("unheard, though nothing is on hold".into())
            }
            InShard::Known { presence: None, .. } if held == Some(true) => {
                Err("absent, though on hold".into())
            }
            InShard::Unheard { .. } => same("presence", &presence, &None),
            InShard::Known { presence: found, .. } => same("presence", &presence, found),
        }
    }

    /// Whether an answer may say so of a hold.
    fn settles(&self, settles: bool, when: When) -> Verdicts {
        let held: Vec<_> = self.shards.iter().map(|shard| shard.is_held(when)).collect();
        let may =
            if settles { held.iter().any(|held| *held != Some(false)) } else { !held.contains(&Some(true)) };
        if may { Ok(()) } else { Err(format!("settles: {settles}, and held are {held:?}")) }
    }
}

impl Shard {
    /// Heartbeats came; that is noted where the fence stands.
    fn hear(&mut self) {
        self.heard |= self.fenced();
    }

    /// Whether reads find a hold; `None` in the millisecond in which it ends, and beside it.
    fn is_held(&self, when: When) -> Option<bool> {
        let left = self.hold_until.map_or(-2, |until| until - when.now);
        (left.abs() > 1).then_some(left > 0)
    }

    /// Takes SQL's word, unless somebody else was told something since it was asked.
    fn tell(&mut self, moves: &str, verdicts: &[(UserId, Verdict)], when: When) -> Option<u64> {
        if moves != self.moves {
            return None;
        }
        // Redis names the next count.
        self.moves.clear();
        let mut evicted = 0;
        for (user, verdict) in verdicts {
            evicted += u64::from(match verdict {
                Verdict::Block => self.block(*user, when),
                Verdict::Gone => self.forget(*user),
                Verdict::Allow => {
                    self.blocked.remove(user);
                    false
                }
            });
        }
        Some(evicted)
    }

    fn take(&mut self, consumer: usize, most: u32, turn: &Turn, when: When) -> Verdicts {
        let anothers = self.turns.first().filter(|(holder, _)| *holder != consumer);
        let left = anothers.map_or(i64::MIN / 2, |(_, at)| at + LEASE - when.now);
        let work = match turn {
            Turn::Others(wait) if (super::calls::millis(*wait) - left).abs() <= NEARLY => return Ok(()),
            Turn::Mine(work) if left <= NEARLY => work,
            turn => return Err(format!("{turn:?}, though another has the turn for {left} ms")),
        };
        let count = self.stream.len().min(most as usize);
        let answer: Vec<String> = self.stream[..count].iter().map(|entry| entry.id().to_owned()).collect();
        let ids: Vec<String> = work.transitions.iter().map(|transition| transition.id.to_string()).collect();
        same("prefix", &answer, &ids)?;
        for (entry, transition) in self.stream.iter().zip(&work.transitions) {
            same("user", &entry.user, &transition.user)?;
            same("to", &entry.to, &transition.to)?;
            same("reason", &entry.reason, &transition.reason)?;
        }
        same("unreadable", &Work::default().unreadable, &work.unreadable)?;
        for index in 0..count {
            match self.turns.get_mut(index) {
                Some(turn) => *turn = (consumer, when.now),
                None => self.turns.push((consumer, when.now)),
            }
        }
        Ok(())
    }

    fn due(&self, most: usize, due: &Due, when: When) -> Verdicts {
        same("fenced", &self.fenced(), &due.fenced)?;
        let held = self.hold_until.map_or(0, |until| (until - when.now).max(0));
        if (held - super::calls::millis(due.held)).abs() > NEARLY {
            return Err(format!("held for {:?}, not {held} ms", due.held));
        }
        let mut earliest: Vec<_> = self.deadlines().collect();
        earliest.sort_unstable();
        // The mark is looked at, too.
        earliest.truncate(most + usize::from(!self.marks.contains(&Part::Live)));
        let passed = earliest.iter().filter(|(at, _)| *at < when.now);
        let passed: Vec<_> = passed.map(|(at, user)| (*user, Millis(*at))).collect();
        same("passed", &passed, &due.passed)?;
        let next = earliest.iter().map(|(at, _)| *at).find(|at| *at >= when.now);
        let next = next.map(|at| at - when.now).or((!earliest.is_empty()).then_some(0));
        same("next", &next, &due.next_in.map(super::calls::millis))?;
        same("ahead", &false, &due.is_ahead)
    }
}

fn same<T: PartialEq + std::fmt::Debug>(what: &str, model: &T, redis: &T) -> Verdicts {
    if model == redis { Ok(()) } else { Err(format!("{what}: {redis:?}, not {model:?}")) }
}
