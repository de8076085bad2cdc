//! The stream of transitions that SQL lacks, read through the consumer group `persist`.

use std::collections::HashMap;
use std::time::Duration;

use fred::interfaces::StreamsInterface;
use fred::types::{Key, Value};
use tokio::time::{Instant, sleep};

use super::live_set::{LiveSet, unexpected};
use super::scripts::named;
use super::{LiveError, Result};
use crate::model::{Millis, StreamId, Transition};

/// The consumer group of every persister.
pub(super) const GROUP: &str = "persist";
/// For how long another persister's turn is respected: a dead one's work is taken over after that.
const LEASE: Duration = Duration::from_secs(3);

/// How long a blocking read may wait for something to read.
pub(super) const BLOCK: Duration = Duration::from_secs(5);
/// Between two looks at streams that cannot be waited for: a connection waits at one server, for keys of one slot.
const LOOK: Duration = Duration::from_millis(100);

/// A persister that has not been heard for so long is gone; one that was only idle comes back with its next turn.
const GONE: Duration = Duration::from_hours(1);

/// What [`LiveSet::take`] gives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Turn {
    /// A batch: a prefix of what SQL lacks, in stream order. Empty where SQL lacks nothing.
    Mine(Work),
    /// Another persister is at it; ask again after this long.
    Others(Duration),
}

/// A batch of entries.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Work {
    /// The transitions, in stream order.
    pub transitions: Vec<Transition>,
    /// Ids of entries that are no transitions (written by someone else's hand): acknowledge them too.
    pub unreadable: Vec<String>,
    /// Redis's clock when it was taken.
    pub now: Millis,
}

impl LiveSet {
    /// Waits until some shard's stream holds an entry, in the shards of `passed` one that is newer than this; some seconds
    /// at most, and no longer than `most`. A mere wake-up: returns the shards that are worth a look.
    ///
    /// # Errors
    /// Where no shard can be asked. One that cannot be asked holds up no other, and is worth no look.
    pub async fn wait_for_transitions(
        &self,
        passed: &HashMap<u32, StreamId>,
        most: Duration,
    ) -> Result<Vec<u32>> {
        let most = most.clamp(Duration::from_millis(1), BLOCK);
        let Some(blocking) = &self.blocking else { return self.look_for_transitions(passed, most).await };
        let streams: Vec<Key> = self.shards().map(|shard| self.keys(shard).transitions()).collect();
        let ids: Vec<String> = self.shards().map(|shard| after(passed.get(&shard))).collect();
        let block = u64::try_from(most.as_millis()).unwrap_or(5_000);
        let read = blocking.call(&streams[0], |client| {
            let (streams, ids) = (streams.clone(), ids.clone());
            async move { client.xread::<Value, _, _>(Some(1), Some(block), streams, ids).await }
        });
        read.await??;
        Ok(self.shards().collect())
    }

    async fn look_for_transitions(
        &self,
        passed: &HashMap<u32, StreamId>,
        most: Duration,
    ) -> Result<Vec<u32>> {
        let until = Instant::now() + most;
        loop {
            let looks = self.ask_each(|shard| self.has_newer(shard, passed.get(&shard))).await;
            let (mut found, mut asked, mut trouble) = (Vec::new(), false, None);
            for (shard, has_newer) in looks {
                match has_newer {
                    Ok(false) => asked = true,
                    Ok(true) => found.push(shard),
                    Err(error) => trouble = Some(error),
                }
            }
            match trouble {
                Some(error) if !asked && found.is_empty() => return Err(error),
                _ if !found.is_empty() || Instant::now() >= until => return Ok(found),
                _ => sleep(LOOK).await,
            }
        }
    }

    /// Whether a shard's stream holds an entry, or one that is newer than that.
    async fn has_newer(&self, shard: u32, passed: Option<&StreamId>) -> Result<bool> {
        let Some(passed) = passed else { return Ok(self.waiting(shard).await? > 0) };
        let (key, from) = (self.keys(shard).transitions(), format!("({passed}"));
        let newer = self.back.call(&key, |client| {
            let (key, from) = (key.clone(), from.clone());
            async move { client.xrange::<Value, _, _, _>(key, from, "+", Some(1)).await }
        });
        Ok(newer.await??.array_len().unwrap_or(0) > 0)
    }

    /// How many transitions of a shard SQL lacks.
    async fn waiting(&self, shard: u32) -> Result<u64> {
        let key = self.keys(shard).transitions();
        let length = self.back.call(&key, |client| {
            let key = key.clone();
            async move { client.xlen::<u64, _>(key).await }
        });
        Ok(length.await??)
    }

    /// Takes the next batch of a shard (`lua/take.lua`), at most `most` entries.
    pub async fn take(&self, shard: u32, most: u32) -> Result<Turn> {
        self.take_after(shard, None, most).await
    }

    /// [`Self::take`], which goes on after an entry that this turn has taken already: so that a large batch keeps Redis
    /// from heartbeats for no longer than a small one.
    pub async fn take_after(&self, shard: u32, after: Option<StreamId>, most: u32) -> Result<Turn> {
        let lease_ms = i64::try_from(LEASE.as_millis()).unwrap_or(3_000);
        let reply: Vec<Value> = named::take
            .run(&self.back, || {
                let args = vec![
                    Value::from_static_str(GROUP),
                    self.options.instance.as_str().into(),
                    i64::from(most).into(),
                    lease_ms.into(),
                    after.map_or_else(|| Value::from_static_str(""), |id| id.to_string().into()),
                ];
                (vec![self.keys(shard).transitions()], args)
            })
            .await?;
        let mut reply = reply.into_iter();
        let (Some(now), Some(wait_ms)) =
            (reply.next().and_then(|value| value.as_i64()), reply.next().and_then(|value| value.as_u64()))
        else {
            return Err(unexpected("take", "too little"));
        };
        if wait_ms > 0 {
            return Ok(Turn::Others(Duration::from_millis(wait_ms)));
        }
        let mut work = Work { now: Millis(now), ..Work::default() };
        for entry in reply {
            let (id, fields): (String, Vec<String>) = entry.convert().map_err(LiveError::from)?;
            match parse(&id, &fields) {
                Some(transition) => work.transitions.push(transition),
                None => work.unreadable.push(id),
            }
        }
        Ok(Turn::Mine(work))
    }

    /// Lets go of entries that SQL has committed (`lua/ack.lua`).
    pub async fn ack(&self, shard: u32, work: &Work) -> Result<()> {
        let _: i64 = named::ack
            .run(&self.back, || {
                let mut ids: Vec<StreamId> =
                    work.transitions.iter().map(|transition| transition.id).collect();
                ids.extend(work.unreadable.iter().filter_map(|id| id.parse::<StreamId>().ok()));
                ids.sort_unstable();
                let mut args = vec![Value::from_static_str(GROUP)];
                args.extend(ids.iter().map(|id| Value::from(id.to_string())));
                (vec![self.keys(shard).transitions()], args)
            })
            .await?;
        Ok(())
    }

    /// How many transitions SQL lacks, over all shards.
    pub async fn backlog(&self) -> Result<u64> {
        let mut total = 0;
        for shard in self.shards() {
            total += self.waiting(shard).await?;
        }
        Ok(total)
    }

    /// Takes this process's name off the group, or hands over what it leaves in hand (`lua/resign.lua`); for a clean
    /// shutdown.
    pub async fn resign(&self) -> Result<()> {
        self.take_names_off(self.options.instance.as_str()).await
    }

    /// Takes the names of persisters off the group that have not been heard for an hour: processes that were killed.
    pub async fn forget_the_gone(&self) -> Result<()> {
        self.take_names_off("").await
    }

    async fn take_names_off(&self, consumer: &str) -> Result<()> {
        let gone_ms = i64::try_from(GONE.as_millis()).unwrap_or(i64::MAX);
        let calls = self.shards().map(|shard| async move {
            named::resign
                .run::<i64>(&self.back, || {
                    let args = vec![Value::from_static_str(GROUP), consumer.into(), gone_ms.into()];
                    (vec![self.keys(shard).transitions()], args)
                })
                .await
        });
        // All of them, whatever becomes of one.
        futures_util::future::join_all(calls).await.into_iter().try_for_each(|left| left.map(drop))
    }
}

/// Where a blocking read goes on.
fn after(passed: Option<&StreamId>) -> String {
    passed.map_or_else(|| "0-0".to_owned(), StreamId::to_string)
}

impl Work {
    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.transitions.is_empty() && self.unreadable.is_empty()
    }

    /// The last entry in stream order.
    pub fn last(&self) -> Option<StreamId> {
        let unreadable = self.unreadable.iter().filter_map(|id| id.parse::<StreamId>().ok()).max();
        unreadable.max(self.transitions.last().map(|transition| transition.id))
    }

    /// Adds what was taken after it.
    pub fn extend(&mut self, more: Self) {
        self.transitions.extend(more.transitions);
        self.unreadable.extend(more.unreadable);
        self.now = self.now.max(more.now);
    }

    /// How many entries.
    pub fn len(&self) -> usize {
        self.transitions.len() + self.unreadable.len()
    }
}

/// The last instant that both databases can hold: the end of the year 9999.
const END_OF_TIME: i64 = 253_402_300_799_999;

/// `None` for what no script of ours writes: one odd entry must not keep a batch from being committed.
pub(super) fn parse(id: &str, fields: &[String]) -> Option<Transition> {
    let instant = |text: &str| text.parse().ok().filter(|ms| (0..=END_OF_TIME).contains(ms)).map(Millis);
    let field = |name: &str| fields.chunks_exact(2).find(|pair| pair[0] == name).map(|pair| pair[1].as_str());
    Some(Transition {
        id: id.parse::<StreamId>().ok()?,
        user: field("user")?.parse().ok().filter(|user| *user > 0)?,
        to: field("to")?.parse().ok()?,
        reason: field("reason")?.parse().ok()?,
        at: instant(field("at")?)?,
        last_seen: field("seen").and_then(instant),
    })
}
