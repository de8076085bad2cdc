//! Reading the live set for those who look: statuses, who is online, and what SQL does not know yet. Never writes.

use std::collections::HashMap;

use fred::types::Value;

use super::live_set::{LiveSet, split_now, unexpected};
use super::scripts::named;
use super::{LiveError, Result};
use crate::model::{Millis, OnlineCursor, OnlineStatus, Place, Presence, UserId};

/// How many users one call of a reading script takes: some 2 ms of Redis's time.
const READ_CHUNK: usize = 1_000;

/// Entries in one call of `lua/unsettled.lua`: some 2 ms of Redis's time.
const UNSETTLED_PAGE: u32 = 2_000;

/// The presence of some users, and how many users are present in all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Presences {
    /// How many users are present, whoever was asked for; `None` where a shard could not be asked.
    pub count: Option<i64>,
    /// Of each user, in the order asked.
    pub users: Vec<InShard>,
    /// Whether some shard has lost its data lately, so that `count` lacks users who have not been heard since.
    pub settles: bool,
}

/// What Redis knows of a user.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InShard {
    /// The shard could not be asked.
    Silent,
    /// The user is not present, but the shard has lost its data lately and waits for heartbeats: the user may be.
    Unheard {
        /// Redis's time.
        now: Millis,
    },
    /// The user is present, or is not, at this instant of Redis.
    Known {
        /// Redis's time.
        now: Millis,
        /// The presence.
        presence: Option<Presence>,
    },
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
    /// As in [`Presences::settles`].
    pub settles: bool,
}

/// What a call of `lua/read.lua` said.
struct Reply {
    count: i64,
    settles: bool,
    users: Vec<InShard>,
}

impl LiveSet {
    /// The presence of each user as Redis has it, in their order.
    ///
    /// # Errors
    /// Where one of the shards cannot be asked.
    pub async fn read(&self, users: &[UserId]) -> Result<Vec<Option<Presence>>> {
        let found = self.read_what_answers(users).await?;
        let known = found.into_iter().map(|user| match user {
            InShard::Silent => Err(LiveError::Down),
            InShard::Unheard { .. } => Ok(None),
            InShard::Known { presence, .. } => Ok(presence),
        });
        known.collect()
    }

    /// What Redis knows of each user (`lua/read.lua`), in their order. A call a shard that holds any of them, up to a
    /// thousand users.
    ///
    /// # Errors
    /// Where none of the shards can be asked.
    pub async fn read_what_answers(&self, users: &[UserId]) -> Result<Vec<InShard>> {
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
        let mut found =
            Presences { count: Some(0), users: vec![InShard::Silent; users.len()], settles: false };
        let (mut answered, mut failed) = (false, None);
        for answer in futures_util::future::join_all(calls).await {
            match answer {
                Ok((is_first, chunk, reply)) => {
                    answered = true;
                    let count = if is_first { reply.count } else { 0 };
                    found.count = found.count.map(|sum| sum + count);
                    found.settles |= reply.settles;
                    for (index, user) in chunk.iter().zip(reply.users) {
                        found.users[*index] = user;
                    }
                }
                Err(error) => (found.count, failed) = (None, Some(error)),
            }
        }
        failed.filter(|_| !answered).map_or(Ok(found), Err)
    }

    async fn read_in(&self, shard: u32, users: impl Iterator<Item = UserId> + Clone) -> Result<Reply> {
        let keys = self.keys(shard);
        let reply: Vec<i64> = named::read
            .run(&self.front, || {
                let presences = users.clone().map(|user| keys.user(user));
                ([keys.live(), keys.hold()].into_iter().chain(presences).collect(), vec![])
            })
            .await?;
        let (now, rest) = split_now(&reply, "read")?;
        let [count, held_ms, pairs @ ..] = rest else { return Err(unexpected("read", "too little")) };
        let settles = *held_ms > 0;
        let users = pairs.chunks_exact(2).map(|pair| {
            let last_seen = Some(Millis(pair[1])).filter(|seen| seen.0 > 0);
            let status = match pair[0] {
                0 if settles => return Ok(InShard::Unheard { now }),
                0 => return Ok(InShard::Known { now, presence: None }),
                1 => OnlineStatus::Online,
                2 => OnlineStatus::Away,
                other => return Err(unexpected("read", other)),
            };
            Ok(InShard::Known { now, presence: Some(Presence { status, last_seen }) })
        });
        Ok(Reply { count: *count, settles, users: users.collect::<Result<_>>()? })
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
                    let (count, settles, _) = self.online_range((0, 0, None)).await?;
                    if page.offset() >= count {
                        return Ok(OnlinePage { count, users: vec![], next: None, settles });
                    }
                }
                ((0, page.offset().saturating_add(wanted), None), page.offset())
            }
        };
        let (count, settles, mut entries) = self.online_range(range).await?;
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
        Ok(OnlinePage { count, users, next, settles })
    }

    /// How many users are present: O(log n) in Redis.
    pub async fn online_count(&self) -> Result<i64> {
        Ok(self.online_range((0, 0, None)).await?.0)
    }

    /// From an offset, or behind a cursor, so many of each shard: how many are present, whether a shard has lost its data
    /// lately, and the entries.
    async fn online_range(
        &self,
        (offset, count, after): (i64, i64, Option<OnlineCursor>),
    ) -> Result<(i64, bool, Vec<(UserId, i64)>)> {
        let calls = self.shards().map(|shard| async move {
            let keys = self.keys(shard);
            named::online
                .run::<Vec<String>>(&self.front, || {
                    let [deadline, user] = match after {
                        Some(cursor) => [cursor.deadline.0.into(), cursor.user.into()],
                        None => [Value::from_static_str(""), Value::from_static_str("")],
                    };
                    (vec![keys.live(), keys.hold()], vec![offset.into(), count.into(), deadline, user])
                })
                .await
        });
        let (mut total, mut settles, mut entries) = (0, false, Vec::new());
        for reply in futures_util::future::try_join_all(calls).await? {
            // Ids are text all the way: as one of Lua's numbers an id above 2^53 would be another.
            let number = |word: &String| word.parse::<i64>().ok();
            let [in_shard, held_ms, pairs @ ..] = &reply[..] else {
                return Err(unexpected("online", "too little"));
            };
            total += number(in_shard).ok_or_else(|| unexpected("online", "no number"))?;
            settles |= number(held_ms).is_some_and(|held_ms| held_ms > 0);
            // 0: a member that is no user id.
            entries.extend(
                pairs
                    .chunks_exact(2)
                    .map(|pair| (number(&pair[0]).unwrap_or(0), number(&pair[1]).unwrap_or(0))),
            );
        }
        Ok((total, settles, entries))
    }

    /// The users of whom SQL's mirror may not know the latest yet, each once (`lua/unsettled.lua`); `None` where a shard names
    /// users more than `most` times.
    pub async fn unsettled(&self, most: usize) -> Result<Option<Vec<(UserId, OnlineStatus)>>> {
        let calls = self.shards().map(|shard| self.unsettled_in(shard, most));
        let mut latest = HashMap::new();
        for shard in futures_util::future::try_join_all(calls).await? {
            let Some(found) = shard else { return Ok(None) };
            latest.extend(found);
        }
        Ok(Some(latest.into_iter().collect()))
    }

    async fn unsettled_in(&self, shard: u32, most: usize) -> Result<Option<Vec<(UserId, OnlineStatus)>>> {
        let mut found = Vec::new();
        let Some(newest) = self.unsettled_pages(shard, "stream", String::new(), most, &mut found).await?
        else {
            return Ok(None);
        };
        let passed = self.unsettled_pages(shard, "passed", String::new(), most, &mut found).await?;
        // A deadline that was claimed meanwhile has become an entry behind those of the first walk.
        let behind = self.unsettled_pages(shard, "stream", newest, most, &mut found).await?;
        Ok(passed.and(behind).map(|_| found))
    }

    /// Adds what the pages of one kind name from behind `after` on. Returns where they end; `None` where there is too much.
    async fn unsettled_pages(
        &self,
        shard: u32,
        kind: &'static str,
        mut after: String,
        most: usize,
        found: &mut Vec<(UserId, OnlineStatus)>,
    ) -> Result<Option<String>> {
        let keys = self.keys(shard);
        loop {
            let reply: Vec<String> = named::unsettled
                .run(&self.front, || {
                    let args = vec![
                        Value::from_static_str(kind),
                        after.as_str().into(),
                        i64::from(UNSETTLED_PAGE).into(),
                    ];
                    (vec![keys.live(), keys.transitions()], args)
                })
                .await?;
            let [last, held, pairs @ ..] = &reply[..] else {
                return Err(unexpected("unsettled", "too little"));
            };
            found.extend(pairs.chunks_exact(2).filter_map(|pair| {
                Some((pair[0].parse::<UserId>().ok()?, pair[1].parse::<OnlineStatus>().ok()?))
            }));
            if found.len() > most {
                return Ok(None);
            }
            if !last.is_empty() {
                after.clone_from(last);
            }
            if held.parse::<u32>().is_ok_and(|held| held < UNSETTLED_PAGE) {
                return Ok(Some(after));
            }
        }
    }
}
