//! What must hold of Redis whatever the model says.

use std::collections::{BTreeMap, BTreeSet};

use presenced::model::{OnlineStatus, UserId};

use super::calls::Call;
use super::persisted::Persisted;
use super::probe::{KeyLook, Look, ShardLook};
use super::reference::{ENDED_TTL, Entry, LENT, Shard, TTL};

/// A session that was ended.
#[derive(Debug, Clone)]
pub struct Ending {
    pub at: i64,
    /// Until when a token of it is known to live; forgotten with the data.
    pub expires_at: Option<i64>,
}

/// What has happened so far, beside Redis.
#[derive(Default)]
pub struct Facts {
    /// SQL's word.
    pub blocked: BTreeSet<UserId>,
    /// By user and session.
    pub ended: BTreeMap<(UserId, String), Ending>,
    /// Users whose deadline was lost, while they had a presence key.
    pub unlisted: BTreeSet<UserId>,
    /// The status that the stream last told of.
    told: BTreeMap<UserId, OnlineStatus>,
    /// Of whom SQL may hold what is no longer so: Redis lost them, or the account was deleted.
    pub adrift: BTreeSet<UserId>,
    counts: BTreeSet<(u32, String)>,
}

type Holds = Result<(), String>;

fn holds(condition: bool, otherwise: impl FnOnce() -> String) -> Holds {
    if condition { Ok(()) } else { Err(otherwise()) }
}

impl Facts {
    /// Checks what a call has appended: each is a change. `doubtful` are users whose deadline lay within the call, when a
    /// key may be gone in the millisecond in which its user still counts.
    pub fn appended(
        &mut self,
        call: &Call,
        entries: &[Entry],
        shard: &ShardLook,
        doubtful: &BTreeSet<UserId>,
    ) -> Holds {
        for entry in entries {
            let told = self.told.insert(entry.user, entry.to).unwrap_or(OnlineStatus::Offline);
            // While claims are on hold nobody was noted to be gone who comes back.
            let excused = matches!(call, Call::Reconcile { .. })
                || self.adrift.contains(&entry.user)
                || shard.hold.is_some()
                || doubtful.contains(&entry.user);
            holds(told != entry.to || excused, || format!("{} was {told} already: {entry:?}", entry.user))?;
            self.adrift.remove(&entry.user);
        }
        Ok(())
    }

    /// A count of moves never comes again, or an answer that was overtaken could be believed.
    pub fn counted(&mut self, shard: u32, before: &str, moves: &str) -> Holds {
        let new = moves == before || moves.is_empty() || self.counts.insert((shard, moves.to_owned()));
        holds(new, || format!("the moves are {moves} again"))
    }

    /// Checks all that Redis holds. `before` is when the last call began.
    pub fn hold(&mut self, look: &Look, before: i64) -> Holds {
        for shard in look.shards.values() {
            for (user, deadline) in &shard.live {
                holds(!self.blocked.contains(user), || format!("{user} is blocked, and present"))?;
                let key = shard.keys.get(user);
                holds(key.is_some() || *deadline <= look.now, || format!("{user} is present without a key"))?;
            }
            for (user, key) in &shard.keys {
                let deadline = shard.live.get(user);
                if deadline.is_some() {
                    self.unlisted.remove(user);
                }
                let is_lost = deadline.is_none() && self.unlisted.contains(user);
                holds(deadline == Some(&key.expires) || is_lost, || {
                    format!("{user}: {key:?}, the deadline {deadline:?}")
                })?;
                holds(key.expires >= before, || format!("{user}: a key beyond its deadline"))?;
                self.key_holds(*user, key, look.now)?;
            }
        }
        Ok(())
    }

    fn key_holds(&self, user: UserId, key: &KeyLook, now: i64) -> Holds {
        let latest = key.sessions.values().map(|(seen, _)| *seen).max().unwrap_or_default();
        let is_lent = key.sessions.contains_key(LENT);
        holds(is_lent || latest + TTL == key.expires, || {
            format!("{user}: not the deadline of the latest session: {key:?}")
        })?;
        let at_work = |alive: bool| {
            key.sessions.values().any(|(seen, away)| !away && (is_lent || !alive || seen + TTL >= now))
        };
        match key.status.as_str() {
            "online" => holds(at_work(false), || format!("{user}: nobody said online: {key:?}"))?,
            "away" => holds(!at_work(true), || format!("{user}: somebody says online: {key:?}"))?,
            _ => return Err(format!("{user}: no status: {key:?}")),
        }
        for ((_, sid), ending) in self.ended.iter().filter(|((of, _), _)| *of == user) {
            let refused = now < (ending.at + ENDED_TTL).max(ending.expires_at.unwrap_or(0));
            let back = refused && key.sessions.contains_key(&format!("s:{sid}"));
            holds(!back, || format!("{user}: {sid} has ended, and is back: {key:?}"))?;
        }
        Ok(())
    }

    /// When SQL has what the stream holds, it says of everyone what is so.
    pub fn settles(&self, users: impl Iterator<Item = UserId>, shard: &Shard, sql: &Persisted) -> Holds {
        for user in users.filter(|user| !self.adrift.contains(user)) {
            let (will_be, is) = (sql.will_be(user, &shard.stream), shard.live.get(&user));
            let is = is.map_or(OnlineStatus::Offline, |life| life.status);
            holds(will_be == is, || format!("SQL will say that {user} is {will_be}, who is {is}"))?;
        }
        Ok(())
    }
}
