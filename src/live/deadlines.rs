//! Deadlines: which have passed, who claims them, and what a Redis that lost its data leaves behind.

use std::time::Duration;

use fred::interfaces::{KeysInterface, SortedSetsInterface};
use fred::types::{Key, Value};

use super::Result;
use super::live_set::{LiveSet, unexpected};
use super::scripts::named;
use crate::model::{Millis, UserId};

/// Whose deadline has passed in a shard, and when the next one will.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Due {
    /// Redis's time of the look.
    pub now: Millis,
    /// Whether the fence stands; where it does not, Redis was restarted or has lost its data, and nothing is claimed.
    pub fenced: bool,
    /// For how long nothing is claimed yet, because data was lost; zero for at once.
    pub held: Duration,
    /// Users whose deadline has passed, with it, the earliest first.
    pub passed: Vec<(UserId, Millis)>,
    /// Members of the live set that are no user ids (written by someone else's hand) and would come up for ever.
    pub strays: Vec<String>,
    /// Whether some deadline is later than a heartbeat of now could make it: a longer TTL of then, or a clock that was
    /// ahead for a while ([`LiveSet::clock_back`]).
    pub is_ahead: bool,
    /// How long until the next deadline, by Redis's clock; zero where more have passed than were asked for, `None`
    /// where the live set is empty.
    pub next_in: Option<Duration>,
}

/// How much later than now plus the TTL a deadline may be, ms, before it is looked at.
const AHEAD_MS: i64 = 1_000;

/// Users in one call of `lua/clock_back.lua`.
const AHEAD_PAGE: u32 = 500;

/// Since when a Redis server has been heard without a break in its data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Epoch {
    /// For how long it has been heard.
    pub age: Duration,
    /// Whether it begins with this look.
    pub is_new: bool,
}

/// A place in the walk over who is present.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SeenPlace {
    after: Millis,
    until: Millis,
}

/// A page of who is present.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeenPage {
    /// Redis's time of the page.
    pub now: Millis,
    /// Users with their last heartbeat, the earliest deadline first.
    pub users: Vec<(UserId, Millis)>,
    /// Users whose presence an administrator lent: no heartbeat made it.
    pub lent: Vec<UserId>,
    /// Where to go on; `None` at the end.
    pub next: Option<SeenPlace>,
}

impl SeenPage {
    /// All users of the page.
    pub fn present(&self) -> Vec<UserId> {
        self.users.iter().map(|(user, _)| *user).chain(self.lent.iter().copied()).collect()
    }
}

impl LiveSet {
    /// Whose deadline has passed in a shard (`lua/due.lua`), at most `most` of them.
    pub async fn due(&self, shard: u32, most: u32) -> Result<Due> {
        let keys = self.keys(shard);
        let reply: Vec<String> = named::due
            .run(&self.back, || {
                let mut names = keys.of_a_fence().to_vec();
                names.extend([keys.hold(), keys.heard()]);
                (names, vec![i64::from(most).into()])
            })
            .await?;
        let number = |index: usize| {
            reply
                .get(index)
                .and_then(|word| word.parse::<i64>().ok())
                .ok_or_else(|| unexpected("due", "no number"))
        };
        let (now, fenced, held, next, latest) =
            (number(0)?, number(1)? == 1, number(2)?, number(4)?, number(5)?);
        if fenced {
            // What came with the data of a former life is to be judged, and proves nothing.
            self.has_heard(shard, Millis(number(3)?));
        }
        let mut due = Due {
            now: Millis(now),
            fenced,
            held: Duration::from_millis(held.unsigned_abs()),
            next_in: match next {
                -1 => None,
                0 => Some(Duration::ZERO),
                at => Some(Duration::from_millis((at - now).unsigned_abs())),
            },
            is_ahead: latest > now + self.ttl_ms() + AHEAD_MS,
            ..Due::default()
        };
        for pair in reply[6..].chunks_exact(2) {
            match (pair[0].parse::<UserId>(), pair[1].parse()) {
                // Only the plain form is the member that a claim finds: `007` is none.
                (Ok(user), Ok(deadline)) if user > 0 && user.to_string() == pair[0] => {
                    due.passed.push((user, Millis(deadline)));
                }
                _ => due.strays.push(pair[0].clone()),
            }
        }
        Ok(due)
    }

    /// Claims the passed deadlines among these users of one shard (`lua/claim.lua`); returns how many this call won.
    pub async fn claim(&self, shard: u32, users: &[UserId]) -> Result<u64> {
        let keys = self.keys(shard);
        let claimed: u64 = named::claim
            .run(&self.back, || {
                let mut names = keys.of_a_fence().to_vec();
                names.extend([keys.hold(), keys.lent(), keys.lost()]);
                names.extend(users.iter().map(|user| keys.user(*user)));
                let mut args: Vec<Value> = vec![self.ttl_ms().into()];
                args.extend(users.iter().map(|user| Value::from(*user)));
                (names, args)
            })
            .await?;
        Ok(claimed)
    }

    /// Drops members of the live set that are no user ids.
    pub async fn drop_strays(&self, shard: u32, strays: &[String]) -> Result<()> {
        let key = self.keys(shard).live();
        let removal = self.back.call(&key, |client| {
            let (key, strays) = (key.clone(), strays.to_vec());
            async move { client.zrem::<(), _, _>(key, strays).await }
        });
        Ok(removal.await??)
    }

    /// Since when a shard's server has been heard (`lua/epoch.lua`).
    pub async fn epoch(&self, shard: u32) -> Result<Epoch> {
        let reply: Vec<i64> =
            named::epoch.run(&self.back, || (vec![self.keys(shard).epoch()], vec![])).await?;
        let [now, since, begun] = reply[..] else { return Err(unexpected("epoch", "too little")) };
        Ok(Epoch { age: Duration::from_millis((now - since).unsigned_abs()), is_new: begun == 1 })
    }

    /// Declares offline those of `users` (of one shard, with SQL's `last_seen`) whom the live set does not know
    /// (`lua/reconcile.lua`). Returns how many, or `None` where this Redis has not been heard for a TTL yet.
    pub async fn reconcile(&self, shard: u32, users: &[(UserId, Option<Millis>)]) -> Result<Option<u64>> {
        let keys = self.keys(shard);
        let declared: i64 = named::reconcile
            .run(&self.back, || {
                let mut args: Vec<Value> = vec![self.ttl_ms().into()];
                for (user, seen) in users {
                    args.push((*user).into());
                    args.push(seen.map_or_else(|| Value::from_static_str(""), |seen| seen.0.into()));
                }
                let mut names = keys.of_a_fence().to_vec();
                names.extend([keys.epoch(), keys.lost()]);
                names.extend(users.iter().map(|(user, _)| keys.user(*user)));
                (names, args)
            })
            .await?;
        Ok(u64::try_from(declared).ok())
    }

    /// Says again of those of `users` (of one shard) who are present what their status is (`lua/affirm.lua`); returns
    /// how many.
    pub async fn affirm(&self, shard: u32, users: &[UserId]) -> Result<u64> {
        let keys = self.keys(shard);
        let affirmed: u64 = named::affirm
            .run(&self.back, || {
                let mut names = vec![keys.live(), keys.transitions()];
                names.extend(users.iter().map(|user| keys.user(*user)));
                (names, users.iter().map(|user| Value::from(*user)).collect())
            })
            .await?;
        Ok(affirmed)
    }

    /// A page of who is present by deadline, with the last heartbeat that follows from it (`lua/seen.lua`), and where
    /// to go on (`None` at the end). Users who send heartbeats meanwhile move out of the walk: their time comes again.
    pub async fn seen(&self, shard: u32, from: Option<SeenPlace>, most: u32) -> Result<SeenPage> {
        let keys = self.keys(shard);
        let reply: Vec<String> = named::seen
            .run(&self.back, || {
                let bounds = match from {
                    Some(place) => [place.after.0.into(), place.until.0.into()],
                    None => [Value::from_static_str(""), Value::from_static_str("+inf")],
                };
                let [after, until] = bounds;
                (vec![keys.live(), keys.lent()], vec![after, until, i64::from(most).into()])
            })
            .await?;
        let number = |index: usize| reply.get(index).and_then(|word| word.parse::<i64>().ok());
        let (Some(now), pairs) = (number(0), reply.get(2..).unwrap_or_default()) else {
            return Err(unexpected("seen", "too little"));
        };
        let until = from.map_or(Millis(now + self.ttl_ms()), |place| place.until);
        let is_full = pairs.len() >= 2 * most as usize;
        let last = number(1).map(Millis).filter(|last| is_full && *last < until);
        let mut page = SeenPage {
            now: Millis(now),
            users: Vec::with_capacity(pairs.len() / 2),
            lent: Vec::new(),
            next: last.map(|after| SeenPlace { after, until }),
        };
        for pair in pairs.chunks_exact(2) {
            match (pair[0].parse::<UserId>(), pair[1].parse::<i64>()) {
                (Ok(user), Ok(deadline)) if user > 0 => {
                    page.users.push((user, Millis(deadline - self.ttl_ms())));
                }
                (Ok(user), Err(_)) if user > 0 && pair[1].is_empty() => page.lent.push(user),
                _ => {}
            }
        }
        Ok(page)
    }

    /// Asks for the turn to write `last_seen` behind, which lasts for `span`: one process of many gets it.
    pub async fn flush_turn(&self, shard: u32, span: Duration) -> Result<bool> {
        self.take_span(&self.keys(shard).flush_turn(), span).await
    }

    /// Asks for the turn to compare presence keys with the live set, which lasts for `span`: one process of many has it, and
    /// may ask for it again.
    pub async fn verify_turn(&self, shard: u32, span: Duration) -> Result<bool> {
        self.take_span(&self.keys(shard).verify_turn(), span).await
    }

    async fn take_span(&self, key: &Key, span: Duration) -> Result<bool> {
        let span_ms = i64::try_from(span.as_millis()).unwrap_or(i64::MAX);
        self.take_turn(key, &self.options.instance, span_ms).await
    }

    /// Takes a turn (`lua/turn.lua`); whether `holder` has it now.
    pub(super) async fn take_turn(&self, key: &Key, holder: &str, span_ms: i64) -> Result<bool> {
        let taken: i64 =
            named::turn.run(&self.back, || (vec![key.clone()], vec![holder.into(), span_ms.into()])).await?;
        Ok(taken == 1)
    }

    /// Brings all users of a shard back whose heartbeats lie ahead of Redis's clock; returns how many. Walks over those whose
    /// deadline is later than a heartbeat of now could make it.
    pub async fn bring_back_from_ahead(&self, shard: u32, now: Millis) -> Result<u64> {
        let latest = now.plus(self.ttl_ms());
        let (mut place, mut brought) = (None, 0);
        loop {
            let page = self.members(shard, place, AHEAD_PAGE).await?;
            let moved = if page.users.is_empty() { 0 } else { self.clock_back(shard, &page.users).await? };
            brought += moved;
            match page.next.filter(|next| next.deadline_ms().is_none_or(|at| at > latest.0)) {
                // Those of the page's last deadline who were brought back are at it no more: none of the others is skipped.
                Some(next) if moved > 0 => place = Some(next.begun_anew()),
                Some(next) => place = Some(next),
                None => return Ok(brought),
            }
        }
    }

    /// Brings those of `users` (of one shard) back whose heartbeats lie ahead of Redis's clock (`lua/clock_back.lua`);
    /// returns how many.
    pub async fn clock_back(&self, shard: u32, users: &[UserId]) -> Result<u64> {
        let keys = self.keys(shard);
        named::clock_back
            .run(&self.back, || {
                let mut names = vec![keys.live(), keys.lent()];
                names.extend(users.iter().map(|user| keys.user(*user)));
                let mut args: Vec<Value> = vec![self.ttl_ms().into()];
                args.extend(users.iter().map(|user| Value::from(*user)));
                (names, args)
            })
            .await
    }

    /// Whether each of these users of one shard has a presence key: one command.
    pub async fn all_have_keys(&self, shard: u32, users: &[UserId]) -> Result<bool> {
        if users.is_empty() {
            return Ok(true);
        }
        let keys = self.keys(shard);
        let names: Vec<Key> = users.iter().map(|user| keys.user(*user)).collect();
        let found = self.back.call(&names[0], |client| {
            let names = names.clone();
            async move { client.exists::<usize, _>(names).await }
        });
        Ok(found.await?? == users.len())
    }
}
