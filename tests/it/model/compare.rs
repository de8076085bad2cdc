//! Model and Redis side by side: what differs, and what the model learns.

use std::collections::BTreeMap;

use presenced::model::{OnlineStatus, UserId};

use super::answers::Model;
use super::probe::{KeyLook, Look, ShardLook};
use super::reference::{Entry, Fence, LENT, Life, Shard, TTL};

/// The names of the persisters; those of [`Shard::turns`] are their numbers.
pub const CONSUMERS: [&str; 3] = ["one", "two", "three"];

impl Model {
    /// The first difference between what the model says and what Redis holds.
    pub fn differs(&self, look: &Look, offset: i64) -> Option<String> {
        let nothing = ShardLook::default();
        let shards = (0..).zip(&self.shards);
        shards.into_iter().find_map(|(number, shard)| {
            let found = look.shards.get(&number).unwrap_or(&nothing);
            shard.differs(found, look.now, offset).map(|what| format!("shard {number}: {what}"))
        })
    }

    /// Takes over what Redis alone decides: the names of new entries, the next count of moves, when exactly a hold ends,
    /// and which keys have expired and which of the dead sessions it has dropped.
    pub fn learn(&mut self, look: &Look) {
        for (number, shard) in (0..).zip(&mut self.shards) {
            let Some(found) = look.shards.get(&number) else { continue };
            shard.moves.clone_from(&found.moves);
            shard.hold_until = found.hold;
            for (entry, raw) in shard.stream.iter_mut().zip(&found.stream) {
                entry.raw.get_or_insert_with(|| raw.clone());
            }
            // A deadline that is not in the live set ends with the key, and is claimed by nobody.
            shard.live.retain(|user, life| life.listed || found.keys.contains_key(user));
            for (user, life) in &mut shard.live {
                life.expired = !found.keys.contains_key(user);
                if let Some(key) = found.keys.get(user) {
                    life.sessions.retain(|field, session| {
                        field == LENT || session.seen + TTL >= look.now || key.sessions.contains_key(field)
                    });
                }
            }
        }
    }
}

impl Shard {
    fn differs(&self, look: &ShardLook, now: i64, offset: i64) -> Option<String> {
        let live: BTreeMap<UserId, i64> = self.deadlines().map(|(at, user)| (user, at)).collect();
        differ("live", &live, &look.live)
            .or_else(|| {
                look.keys.keys().find_map(|user| {
                    (!self.live.contains_key(user))
                        .then(|| format!("a presence key of {user}, who is not present"))
                })
            })
            .or_else(|| {
                self.live.iter().find_map(|(user, life)| {
                    let what = match look.keys.get(user) {
                        Some(key) => life.differs(key, now),
                        None => (life.deadline > now).then(|| "the presence key is missing".into()),
                    };
                    what.map(|what| format!("user {user}: {what}"))
                })
            })
            .or_else(|| differ("ended", &self.ended, &look.ended))
            .or_else(|| differ("lent", &self.lent, &look.lent))
            .or_else(|| differ("marks", &self.marks, &look.marks))
            .or_else(|| differ("heard", &self.heard, &look.heard))
            .or_else(|| differ("lost", &self.lost, &look.lost))
            .or_else(|| differ("blocked", &self.blocked, &look.blocked))
            .or_else(|| differ("epoch", &self.epoch, &look.epoch))
            .or_else(|| self.differing_fence(look, now))
            .or_else(|| self.differing_stream(look, offset))
    }

    fn differing_fence(&self, look: &ShardLook, now: i64) -> Option<String> {
        let fence = match look.fence.as_deref().map(|fence| fence.split_once(' ').expect("life and cursor")) {
            None => Fence::Missing,
            Some(("former", cursor)) => Fence::Former(cursor.into()),
            Some((_, cursor)) => Fence::Stands(cursor.into()),
        };
        let (model, redis) = (self.hold_until.filter(|at| *at > now), look.hold.filter(|at| *at > now));
        differ("fence", &self.fence, &fence).or_else(|| {
            // Set with a relative TTL, by Redis's own clock a moment later.
            let apart = match (model, redis) {
                (Some(model), Some(redis)) => (redis - model).abs() > 100,
                (model, redis) => model.or(redis).is_some_and(|at| at > now + 100),
            };
            apart.then(|| format!("hold: {redis:?}, not {model:?}"))
        })
    }

    fn differing_stream(&self, look: &ShardLook, offset: i64) -> Option<String> {
        if self.stream.len() != look.stream.len() {
            let model: Vec<_> = self.stream.iter().map(Entry::short).collect();
            return Some(format!("stream: {:?}\n  not {model:?}", look.stream));
        }
        let entries = self.stream.iter().zip(&look.stream);
        entries
            .into_iter()
            .find_map(|(entry, raw)| match &entry.raw {
                Some(known) => differ("entry", known, raw),
                None => differ("new entry", &entry.fields(offset), &raw.fields),
            })
            .or_else(|| {
                let turns = self.turns.iter().zip(&look.stream);
                let holders: Vec<_> =
                    turns.map(|((holder, _), raw)| (raw.id.clone(), CONSUMERS[*holder].to_owned())).collect();
                differ("pending", &holders, &look.pending)
            })
    }
}

impl Life {
    fn differs(&self, key: &KeyLook, now: i64) -> Option<String> {
        differ("expires", &self.deadline, &key.expires)
            .or_else(|| differ("status", self.status.as_str(), &key.status))
            .or_else(|| differ("since", &self.since, &key.since))
            .or_else(|| differ("changes", &self.changes, &key.changes))
            .or_else(|| {
                // The dead may be there or not.
                let model: BTreeMap<_, _> = self
                    .sessions
                    .iter()
                    .filter(|(field, one)| *field == LENT || one.seen + TTL >= now)
                    .map(|(field, one)| (field.clone(), (one.seen, one.said == OnlineStatus::Away)))
                    .collect();
                let mut redis = key.sessions.clone();
                redis.retain(|field, (seen, _)| field == LENT || *seen + TTL >= now);
                differ("sessions", &model, &redis)
            })
            .or_else(|| {
                let stranger = key.sessions.keys().find(|field| !self.sessions.contains_key(*field));
                stranger.map(|field| format!("a session {field}, which ought to be gone"))
            })
    }
}

impl Entry {
    pub fn id(&self) -> &str {
        &self.raw.as_ref().expect("an entry that was seen").id
    }

    fn fields(&self, offset: i64) -> Vec<String> {
        let (user, at) = (self.user.to_string(), (self.at - offset).to_string());
        let seen = self.seen.map_or_else(String::new, |seen| (seen - offset).to_string());
        let fields =
            ["user", &user, "to", self.to.as_str(), "reason", self.reason.as_str(), "at", &at, "seen", &seen];
        fields.map(ToOwned::to_owned).to_vec()
    }

    fn short(&self) -> String {
        format!("{} {} {} at {} seen {:?}", self.user, self.to, self.reason.as_str(), self.at, self.seen)
    }
}

fn differ<T: PartialEq + std::fmt::Debug + ?Sized>(what: &str, model: &T, redis: &T) -> Option<String> {
    (model != redis).then(|| format!("{what}: {redis:?}, not {model:?}"))
}
