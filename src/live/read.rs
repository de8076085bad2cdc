//! Reading the live set: whose presence it is, a page of them, how many, and what SQL may not know yet.

use super::keys::Keys;
use super::live_set::{LiveSet, split_now, unexpected};
use super::scripts::named;
use super::{LiveError, Result};
use crate::model::{Millis, OnlineStatus, Page, Presence, UserId, account::pick};

/// How many users one call of a reading script takes: some 2 ms of Redis's time.
const READ_CHUNK: usize = 1_000;

/// A page of the live set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OnlinePage {
    /// How many users are present in all.
    pub count: i64,
    /// Users on the page, the latest deadline first.
    pub users: Vec<UserId>,
}

impl LiveSet {
    /// The presence of each user, in their order.
    pub async fn read(&self, users: &[UserId]) -> Result<Vec<Option<Presence>>> {
        let found = self.read_what_answers(users).await?;
        found.into_iter().collect::<Option<_>>().ok_or(LiveError::Down)
    }

    /// The presence of each user (`lua/read.lua`), in their order; `None` for those of shards that cannot be asked.
    ///
    /// # Errors
    /// Where none of them can be asked.
    pub async fn read_what_answers(&self, users: &[UserId]) -> Result<Vec<Option<Option<Presence>>>> {
        let mut found = vec![None; users.len()];
        let mut by_shard: Vec<Vec<usize>> = vec![Vec::new(); self.options.shards as usize];
        for (index, user) in users.iter().enumerate() {
            by_shard[self.shard_of(*user) as usize].push(index);
        }
        let calls = by_shard.iter().zip(self.shards()).flat_map(|(indices, shard)| {
            indices.chunks(READ_CHUNK).map(move |chunk| async move {
                let keys = Keys::of(shard);
                let reply: Vec<i64> = named::read
                    .run(&self.front, || {
                        (chunk.iter().map(|index| keys.user(users[*index])).collect(), vec![])
                    })
                    .await?;
                let (_, pairs) = split_now(&reply, "read")?;
                let presences = pairs.chunks_exact(2).map(|pair| match pair[0] {
                    0 => Ok(None),
                    1 => Ok(Some(Presence { status: OnlineStatus::Online, last_seen: Millis(pair[1]) })),
                    2 => Ok(Some(Presence { status: OnlineStatus::Away, last_seen: Millis(pair[1]) })),
                    other => Err(unexpected("read", other)),
                });
                Ok::<_, LiveError>((chunk, presences.collect::<Result<Vec<_>>>()?))
            })
        });
        let (mut answered, mut failed) = (false, None);
        for answer in futures_util::future::join_all(calls).await {
            match answer {
                Ok((chunk, presences)) => {
                    answered = true;
                    for (index, presence) in chunk.iter().zip(presences) {
                        found[*index] = Some(presence);
                    }
                }
                Err(error) => failed = Some(error),
            }
        }
        failed.filter(|_| !answered).map_or(Ok(found), Err)
    }

    /// A page of who is present, most recently seen first (`lua/online.lua`). With several shards each gives its own
    /// beginning up to the page's end, and the page is cut from them merged.
    pub async fn online(&self, page: Page) -> Result<OnlinePage> {
        let one = self.options.shards == 1;
        if !one && page.number > 1 {
            // Each shard would be asked for all up to the page's end: not for one past the end.
            let count = self.online_count().await?;
            if page.offset() >= count {
                return Ok(OnlinePage { count, users: vec![] });
            }
        }
        let (offset, count) = if one {
            (page.offset(), i64::from(page.size))
        } else {
            (0, page.offset().saturating_add(i64::from(page.size)))
        };
        let (total, mut entries) = self.online_range(offset, count).await?;
        entries.sort_unstable_by(|a, b| b.1.cmp(&a.1).then(b.0.cmp(&a.0)));
        let skip = if one { 0 } else { usize::try_from(page.offset()).unwrap_or(usize::MAX) };
        let users = entries.into_iter().skip(skip).take(page.size as usize).map(|(user, _)| user).collect();
        Ok(OnlinePage { count: total, users })
    }

    /// How many users are present: O(log n) in Redis.
    pub async fn online_count(&self) -> Result<i64> {
        Ok(self.online_range(0, 0).await?.0)
    }

    async fn online_range(&self, offset: i64, count: i64) -> Result<(i64, Vec<(UserId, i64)>)> {
        let calls = self.shards().map(|shard| async move {
            named::online
                .run::<Vec<i64>>(&self.front, || {
                    (vec![Keys::of(shard).live()], vec![offset.into(), count.into()])
                })
                .await
        });
        let (mut total, mut entries) = (0, Vec::new());
        for reply in futures_util::future::try_join_all(calls).await? {
            let (in_shard, pairs) = reply.split_first().ok_or_else(|| unexpected("online", "nothing"))?;
            total += in_shard;
            entries.extend(pairs.chunks_exact(2).filter(|pair| pair[0] > 0).map(|pair| (pair[0], pair[1])));
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
        let mut latest = std::collections::HashMap::new();
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
