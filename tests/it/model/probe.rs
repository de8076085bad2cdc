//! The test's own hand in Redis: all that the keys hold in one look, and steps of the clock.
//!
//! Redis's clock cannot be set, so a step of `d` ms ages the data: every instant in Redis moves back by `d`. Instants that
//! the model knows are Redis's own plus the sum of all steps ([`Probe::offset`]), so they stay what they were.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use presenced::model::UserId;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

use super::whole::Part;

/// A line for each thing that the keys hold; the first says what time it is.
const LOOK: &str = r"
local time = redis.call('TIME')
local lines = { 'now\t' .. (time[1] * 1000 + math.floor(time[2] / 1000)) }
local function line(...) lines[#lines + 1] = table.concat({ ... }, '\t') end
for _, key in ipairs(redis.call('KEYS', 'presence:*')) do
  local shard, name = string.match(key, '^presence:{(%d+)}:(.*)$')
  local kind, of = string.match(name, '^(%l+):(.*)$')
  local expires = redis.call('PEXPIRETIME', key)
  if name == 'live' then
    local flat = redis.call('ZRANGE', key, 0, -1, 'WITHSCORES')
    for i = 1, #flat, 2 do
      if flat[i] ~= '0' then line('live', shard, flat[i], flat[i + 1]) else line('mark', shard, name) end
    end
  elseif kind == 'user' then
    line('user', shard, of, expires, unpack(redis.call('HGETALL', key)))
  elseif name == 'ended' then
    local flat = redis.call('ZRANGE', key, 0, -1, 'WITHSCORES')
    for i = 1, #flat, 2 do
      if flat[i] ~= '0' then line('ended', shard, flat[i], flat[i + 1]) else line('mark', shard, name) end
    end
  elseif name == 'lent' then
    for _, user in ipairs(redis.call('SMEMBERS', key)) do line('lent', shard, user) end
  elseif name == 'blocked' then
    for _, user in ipairs(redis.call('SMEMBERS', key)) do
      if user ~= '0' then line('blocked', shard, user) else line('mark', shard, name) end
    end
  elseif name == 'fence' then
    line('fence', shard, redis.call('GET', key))
  elseif name == 'hold' then
    line('hold', shard, expires)
  elseif name == 'heard' then
    line('heard', shard)
  elseif name == 'lost' then
    line('lost', shard, redis.call('GET', key))
  elseif name == 'moves' then
    line('moves', shard, redis.call('GET', key))
  elseif name == 'epoch' then
    line('epoch', shard, string.match(redis.call('GET', key), '%d+$'))
  elseif name == 'transitions' then
    line('mark', shard, name)
    for _, entry in ipairs(redis.call('XRANGE', key, '-', '+')) do
      line('entry', shard, entry[1], unpack(entry[2]))
    end
    local pending = redis.pcall('XPENDING', key, 'persist', '-', '+', 1000)
    if not pending.err then
      for _, entry in ipairs(pending) do line('pending', shard, entry[1], entry[2]) end
    end
  end
end
return table.concat(lines, '\n')";

/// Moves every instant back. ARGV: 'by' and how many ms, or 'to' and the instant that is to be now.
const AGE: &str = r"
local function now_ms()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end
local d = tonumber(ARGV[2])
if ARGV[1] == 'to' then d = d - now_ms() end
if d <= 0 then return '0' end
local function back(ms) return string.format('%d', tonumber(ms) - d) end
for _, key in ipairs(redis.call('KEYS', 'presence:*')) do
  local name = string.match(key, '^presence:{%d+}:(.*)$')
  local kind, expires = string.match(name, '^%l+'), redis.call('PEXPIRETIME', key)
  if kind == 'user' then
    local flat = redis.call('HGETALL', key)
    for i = 1, #flat, 2 do
      local at, rest = string.match(flat[i + 1], '^(%d+)(.*)$')
      if flat[i] == 'changes' then -- in microseconds
        redis.call('HSET', key, 'changes', string.format('%d', tonumber(at) - d * 1000))
      elseif at and at ~= '0' then -- 0: no heartbeat made this presence
        redis.call('HSET', key, flat[i], back(at) .. rest)
      end
    end
  elseif kind == 'live' or kind == 'ended' then
    local flat = redis.call('ZRANGE', key, 0, -1, 'WITHSCORES')
    for i = 1, #flat, 2 do
      if flat[i] ~= '0' then redis.call('ZADD', key, back(flat[i + 1]), flat[i]) end
    end
  elseif kind == 'epoch' or kind == 'heard' or kind == 'lost' then
    local aged = string.gsub(redis.call('GET', key), '%f[%w]%d+%f[%W]', function(word)
      return #word == 13 and back(word) or word
    end)
    redis.call('SET', key, aged, 'KEEPTTL')
  elseif kind == 'transitions' then
    local pending = redis.pcall('XPENDING', key, 'persist', '-', '+', 1000)
    for _, entry in ipairs(pending.err and {} or pending) do
      redis.call('XCLAIM', key, 'persist', entry[2], 0, entry[1], 'IDLE', entry[3] + d, 'JUSTID')
    end
  end
  if expires > 0 then redis.call('PEXPIREAT', key, expires - d) end
end
return tostring(d)";

/// Lets the fences look as if they had come with the data of another life of the server, in which nothing was heard yet.
const REBIRTH: &str = r"
for _, key in ipairs(redis.call('KEYS', 'presence:*:fence')) do
  redis.call('SET', key, (string.gsub(redis.call('GET', key), '^%S+', 'former')))
end
for _, key in ipairs(redis.call('KEYS', 'presence:*:epoch')) do redis.call('DEL', key) end
return 'done'";

/// What Redis holds.
#[derive(Debug, Default)]
pub struct Look {
    pub now: i64,
    pub shards: BTreeMap<u32, ShardLook>,
}

/// What a shard's keys hold; instants are the model's.
#[derive(Debug, Default, Clone)]
pub struct ShardLook {
    pub live: BTreeMap<UserId, i64>,
    pub keys: BTreeMap<UserId, KeyLook>,
    /// Until when each session, as `<user>:<sid>`, is remembered.
    pub ended: BTreeMap<String, i64>,
    pub lent: BTreeSet<UserId>,
    /// The keys that bear the mark of a whole one: the stream by being there.
    pub marks: BTreeSet<Part>,
    pub heard: bool,
    pub lost: Option<i64>,
    pub blocked: BTreeSet<UserId>,
    pub fence: Option<String>,
    pub hold: Option<i64>,
    pub epoch: Option<i64>,
    pub moves: String,
    pub stream: Vec<RawEntry>,
    /// Id and holder.
    pub pending: Vec<(String, String)>,
}

/// A presence key.
#[derive(Debug, Clone)]
pub struct KeyLook {
    pub expires: i64,
    pub status: String,
    pub since: i64,
    /// When all changes of the status are given back, us.
    pub changes: Option<i64>,
    /// Field, last heartbeat, and whether its word was away.
    pub sessions: BTreeMap<String, (i64, bool)>,
}

/// An entry of the stream as Redis holds it: its instants are Redis's own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RawEntry {
    pub id: String,
    pub fields: Vec<String>,
}

pub struct Probe {
    stream: BufReader<TcpStream>,
    /// The model's time less Redis's, ms.
    pub offset: i64,
}

impl Probe {
    pub async fn connect(port: u16, database: u8) -> Self {
        let stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        stream.set_nodelay(true).unwrap();
        let mut probe = Self { stream: BufReader::new(stream), offset: 0 };
        probe.call(&["SELECT", &database.to_string()]).await;
        probe
    }

    pub async fn look(&mut self) -> Look {
        let text = self.call(&["EVAL", LOOK, "0"]).await;
        let mut look = Look::default();
        for line in text.lines() {
            let words: Vec<&str> = line.split('\t').collect();
            if words[0] == "now" {
                look.now = self.instant(words[1]);
            } else {
                let shard = look.shards.entry(words[1].parse().unwrap()).or_default();
                self.read_line(shard, words[0], &words[2..]);
            }
        }
        look
    }

    fn read_line(&self, shard: &mut ShardLook, kind: &str, words: &[&str]) {
        let user = || words[0].parse::<UserId>().unwrap();
        match kind {
            "live" => {
                shard.live.insert(user(), self.instant(words[1]));
            }
            "user" => {
                shard.keys.insert(user(), self.read_key(&words[1..]));
            }
            "ended" => {
                shard.ended.insert(words[0].into(), self.instant(words[1]));
            }
            "blocked" => {
                shard.blocked.insert(user());
            }
            "lent" => {
                shard.lent.insert(user());
            }
            "mark" => {
                let part = Part::MARKED.into_iter().find(|part| part.key() == words[0]);
                shard.marks.insert(part.unwrap_or_else(|| panic!("no key with a mark: {words:?}")));
            }
            "heard" => shard.heard = true,
            "lost" => shard.lost = Some(self.instant(words[0])),
            "fence" => shard.fence = Some(words[0].into()),
            "hold" => shard.hold = Some(self.instant(words[0])),
            "epoch" => shard.epoch = Some(self.instant(words[0])),
            "moves" => shard.moves = words[0].into(),
            "entry" => {
                let fields = words[1..].iter().map(ToString::to_string).collect();
                shard.stream.push(RawEntry { id: words[0].into(), fields });
            }
            "pending" => shard.pending.push((words[0].into(), words[1].into())),
            other => panic!("no line of the look: {other}"),
        }
    }

    fn read_key(&self, words: &[&str]) -> KeyLook {
        let expires = words[0].parse::<i64>().unwrap();
        assert!(expires > 0, "a presence key without a TTL: {words:?}");
        let mut key = KeyLook {
            expires: expires + self.offset,
            status: String::new(),
            since: 0,
            changes: None,
            sessions: BTreeMap::new(),
        };
        for pair in words[1..].chunks_exact(2) {
            match pair[0] {
                "status" => key.status = pair[1].into(),
                "since" => key.since = self.instant(pair[1]),
                "changes" => key.changes = Some(pair[1].parse::<i64>().unwrap() + self.offset * 1_000),
                field => {
                    let (at, word) = pair[1].split_once(' ').unwrap_or((pair[1], ""));
                    // 0: no heartbeat made this presence.
                    let seen = if at == "0" { 0 } else { self.instant(at) };
                    key.sessions.insert(field.into(), (seen, word == "away"));
                }
            }
        }
        key
    }

    fn instant(&self, raw: &str) -> i64 {
        raw.parse::<i64>().unwrap_or_else(|_| panic!("no instant: {raw}")) + self.offset
    }

    /// Lets so many ms pass.
    pub async fn step_by(&mut self, ms: i64) {
        self.age("by", ms).await;
    }

    /// Lets the time come at which it is `instant`, exactly; nothing if that has passed.
    pub async fn step_to(&mut self, instant: i64) {
        self.age("to", instant - self.offset).await;
    }

    async fn age(&mut self, how: &str, ms: i64) {
        let aged = self.call(&["EVAL", AGE, "0", how, &ms.to_string()]).await;
        self.offset += aged.parse::<i64>().unwrap_or_else(|_| panic!("{aged}"));
    }

    pub async fn begin_another_life(&mut self) {
        assert_eq!(self.call(&["EVAL", REBIRTH, "0"]).await, "done");
    }

    /// Loses everything, and waits until no id of the stream can come twice.
    pub async fn lose_everything(&mut self) {
        self.call(&["FLUSHDB"]).await;
        self.next_ms().await;
    }

    /// Loses one key of a shard, and waits as [`Self::lose_everything`] does.
    pub async fn lose(&mut self, shard: u32, part: Part) {
        let key = format!("presence:{{{shard}}}:{}", part.key());
        let gone = self.call(&["EVAL", "redis.call('DEL', KEYS[1]) return 'gone'", "1", &key]).await;
        assert_eq!(gone, "gone");
        self.next_ms().await;
    }

    async fn next_ms(&mut self) {
        let now = self.look().await.now;
        while self.look().await.now <= now {}
    }

    /// One command; a reply that is one string.
    async fn call(&mut self, words: &[&str]) -> String {
        let mut command = format!("*{}\r\n", words.len());
        for word in words {
            write!(command, "${}\r\n{word}\r\n", word.len()).unwrap();
        }
        self.stream.write_all(command.as_bytes()).await.unwrap();
        let mut head = String::new();
        self.stream.read_line(&mut head).await.unwrap();
        let head = head.trim_end();
        if let Some(text) = head.strip_prefix('+') {
            return text.into();
        }
        let length = head.strip_prefix('$').and_then(|length| length.parse::<usize>().ok());
        let mut body = vec![0; length.unwrap_or_else(|| panic!("Redis says {head}")) + 2];
        self.stream.read_exact(&mut body).await.unwrap();
        body.truncate(body.len() - 2);
        String::from_utf8(body).unwrap()
    }
}
