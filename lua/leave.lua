-- Ends sessions of one shard: their tokens are refused from now on, and a user leaves unless another session is alive.
--
-- KEYS  1 live (zset)  2 transitions (stream)  3 ended (zset)  4 lent (set)  5 hold (string)  6 lost (string), then for
--       each session: presence key (hash)
-- ARGV  1 ttl_ms  2 how long an ended session is remembered, ms (the lifetime of an access token), then for each session:
--       user id, sid, ms at which a known token of it expires (0 for none): it is remembered until then as well
-- Reply for each session: 0 it was not in the key, 1 the user has left, 2 other sessions keep the user present
-- Appends offline (logout) where it was the last session, or (expired) where the deadline had passed unclaimed; away
--       where it was the last one that was online, or (expired) where that one had died before. Run again it finds the
--       sessions gone.
-- Cost  3 commands for each session, and O(sessions of the user) where it was in the key; forgets at most two ended sessions
--       whose tokens have expired for each that it adds
local live, transitions, ended, lent, hold, lost = unpack(KEYS, 1, 6)
local shard = { live = live, transitions = transitions, lent = lent, hold = hold, lost = lost }
local SESSIONS = 6 -- so many keys come before those of the sessions
local ttl_ms, ended_ttl_ms = tonumber(ARGV[1]), tonumber(ARGV[2])
local now = now_ms()
local UNKNOWN, LEFT, STAYS = 0, 1, 2

local function leave(key, user, sid, expires_at)
  local field = 's:' .. sid
  -- A token that never expires is refused for a year. A later call may know less of the session's tokens: an ended session
  -- is never remembered for less long than it was.
  local until_ms = math.min(math.max(now + ended_ttl_ms, expires_at), now + 31536000000)
  local member = ended_session(user, sid)
  redis.call('ZADD', ended, math.max(until_ms, tonumber(redis.call('ZSCORE', ended, member) or 0)), member)
  local have = redis.pcall('HMGET', key, field, 'status')
  local value, was = have[1], have[2]
  if not value then return UNKNOWN end
  local others = survey(key, now, field)
  redis.call('HDEL', key, field)
  if not others.status then
    end_presence(shard, key, user, 'logout', now, ttl_ms, session_seen(value))
    return LEFT
  end
  -- The deadline falls back to that of the latest session left; it never moves ahead without a heartbeat.
  local promised = tonumber(redis.call('ZSCORE', live, user) or nil) or (now + ttl_ms)
  local deadline = math.min(promised, others.latest + others.lifetime_ms)
  redis.call('ZADD', live, deadline, user)
  if others.status ~= was then
    local reason, at = away_since(shard, others, 'logout', now)
    redis.call('HSET', key, 'status', others.status, 'since', at)
    append(transitions, user, others.status, reason, at, others.latest)
  end
  -- Last: on the deadline's own millisecond this deletes the key, and a field written after it would make one without a TTL.
  redis.call('PEXPIREAT', key, deadline)
  return STAYS
end

local reply, count = {}, #KEYS - SESSIONS
for i = 0, count - 1 do
  local user, sid, expires_at = ARGV[3 + i * 3], ARGV[4 + i * 3], tonumber(ARGV[5 + i * 3])
  reply[i + 1] = leave(KEYS[SESSIONS + 1 + i], user, sid, expires_at)
end
-- From 1 on: 0 is the score of the mark of a whole set.
local over = redis.call('ZRANGE', ended, 1, now, 'BYSCORE', 'LIMIT', 0, 2 * count)
if #over > 0 then redis.call('ZREM', ended, unpack(over)) end
return reply
