//! Reading the live set for those who look: statuses, who is online, and what SQL does not know yet. Never writes.

use std::collections::HashMap;

use fred::types::Value;

use super::keys::Keys;
use super::live_set::{LiveSet, split_now, unexpected};
use super::scripts::named;
use super::{LiveError, Result};
use crate::model::account::pick;
use crate::model::{Millis, OnlineCursor, OnlineStatus, Place, Presence, UserId};

/// How many users one call of a reading script takes: some 2 ms of Redis's time.
const READ_CHUNK: usize = 1_000;

/// The presence of some users, and how many users are present in all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Presences {
    /// How many users are present, whoever was asked for; `None` where a shard could not be asked.
    pub count: Option<i64>,
    /// Of each user, in the order asked: `None` where the shard could not be asked, `Some(None)` where there is none.
    pub users: Vec<Option<Option<Presence>>>,
}

/// A page of the live set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OnlinePage {
    /// How many users are present in all.
    pub count: i64,
    /// Users on the page, the latest deadline first.
    pub users: Vec<UserId>,
    /// Where the next page begins; `None` at the end.
    pub next: Option<OnlineCursor>,
}

/// What a call of `lua/read.lua` said: how many are present in the shard, and the presence of each user.
type InShard = (i64, Vec<Option<Presence>>);

impl LiveSet {
    /// The presence of each user, in their order.
    pub async fn read(&self, users: &[UserId]) -> Result<Vec<Option<Presence>>> {
        let found = self.read_what_answers(users).await?;
        found.into_iter().collect::<Option<_>>().ok_or(LiveError::Down)
    }

    /// The presence of each user (`lua/read.lua`), in their order; `None` for those of shards that cannot be asked. A call a
    /// shard that holds any of them, up to a thousand users.
    ///
    /// # Errors
    /// Where none of them can be asked.
    pub async fn read_what_answers(&self, users: &[UserId]) -> Result<Vec<Option<Option<Presence>>>> {
        Ok(self.read_shards(users, false).await?.users)
    }

    /// As [`Self::read_what_answers`], with the number of all who are present: a call a shard, up to a thousand users.
    pub async fn read_and_count(&self, users: &[UserId]) -> Result<Presences> {
        self.read_shards(users, true).await
    }

    async fn read_shards(&self, users: &[UserId], all: bool) -> Result<Presences> {
        let mut by_shard: Vec<Vec<usize>> = vec![Vec::new(); self.options.shards as usize];
        for (index, user) in users.iter().enumerate() {
            by_shard[self.shard_of(*user) as usize].push(index);
        }
        let calls = by_shard.iter().zip(self.shards()).flat_map(|(indices, shard)| {
            let nobody: &[usize] = &[];
            let counts_alone = (all && indices.is_empty()).then_some(nobody);
            indices.chunks(READ_CHUNK).chain(counts_alone).enumerate().map(
                move |(number, chunk)| async move {
                    let read = self.read_in(shard, chunk.iter().map(|index| users[*index])).await?;
                    Ok::<_, LiveError>((number == 0, chunk, read))
                },
            )
        });
        let mut found = Presences { count: Some(0), users: vec![None; users.len()] };
        let (mut answered, mut failed) = (false, None);
        for answer in futures_util::future::join_all(calls).await {
            match answer {
                Ok((is_first, chunk, (count, presences))) => {
                    answered = true;
                    let count = if is_first { count } else { 0 };
                    found.count = found.count.map(|sum| sum + count);
                    for (index, presence) in chunk.iter().zip(presences) {
                        found.users[*index] = Some(presence);
                    }
                }
                Err(error) => (found.count, failed) = (None, Some(error)),
            }
        }
        failed.filter(|_| !answered).map_or(Ok(found), Err)
    }

    async fn read_in(&self, shard: u32, users: impl Iterator<Item = UserId> + Clone) -> Result<InShard> {
        let keys = Keys::of(shard);
        let reply: Vec<i64> = named::read
            .run(&self.front, || {
                let presences = users.clone().map(|user| keys.user(user));
                (std::iter::once(keys.live()).chain(presences).collect(), vec![])
            })
            .await?;
        let (_, rest) = split_now(&reply, "read")?;
        let (count, pairs) = rest.split_first().ok_or_else(|| unexpected("read", "no count"))?;
        let presences = pairs.chunks_exact(2).map(|pair| match pair[0] {
            0 => Ok(None),
            1 => Ok(Some(Presence { status: OnlineStatus::Online, last_seen: Millis(pair[1]) })),
            2 => Ok(Some(Presence { status: OnlineStatus::Away, last_seen: Millis(pair[1]) })),
            other => Err(unexpected("read", other)),
        });
        Ok((*count, presences.collect::<Result<Vec<_>>>()?))
    }

    /// A page of who is present, most recently seen first (`lua/online.lua`): a call a shard.
    ///
    /// Behind a cursor each shard gives as many as the page holds, and the page is cut from them merged. For a page by its
    /// number each of *several* shards gives its own beginning up to the page's end: that costs as much as the page lies
    /// deep.
    pub async fn online(&self, place: impl Into<Place<OnlineCursor>>) -> Result<OnlinePage> {
        let place = place.into();
        // One more tells whether there is a next page.
        let wanted = i64::from(place.size()) + 1;
        let one = self.options.shards == 1;
        let (range, skip) = match place {
            Place::After(cursor, _) => ((0, wanted, Some(cursor)), 0),
            Place::Page(page) if one => ((page.offset(), wanted, None), 0),
            Place::Page(page) => {
                if page.number > 1 {
                    // Each shard would be asked for all up to the page's end: not for one past the end.
                    let count = self.online_count().await?;
                    if page.offset() >= count {
                        return Ok(OnlinePage { count, users: vec![], next: None });
                    }
                }
                ((0, page.offset().saturating_add(wanted), None), page.offset())
            }
        };
        let (count, mut entries) = self.online_range(range).await?;
        if !one {
            // As one sorted set would have it: members are compared as text.
            entries.sort_by_cached_key(|(user, deadline)| std::cmp::Reverse((*deadline, user.to_string())));
            entries.drain(..usize::try_from(skip).unwrap_or(usize::MAX).min(entries.len()));
        }
        let has_more = entries.len() > place.size() as usize;
        entries.truncate(place.size() as usize);
        // A member that is no user id takes a place, is nobody, and no place to go on from.
        entries.retain(|(user, _)| *user > 0);
        let last = entries.last().filter(|_| has_more);
        let next = last.map(|(user, deadline)| OnlineCursor { deadline: Millis(*deadline), user: *user });
        let users = entries.into_iter().map(|(user, _)| user).collect();
        Ok(OnlinePage { count, users, next })
    }

    /// How many users are present: O(log n) in Redis.
    pub async fn online_count(&self) -> Result<i64> {
        Ok(self.online_range((0, 0, None)).await?.0)
    }

    /// From an offset, or behind a cursor, so many of each shard.
    async fn online_range(
        &self,
        (offset, count, after): (i64, i64, Option<OnlineCursor>),
    ) -> Result<(i64, Vec<(UserId, i64)>)> {
        let calls = self.shards().map(|shard| async move {
            named::online
                .run::<Vec<i64>>(&self.front, || {
                    let [deadline, user] = match after {
                        Some(cursor) => [cursor.deadline.0.into(), cursor.user.into()],
                        None => [Value::from_static_str(""), Value::from_static_str("")],
                    };
                    (vec![Keys::of(shard).live()], vec![offset.into(), count.into(), deadline, user])
                })
                .await
        });
        let (mut total, mut entries) = (0, Vec::new());
        for reply in futures_util::future::try_join_all(calls).await? {
            let (in_shard, pairs) = reply.split_first().ok_or_else(|| unexpected("online", "nothing"))?;
            total += in_shard;
            entries.extend(pairs.chunks_exact(2).map(|pair| (pair[0], pair[1])));
        }
        Ok((total, entries))
    }

    /// The users of whom SQL's mirror may not know the latest yet, each once (`lua/unsettled.lua`), `most` of each
    /// kind and shard.
    pub async fn unsettled(&self, most: u32) -> Result<Vec<(UserId, OnlineStatus)>> {
        let calls = self.shards().map(|shard| async move {
            let keys = Keys::of(shard);
            named::unsettled
                .run::<Vec<String>>(&self.front, || {
                    (vec![keys.live(), keys.transitions()], vec![i64::from(most).into()])
                })
                .await
        });
        let mut latest = HashMap::new();
        for reply in futures_util::future::try_join_all(calls).await? {
            for pair in reply.chunks_exact(2) {
                let status = pick(&pair[1], &OnlineStatus::ALL, OnlineStatus::as_str);
                if let (Ok(user), Ok(status)) = (pair[0].parse::<UserId>(), status) {
                    latest.insert(user, status);
                }
            }
        }
        Ok(latest.into_iter().collect())
    }
}
