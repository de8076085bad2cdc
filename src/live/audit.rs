//! What Redis holds, read for comparison: user by user, member by member, entry by entry, a page at a time. Writes nothing,
//! and begins no epoch: that it is new is for the service to notice.

use std::time::Duration;

use fred::interfaces::{ClientLike, ConfigInterface, HashesInterface, SortedSetsInterface, StreamsInterface};
use fred::types::{InfoKind, Value};
use fred::util::redis_keyslot;

use super::live_set::{LiveSet, unexpected};
use super::scripts::named;
use super::stream::{GROUP, parse};
use super::{Epoch, LiveError, Result};
use crate::model::audit::{InRedis, Key};
use crate::model::{Millis, OnlineStatus, SessionId, StreamId, UserId};

/// Users in one call of `lua/audit.lua`: a millisecond of Redis's time where all are present, on a busy machine two.
const CHUNK: usize = 100;
/// Questions about single sessions on their way at once.
const AT_ONCE: usize = 256;

/// The server's own word about itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Server {
    /// Names its life.
    pub run_id: String,
    /// How long that is, to the second.
    pub uptime: Duration,
}

/// The state of a shard (`lua/stock.lua`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stock {
    /// When this was so.
    pub now: Millis,
    /// Since when this server has been heard; `None` where nobody has noted it yet.
    pub heard_since: Option<Millis>,
    /// Entries in the stream.
    pub entries: u64,
    /// The oldest of them.
    pub oldest: Option<StreamId>,
    /// Whether a persister has ever asked for any.
    pub has_group: bool,
    /// How many are with persisters.
    pub pending: u64,
    /// The persister that has the oldest of those, and for how long.
    pub holder: Option<(String, Duration)>,
    /// Keys of another type than they must be, with that type.
    pub odd_keys: Vec<(String, String)>,
}

/// A page of the live set (`lua/members.lua`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Members {
    /// The users on it.
    pub users: Vec<UserId>,
    /// Members that are no ids of users of this shard.
    pub strays: Vec<String>,
    /// Where to go on; `None` at the end.
    pub next: Option<MemberPlace>,
}

/// A place in the walk over the live set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemberPlace {
    deadline: String,
    skip: u64,
}

impl MemberPlace {
    /// The first place at the same deadline.
    pub(super) fn begun_anew(self) -> Self {
        Self { skip: 0, ..self }
    }

    /// The deadline at which the walk goes on, ms; `None` for the beginning.
    pub(super) fn deadline_ms(&self) -> Option<i64> {
        self.deadline.parse().ok()
    }
}

/// A page of the stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entries {
    /// Whose transitions are on it, in stream order.
    pub users: Vec<UserId>,
    /// Ids of entries that are no transitions.
    pub unreadable: Vec<String>,
    /// Where to go on; `None` at the end.
    pub next: Option<EntryPlace>,
}

/// A place in the walk over a stream: the last entry seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EntryPlace(String);

impl Stock {
    /// The epoch; `None` where nobody has noted one.
    pub fn epoch(&self) -> Option<Epoch> {
        let since = self.heard_since?;
        let age = Duration::from_millis(u64::try_from(self.now.0 - since.0).unwrap_or(0));
        Some(Epoch { age, is_new: false })
    }
}

impl LiveSet {
    /// Which server has this shard.
    pub async fn server(&self, shard: u32) -> Result<Server> {
        let key = self.keys(shard).live();
        let server = self.topology.of(redis_keyslot(key.as_bytes())).ok_or(LiveError::Down)?;
        let info = self
            .back
            .call_at(&server, |client| async move { client.info::<String>(Some(InfoKind::Server)).await });
        let info = info.await??;
        let line = |name: &str| info.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
        let (Some(run_id), Some(uptime)) = (line("run_id:"), line("uptime_in_seconds:")) else {
            return Err(LiveError::Redis("INFO server names no run_id or no uptime".into()));
        };
        Ok(Server { run_id: run_id.to_string(), uptime: Duration::from_secs(uptime.parse().unwrap_or(0)) })
    }

    /// Whether each primary publishes expiry events; `None` where one does not say, and none is known not to.
    pub async fn publishes_expiries(&self) -> Result<Option<bool>> {
        let mut all = Some(true);
        for server in self.topology.map().primaries() {
            let get = self.back.call_at(&server, |client| async move {
                client.config_get::<Vec<String>, _>("notify-keyspace-events").await
            });
            let answer = match get.await?.map_err(LiveError::from) {
                Ok(answer) => answer,
                Err(LiveError::Redis(_)) => vec![],
                Err(error) => return Err(error),
            };
            let flags = answer.get(1);
            match flags.map(|flags| flags.contains('E') && (flags.contains('x') || flags.contains('A'))) {
                Some(true) => {}
                Some(false) => return Ok(Some(false)),
                None => all = None,
            }
        }
        Ok(all)
    }

    /// The state of a shard.
    pub async fn stock(&self, shard: u32, server: &Server) -> Result<Stock> {
        let keys = self.keys(shard);
        let reply: Vec<String> = named::stock
            .run(&self.back, || {
                let mut names = keys.of_a_fence().to_vec();
                names.extend([keys.moves(), keys.epoch()]);
                (names, vec![Value::from_static_str(GROUP), server.run_id.as_str().into()])
            })
            .await?;
        let number = |index: usize| reply.get(index).and_then(|word| word.parse::<i64>().ok());
        let (Some(now), Some(since), Some(entries), Some(group), Some(pending), Some(idle_ms)) =
            (number(0), number(1), number(2), number(4), number(5), number(7))
        else {
            return Err(unexpected("stock", "no number"));
        };
        let count = |number: i64| u64::try_from(number).unwrap_or(0);
        let holder = Some(reply[6].clone()).filter(|name| !name.is_empty());
        Ok(Stock {
            now: Millis(now),
            heard_since: Some(Millis(since)).filter(|since| since.0 >= 0),
            entries: count(entries),
            oldest: reply[3].parse().ok(),
            has_group: group == 1,
            pending: count(pending),
            holder: holder.map(|name| (name, Duration::from_millis(count(idle_ms)))),
            odd_keys: reply[8..].chunks_exact(2).map(|pair| (pair[0].clone(), pair[1].clone())).collect(),
        })
    }

    /// All that Redis holds of each of these users of one shard (`lua/audit.lua`), in their order.
    pub async fn audit(&self, shard: u32, users: &[UserId]) -> Result<Vec<InRedis>> {
        let keys = self.keys(shard);
        let mut found = Vec::with_capacity(users.len());
        for chunk in users.chunks(CHUNK) {
            let reply: Vec<String> = named::audit
                .run(&self.back, || {
                    let mut names = vec![keys.live(), keys.blocked()];
                    names.extend(chunk.iter().map(|user| keys.user(*user)));
                    (names, chunk.iter().map(|user| Value::from(*user)).collect())
                })
                .await?;
            let now = reply.first().and_then(|now| now.parse().ok()).map(Millis);
            let (Some(now), true) = (now, reply.len() == 1 + 7 * chunk.len()) else {
                return Err(unexpected("audit", "its length"));
            };
            found.extend(
                chunk.iter().zip(reply[1..].chunks_exact(7)).map(|(user, words)| in_redis(*user, now, words)),
            );
        }
        Ok(found)
    }

    /// A page of the live set, from the latest deadline on, at most `most` members.
    pub async fn members(&self, shard: u32, from: Option<MemberPlace>, most: u32) -> Result<Members> {
        let from = from.unwrap_or(MemberPlace { deadline: "+inf".into(), skip: 0 });
        let reply: Vec<String> = named::members
            .run(&self.back, || {
                let args = vec![
                    from.deadline.as_str().into(),
                    i64::try_from(from.skip).unwrap_or(i64::MAX).into(),
                    i64::from(most).into(),
                ];
                (vec![self.keys(shard).live()], args)
            })
            .await?;
        let pairs: Vec<_> = reply.chunks_exact(2).collect();
        let mut members = Members { users: Vec::new(), strays: Vec::new(), next: None };
        for pair in &pairs {
            match pair[0].parse::<UserId>() {
                // Only the plain form is the member that scripts find: `007` is none.
                Ok(user) if user > 0 && user.to_string() == pair[0] && self.shard_of(user) == shard => {
                    members.users.push(user);
                }
                // The mark of a whole live set.
                Ok(0) if pair[0] == "0" => {}
                _ => members.strays.push(pair[0].clone()),
            }
        }
        if let Some(last) = pairs.last().filter(|_| pairs.len() >= most as usize) {
            let at_it = pairs.iter().rev().take_while(|pair| pair[1] == last[1]).count();
            // A page that is all of one deadline, the one it began at, goes on within it.
            let before = if at_it == pairs.len() && from.deadline == last[1] { from.skip } else { 0 };
            members.next = Some(MemberPlace { deadline: last[1].clone(), skip: before + at_it as u64 });
        }
        Ok(members)
    }

    /// Which of these are members of a shard's live set.
    pub async fn still_members(&self, shard: u32, members: &[String]) -> Result<Vec<bool>> {
        if members.is_empty() {
            return Ok(Vec::new());
        }
        let key = self.keys(shard).live();
        let scores = self.back.call(&key, |client| {
            let (key, members) = (key.clone(), members.to_vec());
            async move { client.zmscore::<Vec<Option<f64>>, _, _>(key, members).await }
        });
        Ok(scores.await??.iter().map(Option::is_some).collect())
    }

    /// Which of these sessions are in their users' presence keys.
    pub async fn sessions_present(&self, sessions: &[(UserId, SessionId)]) -> Result<Vec<bool>> {
        let mut found = Vec::with_capacity(sessions.len());
        for chunk in sessions.chunks(AT_ONCE) {
            let asked = chunk.iter().map(|(user, sid)| async move {
                let key = self.keys(self.shard_of(*user)).user(*user);
                let there = self.back.call(&key, |client| {
                    let (key, field) = (key.clone(), format!("s:{}", sid.as_str()));
                    async move { client.hexists::<bool, _, _>(key, field).await }
                });
                match there.await?.map_err(LiveError::from) {
                    // A key of another type holds no session.
                    Err(LiveError::Redis(_)) => Ok(false),
                    other => other,
                }
            });
            found.extend(futures_util::future::try_join_all(asked).await?);
        }
        Ok(found)
    }

    /// A page of the stream, oldest first, at most `most` entries.
    pub async fn entries(&self, shard: u32, from: Option<EntryPlace>, most: u32) -> Result<Entries> {
        let start = from.map_or("-".to_string(), |place| format!("({}", place.0));
        let key = self.keys(shard).transitions();
        let range = self.back.call(&key, |client| {
            let (key, start) = (key.clone(), start.clone());
            async move { client.xrange::<Vec<Value>, _, _, _>(key, start, "+", Some(u64::from(most))).await }
        });
        let mut entries = Entries { users: Vec::new(), unreadable: Vec::new(), next: None };
        let (mut count, mut last) = (0, None);
        for entry in range.await?? {
            let (id, fields): (String, Vec<String>) = entry.convert().map_err(LiveError::from)?;
            match parse(&id, &fields) {
                Some(transition) => entries.users.push(transition.user),
                None => entries.unreadable.push(id.clone()),
            }
            count += 1;
            last = Some(id);
        }
        entries.next = last.filter(|_| count >= most).map(EntryPlace);
        Ok(entries)
    }
}

/// Reads the seven words that `lua/audit.lua` gives of a user.
fn in_redis(user: UserId, now: Millis, words: &[String]) -> InRedis {
    let status = |word: &str| word.parse::<OnlineStatus>().ok();
    // A score may be `inf`; as an instant that is the far end of time.
    #[allow(clippy::cast_possible_truncation, reason = "it saturates")]
    let deadline = words[0].parse::<f64>().ok().map(|deadline| Millis(deadline as i64));
    let key = match words[1].as_str() {
        "none" => Key::None,
        "hash" => Key::Hash {
            expires: words[2].parse().ok().filter(|at| *at >= 0).map(Millis),
            status: status(&words[3]),
            alive: status(&words[4]),
            said_online: words[5] == "1",
        },
        other => Key::Other(other.to_string()),
    };
    InRedis { user, now, deadline, key, blocked: words[6] == "1" }
}
