//! Each script on a real Redis: a case per reply, the keys afterwards, and a second run that must harm nothing.

mod arrive;
mod audit;
mod block;
mod claim;
mod clock;
mod heartbeat;
mod leave;
mod life;
mod limit;
mod measure;
mod mend;
mod reads;
mod reconcile;
mod set_status;
mod take;

use std::time::Duration;

use presenced::live::{Heartbeat, HeartbeatOutcome, LiveSet, Loss, Options, Verdict};
use presenced::model::{HeartbeatWord, Millis, OnlineStatus, SessionId, SessionKey, UserId};

use crate::support::redis::RedisServer;

/// The TTL of these tests: long, because what is to be old is aged by hand.
pub const TTL_MS: i64 = 120_000;

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
        assert!(self.live.begin_fence(0, "bench").await.unwrap());
        assert!(self.live.raise_fence(0, "0", "bench", &Loss::default()).await.unwrap());
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

    /// Lets `ms` pass for one user: every instant of him in Redis moves back by it.
    pub fn age(&self, user: UserId, ms: i64) {
        const AGE: &str = "local key, live, user, ms = KEYS[1], KEYS[2], ARGV[1], tonumber(ARGV[2])
            local flat = redis.call('HGETALL', key)
            for i = 1, #flat, 2 do
              local at, rest = string.match(flat[i + 1], '^(%d+)(.*)$')
              if at and at ~= '0' then redis.call('HSET', key, flat[i], string.format('%d', tonumber(at) - ms) .. rest) end
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
        let lines = self.redis.cli(&["XRANGE", "presence:{0}:transitions", "-", "+"]);
        let lines: Vec<&str> = lines.lines().collect();
        lines
            .chunks_exact(11)
            .map(|entry| {
                assert_eq!(
                    [entry[1], entry[3], entry[5], entry[7], entry[9]],
                    ["user", "to", "reason", "at", "seen"]
                );
                [entry[2], entry[4], entry[6], entry[8], entry[10]].map(ToString::to_string)
            })
            .collect()
    }

    /// For how many seconds an ended session is remembered still; `None` where it is not.
    pub fn remembered_for(&self, user: UserId, sid: &str) -> Option<i64> {
        let until = self.redis.cli(&["ZSCORE", "presence:{0}:ended", &format!("{user}:{sid}")]);
        let until = until.parse::<i64>().ok()?;
        Some((until - chrono::Utc::now().timestamp_millis()) / 1_000)
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
    LiveSet::open(Options {
        url: redis.url(),
        ttl: Duration::from_millis(TTL_MS.unsigned_abs()),
        prefix: "presence".into(),
        shards,
        max_sessions: 50,
        ended_ttl: Duration::from_mins(15),
        instance: instance.into(),
        command_timeout: Duration::from_millis(1_500),
    })
    .unwrap()
}

/// `""` for a token without `sid`.
pub fn key(user: UserId, sid: &str) -> SessionKey {
    SessionKey { user, sid: SessionId::parse(sid) }
}
