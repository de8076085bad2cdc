//! The model: what API.md's rules make of a call. It knows nothing of keys and commands.
//!
//! Rules, for one user. A *life* begins with the first heartbeat, or with what an administrator lends, and ends at the
//! deadline, which is the latest session's last heartbeat plus the TTL. While it lasts the user is online if any session
//! that is alive said so last, else away. That changes by a session's word, its end or its death. A death is noted when
//! somebody next makes the user away; a user who comes back online was never noted to be away.

use std::collections::{BTreeMap, BTreeSet};

use presenced::live::HeartbeatOutcome;
use presenced::model::OnlineStatus::{self, Away, Offline, Online};
use presenced::model::{HeartbeatWord, Reason, UserId};

use super::calls::Beat;
use super::probe::RawEntry;
use super::whole::Part;

pub const TTL: i64 = 120_000;
pub const ENDED_TTL: i64 = 900_000;
/// How long a persister's turn is respected.
pub const LEASE: i64 = 3_000;
/// What an administrator lends is beside the sessions, as one that no heartbeat has made.
pub const LENT: &str = "admin";
/// How many sessions a presence key holds.
pub const MAX_SESSIONS: u32 = 3;
/// The time in which one change of a user's status by heartbeats is given back, and how many there are at once.
const CHANGE_US: i64 = 6_000_000;
const CHANGES: i64 = 10;

/// When a call ran. Keys come and go by `keys`, the instant at which Redis began it; what it reckons with is `now`, which
/// it asked for a moment later.
#[derive(Debug, Clone, Copy)]
pub struct When {
    pub keys: i64,
    pub now: i64,
}

#[derive(Debug, Clone)]
pub struct Session {
    pub seen: i64,
    pub said: OnlineStatus,
}

#[derive(Debug, Clone)]
pub struct Life {
    pub deadline: i64,
    /// What was last noted; a death may have changed it since.
    pub status: OnlineStatus,
    pub since: i64,
    /// When all changes of the status by heartbeats are given back, us; `None` before the first.
    pub changes: Option<i64>,
    /// By field: `s:<sid>`, or [`LENT`]. The dead stay until Redis has dropped them.
    pub sessions: BTreeMap<String, Session>,
    /// Redis deletes a key at once that is told to expire in this very millisecond, in which its user still counts.
    pub expired: bool,
    /// Whether the deadline is in the live set: it is not where that was lost.
    pub listed: bool,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Fence {
    #[default]
    Missing,
    /// Of another life of the server; its cursor.
    Former(String),
    Stands(String),
}

/// A transition in the stream.
#[derive(Debug, Clone)]
pub struct Entry {
    pub user: UserId,
    pub to: OnlineStatus,
    pub reason: Reason,
    pub at: i64,
    /// The last heartbeat; `None` where none is known of.
    pub seen: Option<i64>,
    /// How Redis wrote it, once seen.
    pub raw: Option<RawEntry>,
}

#[derive(Debug, Clone, Default)]
pub struct Shard {
    pub live: BTreeMap<UserId, Life>,
    /// Users whose presence an administrator lent.
    pub lent: BTreeSet<UserId>,
    /// The keys that bear the mark of a whole one.
    pub marks: BTreeSet<Part>,
    /// Whether an instant of heartbeats was noted.
    pub heard: bool,
    /// The last moment at which data that are lost are known to have served.
    pub lost: Option<i64>,
    /// Until when each session, as `<user>:<sid>`, is remembered; it is refused for as long as it is here.
    pub ended: BTreeMap<String, i64>,
    pub blocked: BTreeSet<UserId>,
    pub fence: Fence,
    pub building: bool,
    pub hold_until: Option<i64>,
    pub epoch: Option<i64>,
    pub moves: String,
    pub stream: Vec<Entry>,
    /// Who was given the first entries, and when.
    pub turns: Vec<(usize, i64)>,
    /// How many changes of a status were refused because there were too many, and how many sessions forgotten for the same reason:
    /// to know that it happens.
    pub refused: u64,
    pub forgotten: u64,
}

impl Life {
    /// One that begins now, with no session yet.
    pub fn begun(now: i64, status: OnlineStatus) -> Self {
        let sessions = BTreeMap::new();
        Self {
            deadline: now + TTL,
            status,
            since: now,
            changes: None,
            sessions,
            expired: false,
            listed: true,
        }
    }

    fn alive(&self, now: i64) -> impl Iterator<Item = &Session> {
        let lives = move |field: &str, one: &Session| match field {
            LENT => self.deadline >= now,
            _ => one.seen + TTL >= now,
        };
        self.sessions.iter().filter(move |(field, one)| lives(field, one)).map(|(_, one)| one)
    }

    pub fn is_lent(&self) -> bool {
        self.sessions.contains_key(LENT)
    }

    /// Forgets the sessions heard longest ago until there is room for one more; how many.
    fn make_room(&mut self, now: i64) -> u64 {
        let mut alive: Vec<_> = self
            .sessions
            .iter()
            .filter(|(_, one)| one.seen + TTL >= now)
            .map(|(field, one)| (one.seen, field.clone()))
            .collect();
        alive.sort_unstable();
        let forgotten = (alive.len() + 1).saturating_sub(MAX_SESSIONS as usize);
        for (_, field) in &alive[..forgotten] {
            self.sessions.remove(field);
        }
        forgotten as u64
    }

    /// Whether heartbeats may change the status once more; counts it if so.
    fn may_change(&mut self, now: i64) -> bool {
        let now_us = now * 1_000;
        let full = self.changes.filter(|full| *full <= now_us + CHANGES * CHANGE_US).unwrap_or(now_us);
        let after = full.max(now_us) + CHANGE_US;
        let may = after <= now_us + CHANGES * CHANGE_US;
        if may {
            self.changes = Some(after);
        }
        may
    }

    /// What the living sessions come to.
    pub fn truth(&self, now: i64) -> Option<OnlineStatus> {
        let said: Vec<_> = self.alive(now).map(|session| session.said).collect();
        if said.is_empty() { None } else { Some(if said.contains(&Online) { Online } else { Away }) }
    }

    pub fn last_heard(&self, now: i64) -> Option<i64> {
        self.alive(now).map(|session| session.seen).max().filter(|seen| *seen > 0)
    }

    /// When the last session died that had said online, where the living ones say away.
    fn online_until(&self, now: i64) -> Option<i64> {
        let dead = self.sessions.values().filter(|one| one.seen + TTL < now && one.said == Online);
        // What was lent stands alone, and lives until the deadline.
        let dead = dead.filter(|_| !self.is_lent());
        dead.map(|one| one.seen + TTL).max().filter(|_| self.truth(now) == Some(Away))
    }
}

impl Shard {
    pub fn fenced(&self) -> bool {
        matches!(self.fence, Fence::Stands(_)) && self.is_whole()
    }

    /// A user's deadline, where it is in the live set.
    pub fn deadline(&self, user: UserId) -> Option<i64> {
        self.live.get(&user).filter(|life| life.listed).map(|life| life.deadline)
    }

    /// All deadlines of the live set.
    pub fn deadlines(&self) -> impl Iterator<Item = (i64, UserId)> {
        let listed = self.live.iter().filter(|(_, life)| life.listed);
        listed.map(|(user, life)| (life.deadline, *user))
    }

    /// The last heartbeat that follows from a deadline.
    fn seen_by(&self, user: UserId, deadline: i64) -> Option<i64> {
        (!self.lent.contains(&user)).then_some(deadline - TTL)
    }

    pub fn on_hold(&self, when: When) -> bool {
        self.hold_until.is_some_and(|until| until >= when.keys)
    }

    pub fn has_ended(&self, user: UserId, sid: &str) -> bool {
        self.ended.contains_key(&format!("{user}:{sid}"))
    }

    /// The user's life, unless its key has expired.
    pub fn life(&self, user: UserId, when: When) -> Option<&Life> {
        self.live.get(&user).filter(|life| life.deadline >= when.keys && !life.expired)
    }

    pub fn append(&mut self, user: UserId, to: OnlineStatus, reason: Reason, at: i64, seen: Option<i64>) {
        // A stream that was lost is missed until the fence is raised.
        if !self.marks.contains(&Part::Stream) {
            return;
        }
        self.stream.push(Entry { user, to, reason, at, seen, raw: None });
    }

    /// When something ended that lasted until a deadline: `None` before it, or while deadlines tell nothing. Not before lost data
    /// served last.
    pub fn expired_at(&self, deadline: i64, when: When) -> Option<i64> {
        let passed = deadline < when.now && !self.on_hold(when);
        passed.then(|| deadline.max(self.lost.unwrap_or(0)).min(when.now))
    }

    /// Since when no living session says online: when the last one that did died.
    fn away_since(&self, user: UserId, when: When) -> Option<i64> {
        let until = self.life(user, when)?.online_until(when.now)?;
        self.expired_at(until, when)
    }

    /// Ends the user's life: as expired if its deadline has passed, else by `reason`, if there is one. Whether there was one in
    /// the live set.
    pub fn end(&mut self, user: UserId, reason: Option<Reason>, when: When) -> bool {
        let life = self.live.remove(&user);
        let seen = life.as_ref().and_then(|life| self.seen_by(user, life.deadline));
        self.lent.remove(&user);
        let Some(life) = life.filter(|life| life.listed) else { return false };
        match (self.expired_at(life.deadline, when), reason) {
            (Some(at), _) => self.append(user, Offline, Reason::Expired, at, seen),
            (None, Some(reason)) => self.append(user, Offline, reason, when.now, seen),
            (None, None) => {}
        }
        true
    }

    /// Notes what the sessions come to by `reason`, unless they had been away since a death already.
    fn note(&mut self, user: UserId, died: Option<i64>, reason: Reason, when: When) {
        let life = self.live.get_mut(&user).expect("a life");
        let status = life.truth(when.now).expect("a session alive");
        if status == life.status {
            return;
        }
        let died = died.filter(|_| status == Away);
        life.status = status;
        life.since = died.unwrap_or(when.now);
        let (at, deadline) = (life.since, life.deadline);
        let seen = self.seen_by(user, deadline);
        self.append(user, status, if died.is_some() { Reason::Expired } else { reason }, at, seen);
    }

    /// The status of a user for whom a heartbeat changes nothing but times.
    pub fn steady(&self, beat: &Beat, when: When) -> Option<OnlineStatus> {
        let life = self.life(beat.user, when)?;
        let own = life.sessions.get(&format!("s:{}", beat.sid))?;
        let said = match beat.word {
            HeartbeatWord::Online => Online,
            HeartbeatWord::Away => Away,
            HeartbeatWord::Touch if own.seen + TTL >= when.now => own.said,
            HeartbeatWord::Touch | HeartbeatWord::Login => return None,
        };
        (said == life.status && !life.sessions.contains_key(LENT)).then_some(said)
    }

    /// Takes a heartbeat; returns what may be answered.
    pub fn beat(&mut self, beat: &Beat, when: When) -> Vec<HeartbeatOutcome> {
        let (user, now) = (beat.user, when.now);
        let field = format!("s:{}", beat.sid);
        let life = self.life(user, when).cloned();
        let known = life.as_ref().is_some_and(|life| life.sessions.contains_key(&field));
        let mut refusals = Vec::new();
        if !known && !self.fenced() {
            return vec![HeartbeatOutcome::Unfenced];
        }
        if life.is_none() && self.blocked.contains(&user) {
            refusals.push(HeartbeatOutcome::Blocked);
        }
        if !known && self.has_ended(user, &beat.sid) {
            refusals.push(HeartbeatOutcome::SessionEnded);
        }
        if !refusals.is_empty() {
            return refusals;
        }
        let before = life.as_ref().and_then(|life| life.truth(now));
        let died = self.away_since(user, when);
        let own = life.as_ref().and_then(|life| life.sessions.get(&field));
        let said = match beat.word {
            HeartbeatWord::Away => Away,
            HeartbeatWord::Online | HeartbeatWord::Login => Online,
            // Leaves the status as it is. Who is new, or was dead, comes back to what the others have made of it.
            HeartbeatWord::Touch => match own.filter(|own| own.seen + TTL >= now) {
                Some(own) => own.said,
                None => before.or(life.as_ref().map(|life| life.status)).unwrap_or(Online),
            },
        };
        if life.is_none() {
            self.end(user, None, when);
            self.live.insert(user, Life::begun(now, Offline));
        }
        self.lent.remove(&user);
        let present = self.live.get_mut(&user).expect("a life");
        let was_lent = present.sessions.remove(LENT).is_some();
        // Where the others have to be looked at, the dead are dropped.
        if !known || said == Away && present.status == Online {
            present.sessions.retain(|other, one| *other == field || one.seen + TTL >= now);
        }
        if !known {
            self.forgotten += present.make_room(now);
        }
        present.sessions.insert(field.clone(), Session { seen: now, said });
        (present.deadline, present.listed) = (now + TTL, true);
        let comes_to = present.truth(now).expect("a session alive");
        let by_death = comes_to == Away && died.is_some();
        if life.is_some()
            && comes_to != present.status
            && !by_death
            && beat.word != HeartbeatWord::Login
            && !was_lent
            && !present.may_change(now)
        {
            // The heartbeat counts, and the status stays.
            present.sessions.insert(field, Session { seen: now, said: present.status });
            self.refused += 1;
        }
        let reason = if beat.word == HeartbeatWord::Login { Reason::Login } else { Reason::Heartbeat };
        self.note(user, died, reason, when);
        vec![HeartbeatOutcome::Present(self.live[&user].status)]
    }

    /// Ends a session.
    pub fn leave(&mut self, user: UserId, sid: &str, expires_at: Option<i64>, when: When) {
        let until = (when.now + ENDED_TTL).max(expires_at.unwrap_or(0));
        // A token that was known to live longer still does, whoever ends the session again.
        // No token is refused for more than a year.
        let mark = self.ended.entry(format!("{user}:{sid}")).or_default();
        *mark = until.max(*mark);
        self.leave_presence(user, sid, when);
        // Two that are over are forgotten, the oldest first.
        let mut over: Vec<_> = self.ended.iter().filter(|(_, until)| **until <= when.now).collect();
        over.sort_unstable_by_key(|(session, until)| (**until, session.as_bytes()));
        let over: Vec<String> = over.into_iter().take(2).map(|(session, _)| session.clone()).collect();
        self.ended.retain(|session, _| !over.contains(session));
    }

    fn leave_presence(&mut self, user: UserId, sid: &str, when: When) {
        let field = format!("s:{sid}");
        if self.life(user, when).is_none_or(|life| !life.sessions.contains_key(&field)) {
            return;
        }
        let died = self.away_since(user, when);
        let life = self.live.get_mut(&user).expect("a life");
        let had = life.sessions.remove(&field);
        match life.last_heard(when.now) {
            None => {
                life.sessions.extend(had.map(|had| (field, had)));
                self.end(user, Some(Reason::Logout), when);
            }
            Some(heard) => {
                (life.deadline, life.listed) = (life.deadline.min(heard + TTL), true);
                self.note(user, died, Reason::Logout, when);
            }
        }
    }

    /// What an administrator says; the refusal, if it is refused.
    pub fn set_status(&mut self, user: UserId, to: OnlineStatus, when: When) -> Option<HeartbeatOutcome> {
        if to == Offline {
            self.end(user, Some(Reason::Admin), when);
            return None;
        }
        if self.life(user, when).is_some_and(|life| life.deadline >= when.now && life.listed) {
            let life = self.live.get_mut(&user).expect("a life");
            // No proof of life: the deadline stays.
            for session in life.sessions.values_mut() {
                session.said = to;
            }
            if life.status != to {
                (life.status, life.since) = (to, when.now);
                let deadline = life.deadline;
                let seen = self.seen_by(user, deadline);
                self.append(user, to, Reason::Admin, when.now, seen);
            }
            return None;
        }
        if !self.fenced() {
            return Some(HeartbeatOutcome::Unfenced);
        }
        if self.blocked.contains(&user) {
            return Some(HeartbeatOutcome::Blocked);
        }
        self.end(user, None, when);
        let mut life = Life::begun(when.now, to);
        life.sessions.insert(LENT.to_owned(), Session { seen: 0, said: to });
        self.live.insert(user, life);
        self.lent.insert(user);
        // It is no sighting.
        self.append(user, to, Reason::Admin, when.now, None);
        None
    }

    /// SQL has taken these entries.
    pub fn ack(&mut self, ids: &BTreeSet<String>) {
        let taken = |entry: &Entry| entry.raw.as_ref().is_some_and(|raw| ids.contains(&raw.id));
        let mut entries = self.stream.iter();
        self.turns.retain(|_| !entries.next().is_some_and(taken));
        self.stream.retain(|entry| !taken(entry));
    }
}
