//! Mending: what contradicts itself in Redis is put right by a script that looks again before it touches anything.

use fred::types::Value;

use super::Result;
use super::live_set::{LiveSet, unexpected};
use super::scripts::named;
use crate::model::audit::LONGEST_TTL_MS;
use crate::model::{OnlineStatus, UserId};

/// Users in one call of `lua/mend.lua`.
const CHUNK: usize = 100;

/// A user to mend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mend {
    /// Whose presence.
    pub user: UserId,
    /// The status to go by where no session tells one; `Offline` counts as `Online`, for the deadline says otherwise.
    pub fallback: OnlineStatus,
    /// Whether SQL is to be told the status though it did not change: the mirror has another.
    pub tell: bool,
}

/// What mending a user came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mended {
    /// There was nothing to mend any more.
    Nothing,
    /// The presence key was made anew, to stand until the deadline.
    KeyMade,
    /// The key's expiry was set to the deadline.
    ExpirySet,
    /// The deadline was set: the user is back in the live set, or no longer there for ever.
    DeadlineSet,
    /// The status was set to what the sessions come to, and recorded.
    StatusSet,
    /// The key was dropped: no session in it was alive.
    KeyDropped,
    /// The status was recorded anew, for SQL.
    Told,
}

impl LiveSet {
    /// Puts right what Redis holds of these users of one shard (`lua/mend.lua`); one outcome each, in their order.
    pub async fn mend(&self, shard: u32, users: &[Mend]) -> Result<Vec<Mended>> {
        let keys = self.keys(shard);
        let mut outcomes = Vec::with_capacity(users.len());
        for chunk in users.chunks(CHUNK) {
            let reply: Vec<i64> = named::mend
                .run(&self.back, || {
                    let mut names = vec![keys.live(), keys.transitions(), keys.blocked(), keys.lent()];
                    names.extend(chunk.iter().map(|mend| keys.user(mend.user)));
                    let mut args: Vec<Value> = vec![self.ttl_ms().into(), LONGEST_TTL_MS.into()];
                    for mend in chunk {
                        let fallback = match mend.fallback {
                            OnlineStatus::Away => OnlineStatus::Away,
                            _ => OnlineStatus::Online,
                        };
                        let fallback = Value::from_static_str(fallback.as_str());
                        args.extend([mend.user.into(), fallback, i64::from(mend.tell).into()]);
                    }
                    (names, args)
                })
                .await?;
            if reply.len() != chunk.len() {
                return Err(unexpected("mend", "its length"));
            }
            for code in reply {
                outcomes.push(match code {
                    0 => Mended::Nothing,
                    1 => Mended::KeyMade,
                    2 => Mended::ExpirySet,
                    3 => Mended::DeadlineSet,
                    4 => Mended::StatusSet,
                    5 => Mended::KeyDropped,
                    6 => Mended::Told,
                    other => return Err(unexpected("mend", other)),
                });
            }
        }
        Ok(outcomes)
    }
}
