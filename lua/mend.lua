-- Puts right what Redis holds of some users where live set and presence key contradict each other. The deadline in the
-- live set counts; where there is none, the key's own. Looks again at each before it touches anything.
--
-- KEYS  1 live (zset)  2 transitions (stream)  3 blocked (set)  4 lent (set), then the presence key of each user
-- ARGV  1 ttl_ms  2 the longest TTL that there can be, ms; then for each user: id, the status to go by where no session
--       tells one (online | away), 1 to tell SQL the status though it did not change (else 0)
-- Reply for each user: 0 there is nothing to mend (any more), 1 the key was made anew, 2 the key's expiry was set, 3 the
--       deadline was set, 4 the status was set, 5 the key was dropped, 6 SQL is told
-- Appends online or away (heartbeat) where the status was set, or SQL is told. Run again it finds all of it mended; what
--       it tells SQL twice the chain leaves out.
-- Cost  O(sessions) a user
local live, transitions, blocked, lent = unpack(KEYS, 1, 4)
local ttl_ms, longest_ms = tonumber(ARGV[1]), tonumber(ARGV[2])
local now = now_ms()
local NOTHING, MADE, EXPIRY, DEADLINE, STATUS, DROPPED, TOLD = 0, 1, 2, 3, 4, 5, 6

local function agree(user, key, deadline)
  redis.call('ZADD', live, deadline, user)
  redis.call('PEXPIREAT', key, deadline)
end

-- The user is not in the live set: back into it while the key's sessions live, else the key goes.
local function restore(user, key, kind)
  if kind == 'none' then return NOTHING end
  if kind == 'hash' and redis.call('SISMEMBER', blocked, user) == 0 then
    local found, deadline = survey(key, now), redis.call('PEXPIRETIME', key)
    if deadline < 0 or deadline > now + longest_ms then
      deadline = found.latest + ttl_ms
    end
    if found.status and deadline >= now then
      agree(user, key, deadline)
      return DEADLINE
    end
  end
  redis.call('DEL', key)
  return DROPPED
end

local function mend(user, key, fallback, tell)
  local kind = redis.call('TYPE', key).ok
  local deadline = tonumber(redis.call('ZSCORE', live, user) or nil)
  if not deadline then return restore(user, key, kind) end
  if deadline < now then return NOTHING end -- to be claimed
  if deadline > now + longest_ms then
    local latest = survey(key, now).latest
    deadline = math.max(now, (latest > 0 and latest or now) + ttl_ms)
    agree(user, key, deadline)
    return DEADLINE
  end
  local alive = survey(key, now)
  if not alive.status then
    -- As lent: the next heartbeat follows its own word, and takes this away.
    redis.call('DEL', key)
    local seen = tonumber(seen_by_deadline(lent, user, deadline, ttl_ms)) or 0
    redis.call('HSET', key, 'status', fallback, 'since', deadline - ttl_ms, 'admin', session_value(fallback, seen))
    redis.call('PEXPIREAT', key, deadline)
    return MADE
  end
  if redis.call('PEXPIRETIME', key) ~= deadline then
    redis.call('PEXPIREAT', key, deadline)
    return EXPIRY
  end
  local status, since = unpack(redis.call('HMGET', key, 'status', 'since'))
  if not (status == alive.status or status == 'online' and ever_online(key)) then
    redis.call('HSET', key, 'status', alive.status, 'since', now)
    append(transitions, user, alive.status, 'heartbeat', now, alive.latest > 0 and alive.latest or '')
    return STATUS
  end
  if tell ~= '1' then return NOTHING end
  append(transitions, user, status, 'heartbeat', tonumber(since or nil) or now, alive.latest > 0 and alive.latest or '')
  return TOLD
end

local reply = {}
for i = 0, (#ARGV - 2) / 3 - 1 do
  reply[i + 1] = mend(ARGV[3 + i * 3], KEYS[5 + i], ARGV[4 + i * 3], ARGV[5 + i * 3])
end
return reply
