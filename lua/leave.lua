-- Ends one session: its tokens are refused from now on, and the user leaves unless another session is alive.
--
-- KEYS  1 live (zset)  2 transitions (stream)  3 presence key (hash)  4 ended mark of the session (string)
-- ARGV  1 user id  2 sid  3 ttl_ms  4 how long the ended mark must stand, ms (the lifetime of an access token)  5 ms at
--       which a known token of the session expires (0 for none): the mark stands until then as well
-- Reply 0 the session was not in the key, 1 the user has left, 2 other sessions keep the user present
-- Appends offline (logout) where it was the last session, or (expired) where the deadline had passed unclaimed; away
--       where it was the last one that was online, or (expired) where that one had died before. Run again it finds the
--       session gone.
-- Cost  O(sessions of the user)
local live, transitions, key, ended = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local user, sid = ARGV[1], ARGV[2]
local ttl_ms, ended_ttl_ms, expires_at = tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
local now = now_ms()
local field = 's:' .. sid

-- A token that never expires is refused for a year. Whoever ends the session again may know less of its tokens: a mark
-- never stands for less long than it did.
local until_ms = math.min(math.max(now + ended_ttl_ms, expires_at), now + 31536000000)
until_ms = math.max(until_ms, redis.call('PEXPIRETIME', ended))
redis.call('SET', ended, now, 'PXAT', until_ms)
local have = redis.pcall('HMGET', key, field, 'status')
local value, was = have[1], have[2]
if not value then
  return 0
end
local others = survey(key, now, field)
redis.call('HDEL', key, field)
if not others.status then
  end_presence(live, transitions, key, user, 'logout', now, ttl_ms, session_seen(value))
  return 1
end
-- The deadline falls back to that of the latest session left; it never moves ahead without a heartbeat.
local promised = tonumber(redis.call('ZSCORE', live, user) or nil) or (now + ttl_ms)
local deadline = math.min(promised, others.latest + others.lifetime_ms)
redis.call('ZADD', live, deadline, user)
if others.status ~= was then
  local reason, at = away_since(others, 'logout', now)
  redis.call('HSET', key, 'status', others.status, 'since', at)
  append(transitions, user, others.status, reason, at, others.latest)
end
-- Last: on the deadline's own millisecond this deletes the key, and a field written after it would make one without a TTL.
redis.call('PEXPIREAT', key, deadline)
return 2
