//! Each script on a real Redis: a case per reply, the keys afterwards, and a second run that must harm nothing.

mod arrive;
mod audit;
mod block;
mod changes;
mod check;
mod claim;
mod clock;
mod clock_back;
mod heartbeat;
mod hold;
mod ids;
mod leave;
mod lent;
mod life;
mod limit;
mod lost;
mod measure;
mod mend;
mod raise;
mod reads;
mod reconcile;
mod set_status;
mod take;
mod unsettled;
mod whole;

use std::time::Duration;

use presenced::live::{Heartbeat, HeartbeatOutcome, LiveSet, Loss, Options, Verdict};
use presenced::model::{HeartbeatWord, Millis, OnlineStatus, SessionId, SessionKey, UserId};

use crate::support::redis::RedisServer;

/// The TTL of these tests: long, because what is to be old is aged by hand.
pub const TTL_MS: i64 = 120_000;
/// How long an ended session is refused where no token of it is known to live longer.
pub const ENDED_TTL_MS: i64 = 900_000;

pub const LIVE: &str = "presence:{0}:live";
pub const STREAM: &str = "presence:{0}:transitions";
pub const BLOCKED: &str = "presence:{0}:blocked";
pub const ENDED: &str = "presence:{0}:ended";
pub const FENCE: &str = "presence:{0}:fence";

/// A Redis of its own with a live set that has a fence.
pub struct Bench {
    pub redis: RedisServer,
    pub live: LiveSet,
}

impl Bench {
    pub async fn start() -> Self {
        let bench = Self::unfenced().await;
        bench.raise_fence().await;
        bench
    }

    pub async fn unfenced() -> Self {
        let redis = RedisServer::start(&[]).await;
        let live = live_set(&redis, "bench", 1);
        live.ready().await.unwrap();
        Self { redis, live }
    }

    pub async fn raise_fence(&self) {
        self.raise_fence_after(&Loss::default()).await;
    }

    /// Raises the fence of a shard that has lost data.
    pub async fn raise_fence_after(&self, loss: &Loss) {
        assert!(self.live.begin_fence(0, "bench").await.unwrap());
        assert!(self.live.raise_fence(0, "0", "bench", loss).await.unwrap());
        self.live.end_fence("bench").await.unwrap();
    }

    /// Tells the fence what SQL would say; returns how many were taken offline.
    pub async fn tell(&self, verdicts: &[(UserId, Verdict)]) -> u64 {
        let moves = self.live.fence(0).await.unwrap().moves;
        self.live.block(0, &moves, verdicts).await.unwrap().expect("nobody else is here")
    }

    pub async fn beat(&self, user: UserId, sid: &str, word: HeartbeatWord) -> HeartbeatOutcome {
        self.beat_at(user, sid, word).await.1
    }

    pub async fn beat_at(&self, user: UserId, sid: &str, word: HeartbeatWord) -> (Millis, HeartbeatOutcome) {
        self.beats(&[(user, sid, word)]).await[0]
    }

    /// A batch as the group commit has it recorded: who is not merely renewed arrives.
    pub async fn beats(&self, batch: &[(UserId, &str, HeartbeatWord)]) -> Vec<(Millis, HeartbeatOutcome)> {
        let batch: Vec<_> =
            batch.iter().map(|(user, sid, word)| Heartbeat { who: key(*user, sid), word: *word }).collect();
        let (now, renewed) = self.live.heartbeat(0, &batch).await.unwrap();
        let left = batch.into_iter().zip(&renewed).filter(|(_, renewed)| renewed.is_none());
        let left: Vec<_> = left.map(|(beat, _)| beat).collect();
        let (later, outcomes) = self.live.arrive(0, &left).await.unwrap();
        let mut outcomes = outcomes.into_iter();
        let settle = |renewed: Option<OnlineStatus>| match renewed {
            Some(status) => (now, HeartbeatOutcome::Present(status)),
            None => (later, outcomes.next().unwrap()),
        };
        renewed.into_iter().map(settle).collect()
    }

    /// Lets `ms` pass for one user: all instants of the user in Redis move back by it, or ahead where it is negative.
    pub fn age(&self, user: UserId, ms: i64) {
        const AGE: &str = "local key, live, user, ms = KEYS[1], KEYS[2], ARGV[1], tonumber(ARGV[2])
            local flat = redis.call('HGETALL', key)
            for i = 1, #flat, 2 do
              local at, rest = string.match(flat[i + 1], '^(%d+)(.*)$')
              local unit = flat[i] == 'changes' and 1000 or 1
              -- 0 is the last heartbeat of a presence that was lent.
              if at and at ~= '0' then
                redis.call('HSET', key, flat[i], string.format('%d', tonumber(at) - ms * unit) .. rest)
              end
            end
            redis.call('ZINCRBY', live, -ms, user)
            local deadline = redis.call('PEXPIRETIME', key)
            if deadline > 0 then redis.call('PEXPIREAT', key, deadline - ms) end
            return 'aged'";
        let (key, ms) = (format!("presence:{{0}}:user:{user}"), ms.to_string());
        let aged = self.redis.cli(&["EVAL", AGE, "2", &key, "presence:{0}:live", &user.to_string(), &ms]);
        assert_eq!(aged, "aged");
    }

    /// The same for one session only; the user's own deadline stays.
    pub fn age_session(&self, user: UserId, sid: &str, ms: i64) {
        let (key, field) = (format!("presence:{{0}}:user:{user}"), format!("s:{sid}"));
        let value = self.redis.cli(&["HGET", &key, &field]);
        let (at, rest) = value.split_once(' ').map_or((value.as_str(), ""), |(at, word)| (at, word));
        let aged = format!("{} {rest}", at.parse::<i64>().unwrap() - ms);
        self.redis.cli(&["HSET", &key, &field, aged.trim_end()]);
    }

    /// What the stream holds: `user to reason` a line, in order.
    pub fn transitions(&self) -> Vec<String> {
        self.entries().into_iter().map(|entry| format!("{} {} {}", entry[0], entry[1], entry[2])).collect()
    }

    /// What the stream holds: user, to, reason, at, seen.
    pub fn entries(&self) -> Vec<[String; 5]> {
        const LINES: &str = "local lines = {}
            for _, entry in ipairs(redis.call('XRANGE', KEYS[1], '-', '+')) do
              lines[#lines + 1] = table.concat(entry[2], '|') .. '|'
            end
            return lines";
        let lines = self.redis.cli(&["EVAL", LINES, "1", STREAM]);
        let entry = |line: &str| {
            let words: Vec<&str> = line.split('|').collect();
            let [user, id, to, status, reason, why, at, at_ms, seen, seen_ms, _] = words[..] else {
                panic!("no transition: {line}");
            };
            assert_eq!([user, to, reason, at, seen], ["user", "to", "reason", "at", "seen"]);
            [id, status, why, at_ms, seen_ms].map(ToString::to_string)
        };
        lines.lines().filter(|line| !line.is_empty()).map(entry).collect()
    }

    /// All that Redis holds, to show that something changes nothing.
    pub fn everything(&self) -> String {
        const DUMP: &str = "local all = {} for _, key in ipairs(redis.call('KEYS', '*')) do \
                all[#all + 1] = key .. redis.sha1hex(redis.call('DUMP', key)) .. redis.call('PEXPIRETIME', key) end \
                table.sort(all) return all";
        self.redis.cli(&["EVAL", DUMP, "0"])
    }

    /// Makes Redis look as if it had been heard for so long already.
    pub fn age_epoch(&self, ms: i64) {
        let value = self.redis.cli(&["GET", "presence:{0}:epoch"]);
        let (life, since) = value.split_once(' ').unwrap();
        let aged = format!("{life} {}", since.parse::<i64>().unwrap() - ms);
        self.redis.cli(&["SET", "presence:{0}:epoch", &aged]);
    }

    /// Until when a session is refused, ms; `None` where it has not ended.
    pub fn refused_until(&self, user: UserId, sid: &str) -> Option<i64> {
        self.redis.cli(&["ZSCORE", ENDED, &format!("{user}:{sid}")]).parse().ok()
    }

    pub fn field(&self, user: UserId, field: &str) -> String {
        self.redis.cli(&["HGET", &format!("presence:{{0}}:user:{user}"), field])
    }

    pub fn exists(&self, user: UserId) -> bool {
        self.redis.cli(&["EXISTS", &format!("presence:{{0}}:user:{user}")]) == "1"
    }

    /// The deadline in the live set and that of the key, which must be one.
    pub fn deadline(&self, user: UserId) -> Option<i64> {
        let score = self.redis.cli(&["ZSCORE", "presence:{0}:live", &user.to_string()]);
        let of_key = self.redis.cli(&["PEXPIRETIME", &format!("presence:{{0}}:user:{user}")]);
        if score.is_empty() {
            assert_eq!(of_key, "-2", "a presence key without a deadline in the live set");
            return None;
        }
        assert_eq!(score, of_key, "the key expires at its deadline");
        Some(score.parse().unwrap())
    }
}

pub fn live_set(redis: &RedisServer, instance: &str, shards: u32) -> LiveSet {
    LiveSet::open(options(redis, instance, shards)).unwrap()
}

pub fn options(redis: &RedisServer, instance: &str, shards: u32) -> Options {
    Options {
        url: redis.url(),
        ttl: Duration::from_millis(TTL_MS.unsigned_abs()),
        prefix: "presence".into(),
        shards,
        max_sessions: 50,
        ended_ttl: Duration::from_millis(ENDED_TTL_MS.unsigned_abs()),
        instance: instance.into(),
        command_timeout: Duration::from_millis(1_500),
    }
}

pub fn session(sid: &str) -> SessionId {
    SessionId::parse(sid).expect("a session with a name")
}

/// The clock of this machine, which is that of its servers, ms.
pub fn now_ms() -> i64 {
    chrono::Utc::now().timestamp_millis()
}

/// `""` for a token without `sid`.
pub fn key(user: UserId, sid: &str) -> SessionKey {
    SessionKey { user, sid: SessionId::parse(sid) }
}
