//! Heartbeats: the batches of the group commit as Redis takes them.
//!
//! Two scripts share the work. Nearly every heartbeat is that of somebody who is present and says nothing new; what it costs
//! is what the service costs. `lua/heartbeat.lua` does these and no more, and leaves the others to `lua/arrive.lua`, which
//! looks at everything again. Whatever happens between the two is as if it had happened before the heartbeat came.

use std::sync::atomic::Ordering;

use fred::types::{Key, Value};

use super::keys::Keys;
use super::live_set::{LiveSet, split_now, unexpected};
use super::packed::Packed;
use super::scripts::named;
use super::{LiveError, Result};
use crate::model::limit::Limit;
use crate::model::{HeartbeatWord, Millis, OnlineStatus, SessionId, SessionKey};

/// What a heartbeat's key, user and field are long together, bytes: a guess that saves growing.
const BYTES_EACH: usize = 96;

/// How often a user's heartbeats may change the status: each change is a row of history for ever, and an event for every
/// watcher.
const STATUS_CHANGES: Limit = Limit::per_minute(10);
/// By how much Redis's clock must have gone back to be taken for set back, ms.
const CLOCK_STEP_MS: i64 = 5_000;

/// One heartbeat of a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Heartbeat {
    /// Whose.
    pub who: SessionKey,
    /// What it says.
    pub word: HeartbeatWord,
}

/// What a heartbeat came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HeartbeatOutcome {
    /// It counts; the user's status after it.
    Present(OnlineStatus),
    /// The account may not be present.
    Blocked,
    /// The session has ended.
    SessionEnded,
    /// Redis has lost its data and the fence is not rebuilt yet; nobody may come online until it is.
    Unfenced,
}

impl LiveSet {
    /// Renews those of one shard's batch who are present and say nothing new (`lua/heartbeat.lua`): the instant of the
    /// batch, and in order the status of each who was renewed, or `None` for whoever is left to [`Self::arrive`].
    pub async fn heartbeat(
        &self,
        shard: u32,
        batch: &[Heartbeat],
    ) -> Result<(Millis, Vec<Option<OnlineStatus>>)> {
        let (now, heard, letters): (i64, i64, String) =
            named::heartbeat.run(&self.front, || steady(self.keys(shard), self.ttl_ms(), batch)).await?;
        self.has_heard(shard, Millis(heard));
        let renewed = letters.chars().map(|letter| match letter {
            'o' => Ok(Some(OnlineStatus::Online)),
            'a' => Ok(Some(OnlineStatus::Away)),
            '-' => Ok(None),
            other => Err(unexpected("heartbeat", other)),
        });
        let renewed: Vec<_> = renewed.collect::<Result<_>>()?;
        of_length(batch, renewed, "heartbeat").map(|renewed| (Millis(now), renewed))
    }

    /// Records heartbeats of one shard by which something changes, or may (`lua/arrive.lua`): the instant of the batch,
    /// and one outcome each, in order.
    pub async fn arrive(&self, shard: u32, batch: &[Heartbeat]) -> Result<(Millis, Vec<HeartbeatOutcome>)> {
        let reply: Vec<i64> = named::arrive.run(&self.front, || self.arrival(shard, batch)).await?;
        let (now, rest) = split_now(&reply, "arrive")?;
        let (heard, codes) = split_now(rest, "arrive")?;
        self.has_heard(shard, heard);
        let outcomes = codes.iter().map(|code| match code {
            1 => Ok(HeartbeatOutcome::Present(OnlineStatus::Online)),
            2 => Ok(HeartbeatOutcome::Present(OnlineStatus::Away)),
            -1 => Ok(HeartbeatOutcome::Blocked),
            -2 => Ok(HeartbeatOutcome::SessionEnded),
            -3 => Ok(HeartbeatOutcome::Unfenced),
            other => Err(unexpected("arrive", other)),
        });
        let outcomes: Vec<_> = outcomes.collect::<Result<_>>()?;
        of_length(batch, outcomes, "arrive").map(|outcomes| (now, outcomes))
    }

    /// Keys and arguments of `lua/arrive.lua`.
    fn arrival(&self, shard: u32, batch: &[Heartbeat]) -> (Vec<Key>, Vec<Value>) {
        let keys = self.keys(shard);
        let mut names = keys.of_a_fence().to_vec();
        names.extend([keys.hold(), keys.heard(), keys.lent(), keys.lost()]);
        let mut args: Vec<Value> = vec![
            self.ttl_ms().into(),
            i64::from(self.options.max_sessions).into(),
            STATUS_CHANGES.interval_us().into(),
            STATUS_CHANGES.tolerance_us().into(),
        ];
        for beat in batch {
            names.push(keys.user(beat.who.user));
            args.extend([
                beat.who.user.into(),
                Value::from(sid(beat)),
                Value::from_static_str(beat.word.as_str()),
            ]);
        }
        (names, args)
    }

    /// Notes that this shard's Redis knew of heartbeats at that instant.
    pub(super) fn has_heard(&self, shard: u32, at: Millis) {
        let heard = &self.heard[shard as usize];
        let known = heard.load(Ordering::Relaxed);
        // Written only where it changes: a few times a second. One that lies far ahead is from before Redis's clock was
        // set back.
        if known > at.0.saturating_add(CLOCK_STEP_MS) && at.0 > 0 {
            heard.store(at.0, Ordering::Relaxed);
        } else if known < at.0 {
            heard.fetch_max(at.0, Ordering::Relaxed);
        }
    }

    /// The latest instant at which this shard's Redis is known to have taken heartbeats; 0 for never.
    pub fn last_heard(&self, shard: u32) -> Millis {
        self.heard(shard)
    }

    /// The latest instant of which [`Self::has_heard`] was told.
    pub(super) fn heard(&self, shard: u32) -> Millis {
        Millis(self.heard[shard as usize].load(Ordering::Relaxed))
    }
}

/// Keys and arguments of `lua/heartbeat.lua`.
fn steady(keys: Keys<'_>, ttl_ms: i64, batch: &[Heartbeat]) -> (Vec<Key>, Vec<Value>) {
    let prefix = keys.user_prefix();
    let mut packed = Packed::with_capacity(2 + 3 * batch.len(), BYTES_EACH * batch.len());
    for beat in batch {
        packed.part(|text| {
            text.push_str(&prefix);
            text.push_str(itoa::Buffer::new().format(beat.who.user));
        });
    }
    packed.number(ttl_ms);
    packed.part(|text| text.extend(batch.iter().map(|beat| beat.word.letter())));
    for beat in batch {
        packed.number(beat.who.user);
        packed.part(|text| {
            text.push_str("s:");
            text.push_str(sid(beat));
        });
    }
    let (users, args) = packed.split(batch.len());
    let mut names = Vec::with_capacity(6 + users.len());
    names.extend(keys.of_a_fence());
    names.push(keys.heard());
    names.extend(users);
    (names, args)
}

fn sid(beat: &Heartbeat) -> &str {
    beat.who.sid.as_ref().map_or("", SessionId::as_str)
}

fn of_length<T>(
    batch: &[Heartbeat],
    answers: Vec<T>,
    script: &str,
) -> std::result::Result<Vec<T>, LiveError> {
    if answers.len() == batch.len() { Ok(answers) } else { Err(unexpected(script, "its length")) }
}
