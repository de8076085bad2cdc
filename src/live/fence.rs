//! The fence (invariant 6): who may not be present and which sessions have ended, in Redis, where every instance's next
//! heartbeat meets it.
//!
//! `presence:{S}:fence` says how far into SQL's log of account changes `blocked` is complete. `presence:{S}:moves` counts
//! what `blocked` was told: whoever asks SQL notes it before, and `lua/block.lua` takes the answer only if nobody else
//! told anything meanwhile. Where the fence is missing Redis has lost its data, and nobody comes online until it stands
//! again.

use fred::interfaces::{KeysInterface, SetsInterface};
use fred::types::{Expiration, SetOptions, Value};

use super::Result;
use super::keys::Keys;
use super::live_set::LiveSet;
use super::scripts::named;
use crate::model::{Millis, SessionId, UserId};

/// How long a builder may be silent before another begins anew.
const BUILDING_MS: i64 = 2_000;
/// Sessions ended in one go.
const AT_ONCE: usize = 256;

/// The state of a shard's fence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fence {
    /// How far into the log of account changes it has got, in SQL's word; `None` where there is no fence.
    pub cursor: Option<String>,
    /// What [`LiveSet::block`] must be given to be believed; empty where Redis holds none.
    pub moves: String,
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
    /// The state of a shard's fence.
    pub async fn fence(&self, shard: u32) -> Result<Fence> {
        let keys = Keys::of(shard);
        let get = self.back.client().mget::<Vec<Option<String>>, _>(vec![keys.fence(), keys.moves()]);
        let mut found = self.back.run(get).await??.into_iter();
        Ok(Fence { cursor: found.next().flatten(), moves: found.next().flatten().unwrap_or_default() })
    }

    /// Brings fence and live set of a shard in line with SQL's verdicts (`lua/block.lua`), where `moves` is as
    /// [`Self::fence`] told before SQL was asked. Returns how many users were taken offline, or `None` where somebody
    /// else was faster.
    pub async fn block(
        &self,
        shard: u32,
        moves: &str,
        verdicts: &[(UserId, Verdict)],
    ) -> Result<Option<u64>> {
        let keys = Keys::of(shard);
        let evicted: i64 = named::block
            .run(&self.back, || {
                let mut names = vec![keys.live(), keys.transitions(), keys.blocked(), keys.moves()];
                names.extend(verdicts.iter().map(|(user, _)| keys.user(*user)));
                let mut args: Vec<Value> = vec![self.ttl_ms().into(), moves.into()];
                for (user, verdict) in verdicts {
                    args.extend([(*user).into(), Value::from_static_str(verdict.as_str())]);
                }
                (names, args)
            })
            .await?;
        Ok(u64::try_from(evicted).ok())
    }

    /// Takes the building of all shards' fences upon this process, for some seconds at a time; `false` where another
    /// is at it. The token raises them, as long as Redis loses no data.
    pub async fn begin_fence(&self, token: &str) -> Result<bool> {
        let client = self.back.client();
        for shard in self.shards() {
            // The first shard decides, and its token is everyone's.
            let only_first = (shard == 0).then_some(SetOptions::NX);
            let bound = Some(Expiration::PX(BUILDING_MS));
            let key = Keys::of(shard).building();
            let set = client.set::<Option<String>, _, _>(key, token, bound, only_first, false);
            if self.back.run(set).await??.is_none() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Goes on building; `false` where Redis has lost data, or another has taken it over.
    pub async fn renew_fence(&self, token: &str) -> Result<bool> {
        let client = self.back.client();
        for shard in self.shards() {
            let key = Keys::of(shard).building();
            let held = self.back.run(client.get::<Option<String>, _>(key.clone())).await??;
            if held.as_deref() != Some(token) {
                return Ok(false);
            }
            self.back.run(client.pexpire::<(), _>(key, BUILDING_MS, None)).await??;
        }
        Ok(true)
    }

    /// The building is done.
    pub async fn end_fence(&self) -> Result<()> {
        for shard in self.shards() {
            self.back.run(self.back.client().del::<(), _>(Keys::of(shard).building())).await??;
        }
        Ok(())
    }

    /// Whether somebody is building.
    pub async fn fence_is_being_built(&self) -> Result<bool> {
        Ok(self.back.run(self.back.client().exists::<bool, _>(Keys::of(0).building())).await??)
    }

    /// Raises a shard's fence at `cursor` (`lua/fence.lua`); whether it stands. It does not where Redis has lost data
    /// since [`Self::begin_fence`] gave the token.
    pub async fn raise_fence(&self, shard: u32, cursor: &str, token: &str) -> Result<bool> {
        self.set_fence(shard, [cursor, "", token]).await
    }

    /// Moves a shard's fence along the log, from one cursor to another; whether it was still there.
    pub async fn move_fence(&self, shard: u32, from: &str, to: &str) -> Result<bool> {
        self.set_fence(shard, [to, from, ""]).await
    }

    async fn set_fence(&self, shard: u32, args: [&str; 3]) -> Result<bool> {
        let keys = Keys::of(shard);
        let done: i64 = named::fence
            .run(&self.back, || (vec![keys.fence(), keys.building()], args.map(Value::from).to_vec()))
            .await?;
        Ok(done == 1)
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

    /// Ends sessions that SQL knows to have ended, many at a time; for a rebuild.
    pub async fn end_again(&self, sessions: &[(UserId, SessionId)]) -> Result<()> {
        for chunk in sessions.chunks(AT_ONCE) {
            let leaving = chunk.iter().map(|(user, sid)| self.leave_by(&self.back, *user, sid, Millis(0)));
            futures_util::future::try_join_all(leaving).await?;
        }
        Ok(())
    }
}
