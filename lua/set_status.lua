-- An administrator sets a user's status.
--
-- KEYS  1 live (zset)  2 transitions (stream)  3 blocked (set)  4 ended (zset)  5 fence (string)  6 lent (set)
--       7 hold (string)  8 lost (string)  9 presence key (hash)
-- ARGV  1 user id  2 status (online | away | offline)  3 ttl_ms
-- Reply 1 done, -1 the account is blocked, -3 the fence does not stand (Redis was restarted or lost
--       its data): see to it, then ask again
-- Appends offline (admin); online or away (admin) where that is a change; offline (expired) before it where the
--       deadline had passed unclaimed. Run again it finds the status set.
-- Cost  O(sessions of the user)
local live, transitions, blocked, ended, fence, lent, hold, lost, key = unpack(KEYS)
local shard = { live = live, transitions = transitions, lent = lent, hold = hold, lost = lost }
local user, status, ttl_ms = ARGV[1], ARGV[2], tonumber(ARGV[3])
local now = now_ms()
local DONE, BLOCKED, UNFENCED = 1, -1, -3

if status == 'offline' then
  local latest = survey(key, now).latest
  end_presence(shard, key, user, 'admin', now, ttl_ms, latest > 0 and latest or nil)
  return DONE
end

local deadline = tonumber(redis.call('ZSCORE', live, user) or nil)
local was = redis.pcall('HGET', key, 'status')
if type(was) == 'string' and deadline and deadline >= now then
  -- Every session takes the status over until its next heartbeat says otherwise; the deadline stays, for this is no
  -- proof of life.
  local flat, latest = redis.call('HGETALL', key), 0
  for i = 1, #flat, 2 do
    if is_session(flat[i]) then
      local seen = session_seen(flat[i + 1]) or 0
      latest = math.max(latest, seen)
      redis.call('HSET', key, flat[i], session_value(status, seen))
    end
  end
  if status ~= was then
    redis.call('HSET', key, 'status', status, 'since', now)
    append(transitions, user, status, 'admin', now, latest > 0 and latest or '')
  end
  return DONE
end

if not standing(live, transitions, blocked, ended, fence) then return UNFENCED end
if redis.call('SISMEMBER', blocked, user) == 1 then return BLOCKED end
end_presence(shard, key, user, nil, now, ttl_ms)
-- It is no sighting: what is known of the user's last heartbeat stays as it is.
append(transitions, user, status, 'admin', now, '')
redis.call('HSET', key, 'status', status, 'since', now, 'admin', session_value(status, 0))
redis.call('SADD', lent, user)
redis.call('PEXPIREAT', key, now + ttl_ms)
redis.call('ZADD', live, now + ttl_ms, user)
return DONE
