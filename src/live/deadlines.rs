//! Deadlines: which have passed, who claims them, and what a Redis that lost its data leaves behind.

use std::time::Duration;

use fred::interfaces::{KeysInterface, SortedSetsInterface};
use fred::types::{Expiration, SetOptions, Value};

use super::Result;
use super::keys::Keys;
use super::live_set::{LiveSet, unexpected};
use super::scripts::named;
use crate::model::{Millis, UserId};

/// Whose deadline has passed in a shard, and when the next one will.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Due {
    /// Whether the fence stands; where it does not, Redis was restarted or has lost its data, and nothing is claimed.
    pub fenced: bool,
    /// For how long nothing is claimed yet, because data was lost; zero for at once.
    pub held: Duration,
    /// Users whose deadline has passed, with it, the earliest first.
    pub passed: Vec<(UserId, Millis)>,
    /// Members of the live set that are no user ids (written by someone else's hand) and would come up for ever.
    pub strays: Vec<String>,
    /// How long until the next deadline, by Redis's clock; zero where more have passed than were asked for, `None`
    /// where the live set is empty.
    pub next_in: Option<Duration>,
}

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

impl LiveSet {
    /// Whose deadline has passed in a shard (`lua/due.lua`), at most `most` of them.
    pub async fn due(&self, shard: u32, most: u32) -> Result<Due> {
        let keys = Keys::of(shard);
        let reply: Vec<String> = named::due
            .run(&self.back, || {
                let names = vec![keys.live(), keys.fence(), keys.hold(), keys.heard()];
                (names, vec![i64::from(most).into()])
            })
            .await?;
        let number = |index: usize| {
            reply
                .get(index)
                .and_then(|word| word.parse::<i64>().ok())
                .ok_or_else(|| unexpected("due", "no number"))
        };
        let (now, fenced, held, next) = (number(0)?, number(1)? == 1, number(2)?, number(4)?);
        if fenced {
            // What came with the data of a former life is to be judged, and proves nothing.
            self.has_heard(shard, Millis(number(3)?));
        }
        let mut due = Due {
            fenced,
            held: Duration::from_millis(held.unsigned_abs()),
            next_in: match next {
                -1 => None,
                0 => Some(Duration::ZERO),
                at => Some(Duration::from_millis((at - now).unsigned_abs())),
            },
            ..Due::default()
        };
        for pair in reply[5..].chunks_exact(2) {
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
        let keys = Keys::of(shard);
        let claimed: u64 = named::claim
            .run(&self.back, || {
                let mut names = vec![keys.live(), keys.transitions(), keys.fence(), keys.hold()];
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
        let key = Keys::of(shard).live();
        let removal = self.back.call(&key, |client| {
            let (key, strays) = (key.clone(), strays.to_vec());
            async move { client.zrem::<(), _, _>(key, strays).await }
        });
        Ok(removal.await??)
    }

    /// Since when a shard's server has been heard (`lua/epoch.lua`).
    pub async fn epoch(&self, shard: u32) -> Result<Epoch> {
        let reply: Vec<i64> =
            named::epoch.run(&self.back, || (vec![Keys::of(shard).epoch()], vec![])).await?;
        let [now, since, begun] = reply[..] else { return Err(unexpected("epoch", "too little")) };
        Ok(Epoch { age: Duration::from_millis((now - since).unsigned_abs()), is_new: begun == 1 })
    }

    /// Declares offline those of `users` (of one shard, with SQL's `last_seen`) whom the live set does not know
    /// (`lua/reconcile.lua`). Returns how many, or `None` where this Redis has not been heard for a TTL yet.
    pub async fn reconcile(&self, shard: u32, users: &[(UserId, Option<Millis>)]) -> Result<Option<u64>> {
        let keys = Keys::of(shard);
        let declared: i64 = named::reconcile
            .run(&self.back, || {
                let mut args: Vec<Value> = vec![self.ttl_ms().into()];
                for (user, seen) in users {
                    args.push((*user).into());
                    args.push(seen.map_or_else(|| Value::from_static_str(""), |seen| seen.0.into()));
                }
                (vec![keys.live(), keys.transitions(), keys.epoch()], args)
            })
            .await?;
        Ok(u64::try_from(declared).ok())
    }

    /// Says again of those of `users` (of one shard) who are present what their status is (`lua/affirm.lua`); returns
    /// how many.
    pub async fn affirm(&self, shard: u32, users: &[UserId]) -> Result<u64> {
        let keys = Keys::of(shard);
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
    pub async fn seen(
        &self,
        shard: u32,
        from: Option<SeenPlace>,
        most: u32,
    ) -> Result<(Vec<(UserId, Millis)>, Option<SeenPlace>)> {
        let reply: Vec<i64> = named::seen
            .run(&self.back, || {
                let bounds = match from {
                    Some(place) => [place.after.0.into(), place.until.0.into()],
                    None => [Value::from_static_str(""), Value::from_static_str("+inf")],
                };
                let [after, until] = bounds;
                (vec![Keys::of(shard).live()], vec![after, until, i64::from(most).into()])
            })
            .await?;
        let (now, pairs) = reply.split_first().ok_or_else(|| unexpected("seen", "nothing"))?;
        let until = from.map_or(Millis(now + self.ttl_ms()), |place| place.until);
        let last = pairs.chunks_exact(2).last().map(|pair| Millis(pair[1]));
        let full = pairs.len() / 2 >= most as usize;
        let seen = pairs.chunks_exact(2).filter(|pair| pair[0] > 0);
        let users = seen.map(|pair| (pair[0], Millis(pair[1] - self.ttl_ms()))).collect();
        Ok((users, last.filter(|last| full && *last < until).map(|after| SeenPlace { after, until })))
    }

    /// Asks for the turn to write `last_seen` behind, which lasts for `span`: one process of many gets it.
    pub async fn flush_turn(&self, shard: u32, span: Duration) -> Result<bool> {
        let span_ms = i64::try_from(span.as_millis()).unwrap_or(i64::MAX);
        let key = Keys::of(shard).flush_turn();
        let turn = self.back.call(&key, |client| {
            let (key, name) = (key.clone(), self.options.instance.clone());
            let (bound, only_first) = (Some(Expiration::PX(span_ms)), Some(SetOptions::NX));
            async move { client.set::<Option<String>, _, _>(key, name, bound, only_first, false).await }
        });
        Ok(turn.await??.is_some())
    }
}
