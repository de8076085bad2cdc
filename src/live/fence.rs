//! The fence (invariant 6): who may not be present and which sessions have ended, in Redis, where every instance's next
//! heartbeat meets it.
//!
//! `presence:{S}:fence` says how far into SQL's log of account changes `blocked` is complete. `presence:{S}:moves` counts
//! what `blocked` was told: whoever asks SQL notes it before, and `lua/block.lua` takes the answer only if nobody else
//! told anything meanwhile. A fence stands in the life of the server in which it was raised. Where none stands Redis was
//! restarted or has lost data: nobody becomes newly present and no deadline is claimed until an instance has compared Redis
//! with SQL. The same holds where one of the keys that belong together (`blocked`, `ended`, `live`, `transitions`, `fence`)
//! was evicted or deleted (invariant 13). What is whole is taken over; otherwise the fence is built anew, and where later data are known to
//! have been there the deadlines wait for a TTL, for they may have been overtaken.

use std::collections::BTreeMap;
use std::time::Duration;

use fred::interfaces::{KeysInterface, SetsInterface};
use fred::types::Value;

use super::Result;
use super::live_set::{LiveSet, unexpected};
use super::scripts::named;
use super::stream::GROUP;
use crate::model::{Millis, SessionId, StreamId, UserId};

/// How long a builder may be silent before another begins anew.
const BUILDING_MS: i64 = 2_000;
/// Sessions ended in one call: some 2 ms of Redis's time.
const AT_ONCE: usize = 256;

/// The state of a shard's fence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fence {
    /// How far into the log of account changes it has got, in SQL's word; `None` where there is no fence that stands.
    pub cursor: Option<String>,
    /// A fence that came with the data of a former life of the server, and does not stand.
    pub former: Option<FormerFence>,
    /// What [`LiveSet::block`] must be given to be believed; empty where Redis holds none.
    pub moves: String,
    /// The latest instant, as Redis's data tell it, at which heartbeats were taken under a fence that stood, ms; 0 for never. What
    /// a server took since it came back with older data is not in it.
    pub heard: Millis,
    /// The instant of the newest id that the stream has given; 0 for none.
    pub newest_entry: Millis,
    /// Whether the shard had a fence, in whatever life, and has lost the live set or the stream since.
    pub is_damaged: bool,
    /// Whether data were lost less than a TTL ago, so that no deadline is claimed.
    pub is_on_hold: bool,
}

/// A fence of a former life.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FormerFence {
    /// How far into the log of account changes it had got.
    pub cursor: String,
    /// Whether the data are known to be as they were: this process saw nothing later than what they hold, and it saw
    /// something.
    pub is_whole: bool,
    value: String,
}

/// What is known of data that Redis has lost, when its fence is raised again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Loss {
    /// For how long no deadline is claimed from now on; zero where no heartbeat was lost.
    pub hold: Duration,
    /// The last moment at which the lost data are known to have served; 0 where none were lost.
    pub served_until: Millis,
    /// The newest stream id that SQL holds, of whatever shard: the ids go on above it.
    pub newest_in_sql: Option<StreamId>,
}

/// What [`LiveSet::check`] found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Checked {
    /// Account and session are good.
    Good,
    /// The account may not be present.
    Blocked,
    /// The session has ended.
    SessionEnded,
    /// Redis was restarted or has lost data, and cannot tell before its fence is raised again.
    Unfenced,
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
    /// The state of a shard's fence (`lua/fence.lua`).
    pub async fn fence(&self, shard: u32) -> Result<Fence> {
        let keys = self.keys(shard);
        let reply: [String; 7] = named::fence
            .run::<Vec<String>>(&self.back, || {
                let mut names = keys.of_a_fence().to_vec();
                names.extend([keys.moves(), keys.heard(), keys.hold()]);
                (names, vec![])
            })
            .await?
            .try_into()
            .map_err(|_| unexpected("fence", "its length"))?;
        let [cursor, former, moves, heard, newest, damaged, held] = reply;
        let instant = |text: &str| text.parse().map(Millis).map_err(|_| unexpected("fence", "no number"));
        let (heard, newest_entry) = (instant(&heard)?, instant(&newest)?);
        let known = self.heard(shard);
        let former = former.split_once(' ').map(|(_, cursor)| FormerFence {
            cursor: cursor.to_owned(),
            is_whole: known > Millis(0) && heard >= known,
            value: former.clone(),
        });
        Ok(Fence {
            cursor: Some(cursor).filter(|cursor| !cursor.is_empty()),
            former,
            moves,
            heard,
            newest_entry,
            is_damaged: damaged == "1",
            is_on_hold: held == "1",
        })
    }

    /// Whether a shard's Redis held later data than `fence` tells of, as far as this process saw it. The stream does not tell: a
    /// logout or a block may have been written to it since the server came back with older data.
    pub fn knows_of_later_data(&self, shard: u32, fence: &Fence) -> bool {
        self.heard(shard) > fence.heard
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
        let keys = self.keys(shard);
        let evicted: i64 = named::block
            .run(&self.back, || {
                let mut names = vec![keys.live(), keys.transitions(), keys.blocked(), keys.moves()];
                names.extend([keys.lent(), keys.hold(), keys.lost()]);
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

    /// Takes the building of a shard's fence upon this process, for some seconds at a time; `false` where another is at
    /// it. The token raises it, as long as that shard's Redis loses no data.
    pub async fn begin_fence(&self, shard: u32, token: &str) -> Result<bool> {
        self.take_turn(&self.keys(shard).building(), token, BUILDING_MS).await
    }

    /// Goes on building; `false` where one of the shards has lost data, or another has taken it over.
    pub async fn renew_fence(&self, shards: &[u32], token: &str) -> Result<bool> {
        for shard in shards {
            if self.builder(*shard).await?.as_deref() != Some(token) {
                return Ok(false);
            }
            let key = self.keys(*shard).building();
            let renewal = self.back.call(&key, |client| {
                let key = key.clone();
                async move { client.pexpire::<(), _>(key, BUILDING_MS, None).await }
            });
            renewal.await??;
        }
        Ok(true)
    }

    /// The building under this token is done, or given up: whoever comes next need not wait for it to lapse. Where a
    /// shard cannot be told, it lapses.
    pub async fn end_fence(&self, token: &str) -> Result<()> {
        let endings = self.shards().map(|shard| async move {
            if self.builder(shard).await?.as_deref() == Some(token) {
                let key = self.keys(shard).building();
                let deletion = self.back.call(&key, |client| {
                    let key = key.clone();
                    async move { client.del::<(), _>(key).await }
                });
                deletion.await??;
            }
            Ok(())
        });
        futures_util::future::join_all(endings).await.into_iter().collect()
    }

    /// Whether somebody is building a shard's fence.
    pub async fn fence_is_being_built(&self, shard: u32) -> Result<bool> {
        Ok(self.builder(shard).await?.is_some())
    }

    /// The token under which a shard's fence is being built.
    async fn builder(&self, shard: u32) -> Result<Option<String>> {
        let key = self.keys(shard).building();
        let held = self.back.call(&key, |client| {
            let key = key.clone();
            async move { client.get::<Option<String>, _>(key).await }
        });
        Ok(held.await??)
    }

    /// Raises a shard's fence at `cursor` (`lua/raise.lua`); whether it stands. It does not where Redis has lost data
    /// since [`Self::begin_fence`] gave the token.
    pub async fn raise_fence(&self, shard: u32, cursor: &str, token: &str, loss: &Loss) -> Result<bool> {
        self.set_fence(shard, ["build", cursor, token], loss).await
    }

    /// Notes what a shard has lost while its fence is still being built (`lua/raise.lua`), so that the next builder knows of it if
    /// this process ends. Returns whether the token still holds.
    pub async fn note_loss(&self, shard: u32, token: &str, loss: &Loss) -> Result<bool> {
        self.set_fence(shard, ["note", "", token], loss).await
    }

    /// Moves a shard's fence along the log, from one cursor to another; whether it was still there.
    pub async fn move_fence(&self, shard: u32, from: &str, to: &str) -> Result<bool> {
        self.set_fence(shard, ["move", to, from], &Loss::default()).await
    }

    /// Lets the fence of a former life stand in this one; whether it was still there.
    pub async fn adopt_fence(&self, shard: u32, former: &FormerFence) -> Result<bool> {
        self.set_fence(shard, ["adopt", &former.cursor, &former.value], &Loss::default()).await
    }

    async fn set_fence(&self, shard: u32, args: [&str; 3], loss: &Loss) -> Result<bool> {
        let keys = self.keys(shard);
        let hold_ms = i64::try_from(loss.hold.as_millis()).unwrap_or(i64::MAX);
        let done: i64 = named::raise
            .run(&self.back, || {
                let mut names = keys.of_a_fence().to_vec();
                names.extend([keys.building(), keys.hold(), keys.lost()]);
                let mut args = args.map(Value::from).to_vec();
                let floor = loss.newest_in_sql.map_or_else(String::new, |id| id.to_string());
                args.extend([hold_ms.into(), loss.served_until.0.into(), floor.into()]);
                args.push(Value::from_static_str(GROUP));
                (names, args)
            })
            .await?;
        Ok(done == 1)
    }

    /// A page of those whom a shard's fence holds, about `most` (`lua/blocked.lua`), and where to go on; `from` nowhere
    /// begins. Whoever is in it from the first page to the last is on one of them.
    pub async fn blocked_members(
        &self,
        shard: u32,
        from: Option<String>,
        most: u32,
    ) -> Result<(Vec<UserId>, Option<String>)> {
        let keys = self.keys(shard);
        let from = from.unwrap_or_else(|| "0".to_owned());
        let reply: Vec<String> = named::blocked
            .run(&self.back, || (vec![keys.blocked()], vec![from.as_str().into(), i64::from(most).into()]))
            .await?;
        let (next, members) = reply.split_first().ok_or_else(|| unexpected("blocked", "no place"))?;
        let next = Some(next.clone()).filter(|next| next != "0");
        // 0 is the mark of a whole set.
        let users = members.iter().filter_map(|member| member.parse().ok()).filter(|user| *user > 0);
        Ok((users.collect(), next))
    }

    /// Which of these users of one shard its fence holds, in their order.
    pub async fn are_blocked(&self, shard: u32, users: &[UserId]) -> Result<Vec<bool>> {
        if users.is_empty() {
            return Ok(Vec::new());
        }
        let key = self.keys(shard).blocked();
        let members = self.back.call(&key, |client| {
            let (key, users) = (key.clone(), users.to_vec());
            async move { client.smismember::<Vec<bool>, _, _>(key, users).await }
        });
        Ok(members.await??)
    }

    /// Whether account and session are still good, for a request that is no activity (`lua/check.lua`).
    pub async fn check(&self, user: UserId, sid: Option<&SessionId>) -> Result<Checked> {
        let keys = self.keys(self.shard_of(user));
        let reply: i64 = named::check
            .run(&self.front, || {
                let sid = sid.map_or("", SessionId::as_str);
                (keys.of_a_fence().to_vec(), vec![user.into(), sid.into()])
            })
            .await?;
        match reply {
            0 => Ok(Checked::Good),
            -1 => Ok(Checked::Blocked),
            -2 => Ok(Checked::SessionEnded),
            -3 => Ok(Checked::Unfenced),
            other => Err(unexpected("check", other)),
        }
    }

    /// Ends sessions that SQL knows to have ended, many in one call. Where a shard cannot be told, the others are all the same.
    pub async fn end_again(&self, sessions: &[(UserId, SessionId)]) -> Result<()> {
        let mut shards: BTreeMap<u32, Vec<(UserId, SessionId)>> = BTreeMap::new();
        for (user, sid) in sessions {
            shards.entry(self.shard_of(*user)).or_default().push((*user, sid.clone()));
        }
        let told = shards.iter().map(|(shard, sessions)| {
            Box::pin(async move {
                for chunk in sessions.chunks(AT_ONCE) {
                    self.leave_by(&self.back, *shard, chunk, Millis(0)).await?;
                }
                Ok(())
            })
        });
        futures_util::future::join_all(told).await.into_iter().collect()
    }
}
