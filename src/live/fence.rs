//! The fence (invariant 6): who may not be present and which sessions have ended, in Redis, where every instance's next
//! heartbeat meets it.
//!
//! The string `presence:{S}:fence` says how far into SQL's log of account changes the fence has got, and counts its
//! own moves: whoever asks SQL notes it before, and `lua/block.lua` takes the answer only if nobody moved it
//! meanwhile. Where it is missing Redis has lost its data, and nobody comes online until the fence stands again.

use fred::interfaces::{KeysInterface, SetsInterface};
use fred::types::Value;

use super::Result;
use super::keys::Keys;
use super::live_set::LiveSet;
use super::scripts::named;
use crate::model::{SessionId, UserId};

/// The state of a shard's fence: `<cursor> <moves>`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fence {
    /// How far into the log of account changes it has got; SQL's word, without spaces.
    pub cursor: String,
    /// How often it was moved.
    pub moves: u64,
}

/// What SQL says of an account.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It may not be present: out it goes, with a transition.
    Block,
    /// It may be present.
    Allow,
    /// There is no such account: out it goes, and there is nobody to record it for.
    Gone,
}

impl Fence {
    /// The fence after one more move, at `cursor`.
    #[must_use]
    pub fn moved_to(&self, cursor: &str) -> Self {
        Self { cursor: cursor.to_string(), moves: self.moves.wrapping_add(1) }
    }

    fn to_value(&self) -> String {
        format!("{} {}", self.cursor, self.moves)
    }

    fn parse(value: &str) -> Option<Self> {
        let (cursor, moves) = value.split_once(' ')?;
        Some(Self { cursor: cursor.to_string(), moves: moves.parse().ok()? })
    }
}

impl Verdict {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Block => "block",
            Self::Allow => "allow",
            Self::Gone => "gone",
        }
    }
}

impl LiveSet {
    /// The state of a shard's fence; `None` where there is none.
    pub async fn fence(&self, shard: u32) -> Result<Option<Fence>> {
        let get = self.back.client().get::<Option<String>, _>(Keys::of(shard).fence());
        Ok(self.back.run(get).await??.as_deref().and_then(Fence::parse))
    }

    /// Brings fence and live set of a shard in line with SQL's verdicts (`lua/block.lua`).
    ///
    /// `from` is the fence as it stood before SQL was asked (`None` for a rebuild, which checks nothing), `to` what it
    /// becomes (`None` to leave it). Returns how many users were taken offline, or `None` where the fence has moved
    /// since.
    pub async fn block(
        &self,
        shard: u32,
        from: Option<&Fence>,
        to: Option<&Fence>,
        verdicts: &[(UserId, Verdict)],
    ) -> Result<Option<u64>> {
        let keys = Keys::of(shard);
        let evicted: i64 = named::block
            .run(&self.back, || {
                let mut names = vec![keys.live(), keys.transitions(), keys.blocked(), keys.fence()];
                names.extend(verdicts.iter().map(|(user, _)| keys.user(*user)));
                let state =
                    |fence: Option<&Fence>| Value::from(fence.map(Fence::to_value).unwrap_or_default());
                let mut args = vec![self.ttl_ms().into(), state(from), state(to)];
                for (user, verdict) in verdicts {
                    args.extend([(*user).into(), Value::from_static_str(verdict.as_str())]);
                }
                (names, args)
            })
            .await?;
        Ok(u64::try_from(evicted).ok())
    }

    /// Everyone whom a shard's fence holds; for a rebuild only.
    pub async fn blocked_members(&self, shard: u32) -> Result<Vec<UserId>> {
        let members = self.back.client().smembers::<Vec<String>, _>(Keys::of(shard).blocked());
        Ok(self.back.run(members).await??.iter().filter_map(|member| member.parse().ok()).collect())
    }

    /// Whether the fence holds this account, or the session has ended: what a request that is no activity asks.
    pub async fn refuses(&self, user: UserId, sid: Option<&SessionId>) -> Result<(bool, bool)> {
        let keys = Keys::of(self.shard_of(user));
        let blocked = self.front.client().sismember::<bool, _, _>(keys.blocked(), user);
        let ended = self.front.client().exists::<bool, _>(keys.ended(sid));
        let (blocked, ended) =
            tokio::join!(Box::pin(self.front.run(blocked)), Box::pin(self.front.run(ended)));
        Ok((blocked??, ended?? && sid.is_some()))
    }

    /// Marks sessions as ended that SQL knows to have ended; for a rebuild.
    pub async fn mark_ended(&self, sessions: &[(UserId, SessionId)]) -> Result<()> {
        for (user, sid) in sessions {
            self.leave(*user, sid).await?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fence_is_read_back_as_it_was_written() {
        let fence = Fence { cursor: "731".into(), moves: 4 };
        assert_eq!(Fence::parse(&fence.to_value()), Some(fence.clone()));
        assert_eq!(fence.moved_to("732"), Fence { cursor: "732".into(), moves: 5 });
        assert_eq!(Fence::parse("nonsense"), None);
    }
}
