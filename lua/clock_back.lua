-- Brings presences back whose heartbeats lie ahead of now, because Redis's clock was ahead for a while and has been set right:
-- without it these users stayed online until the clock had caught up.
--
-- KEYS  1 live (zset)  2 lent (set), then the presence key (hash) of each user
-- ARGV  1 ttl_ms, then the id of each user
-- Reply how many were brought back
-- Appends nothing. A heartbeat ahead of now counts as one of now; a deadline that follows from heartbeats of the past (a longer
--       TTL of then) is left alone. Run again it finds nothing ahead.
-- Cost  O(sessions) a user
local live, lent, ttl_ms = KEYS[1], KEYS[2], tonumber(ARGV[1])
local now = now_ms()
local USERS = 2 -- so many keys come before the users'

local function bring_back(key, user)
  local deadline = tonumber(redis.call('ZSCORE', live, user) or nil)
  if not deadline or deadline <= now + ttl_ms then return 0 end
  local flat = redis.pcall('HGETALL', key)
  if flat.err then return 0 end
  local is_ahead = #flat == 0 or redis.call('SISMEMBER', lent, user) == 1
  for i = 1, #flat, 2 do
    local field, value = flat[i], flat[i + 1]
    if is_session(field) and (session_seen(value) or 0) > now then
      redis.call('HSET', key, field, session_value(session_status(value), now))
      is_ahead = true
    elseif field == 'since' and (tonumber(value) or 0) > now then
      redis.call('HSET', key, 'since', now)
    end
  end
  if not is_ahead then return 0 end
  redis.call('ZADD', live, now + ttl_ms, user)
  redis.call('PEXPIREAT', key, now + ttl_ms)
  return 1
end

local count = 0
for i = 2, #ARGV do
  count = count + bring_back(KEYS[USERS + i - 1], ARGV[i])
end
return count
