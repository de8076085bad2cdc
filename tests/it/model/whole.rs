//! The model's rules for a shard as a whole: the keys that belong together, their loss, and how it is put right; who is claimed,
//! blocked and missed.

use std::collections::BTreeSet;

use presenced::live::Mended;
use presenced::model::OnlineStatus::{Offline, Online};
use presenced::model::{Reason, UserId};

use super::reference::{Fence, LENT, Life, Session, Shard, TTL, When};

/// A key of those that belong together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    Live,
    Stream,
    Blocked,
    Ended,
    Fence,
}

impl Part {
    /// Those that bear a mark of their own.
    pub const MARKED: [Self; 4] = [Self::Live, Self::Stream, Self::Blocked, Self::Ended];

    /// What the key's name ends with.
    pub const fn key(self) -> &'static str {
        match self {
            Self::Live => "live",
            Self::Stream => "transitions",
            Self::Blocked => "blocked",
            Self::Ended => "ended",
            Self::Fence => "fence",
        }
    }
}

impl Shard {
    pub fn is_whole(&self) -> bool {
        self.marks.len() == Part::MARKED.len()
    }

    /// Whether it had a fence once, and has lost its deadlines or its stream since.
    pub fn is_damaged(&self) -> bool {
        let had_fence = self.fence != Fence::Missing || self.heard;
        had_fence && !(self.marks.contains(&Part::Live) && self.marks.contains(&Part::Stream))
    }

    /// The key is gone.
    pub fn evict(&mut self, part: Part) {
        self.marks.remove(&part);
        match part {
            Part::Live => {
                self.live.retain(|_, life| !life.expired);
                self.live.values_mut().for_each(|life| life.listed = false);
            }
            Part::Stream => {
                self.stream.clear();
                self.turns.clear();
            }
            Part::Blocked => self.blocked.clear(),
            Part::Ended => self.ended.clear(),
            Part::Fence => self.fence = Fence::Missing,
        }
    }

    /// The fence is raised over whatever there is.
    pub fn raise(&mut self, lost: Option<i64>) {
        self.fence = Fence::Stands("0".into());
        self.marks = BTreeSet::from(Part::MARKED);
        self.lost = lost.max(self.lost);
    }

    /// Claims what has passed; how many.
    pub fn claim(&mut self, users: &[UserId], when: When) -> u64 {
        if !self.fenced() || self.on_hold(when) {
            return 0;
        }
        let mut claimed = 0;
        for user in users {
            if self.deadline(*user).is_some_and(|deadline| deadline < when.now) {
                self.end(*user, None, when);
                claimed += 1;
            }
        }
        claimed
    }

    /// SQL says that the account may not be present; whether that took the user offline.
    pub fn block(&mut self, user: UserId, when: When) -> bool {
        self.blocked.insert(user);
        if self.deadline(user).is_some() {
            return self.end(user, Some(Reason::Blocked), when);
        }
        self.live.remove(&user);
        false
    }

    /// There is no such account any more, and nobody to record anything for.
    pub fn forget(&mut self, user: UserId) -> bool {
        self.blocked.insert(user);
        let was_present = self.deadline(user).is_some();
        if was_present {
            self.lent.remove(&user);
        }
        self.live.remove(&user);
        was_present
    }

    /// Declares offline whom Redis does not know; `None` where it has not been heard for a TTL.
    pub fn reconcile(&mut self, users: &[(UserId, Option<i64>)], when: When) -> Option<u64> {
        let served = self.lost.unwrap_or(0);
        let too_early = |since: i64| when.now <= since + TTL;
        if !self.fenced() || self.epoch.is_none_or(too_early) || (when.now - served).abs() <= TTL {
            return None;
        }
        let is_missing = |user: UserId| self.deadline(user).is_none() && self.life(user, when).is_none();
        let missing: Vec<_> = users.iter().filter(|(user, _)| is_missing(*user)).copied().collect();
        for (user, seen) in &missing {
            let seen = seen.filter(|seen| *seen <= when.now);
            let at = seen.map_or(when.now, |seen| when.now.min(served.max(seen + TTL)));
            self.append(*user, Offline, Reason::Expired, at, seen);
        }
        Some(missing.len() as u64)
    }

    /// Puts right what contradicts itself of a user.
    pub fn mend(&mut self, user: UserId, when: When) -> Mended {
        let life = self.life(user, when).cloned();
        match (self.deadline(user), life) {
            (None, None) => Mended::Nothing,
            (None, Some(life)) => {
                let alive = life.truth(when.now).is_some() && life.deadline >= when.now;
                if alive && !self.blocked.contains(&user) {
                    self.live.get_mut(&user).expect("a life").listed = true;
                    return Mended::DeadlineSet;
                }
                self.live.remove(&user);
                Mended::KeyDropped
            }
            (Some(deadline), _) if deadline < when.now => Mended::Nothing,
            (Some(_), Some(life)) if life.truth(when.now).is_some() => Mended::Nothing,
            // In the deadline's own millisecond the key may be gone.
            (Some(deadline), _) => {
                let seen = if self.lent.contains(&user) { 0 } else { deadline - TTL };
                let mut made = Life { deadline, ..Life::begun(deadline - TTL, Online) };
                made.sessions.insert(LENT.into(), Session { seen, said: Online });
                self.live.insert(user, made);
                Mended::KeyMade
            }
        }
    }
}
