-- Records heartbeats of one shard by which something changes, or may: who is newly present, a new session, another status.
--
-- KEYS  1 live (zset)  2 transitions (stream)  3 blocked (set)  4 fence (string)  5 hold (string)  6 heard (string)
--       then for each heartbeat: presence key (hash), ended mark of its session (string)
-- ARGV  1 ttl_ms
--       then for each heartbeat: user id, sid ('' for tokens without one), word (online | away | touch | login)
-- Reply now_ms, heard in ms where this call has renewed it (an instant at which heartbeats were taken under a standing
--       fence; else 0), then for each heartbeat: 1 the user is online, 2 away, -1 the account is blocked, -2 the session
--       has ended, -3 the fence does not stand (Redis was restarted or lost its data): see to it, then ask again
-- Appends offline (expired, at the deadline) and online where the deadline had passed unclaimed (online alone while
--       claims are on hold); online or away where the user is newly present; a change of status. Run again it finds all
--       of it done.
-- Cost  4 commands and more: the fence is looked at only where someone would become newly present, the ended mark only
--       where a session is new to the key. A batch reads `heard` and renews it now and then.
local live, transitions, blocked, fence, hold, heard = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6]
local ttl_ms = tonumber(ARGV[1])
local now = now_ms()
local deadline = now + ttl_ms
local CODES = { online = 1, away = 2 }
local BLOCKED, ENDED, UNFENCED = -1, -2, -3

local stands
local function is_fenced()
  if stands == nil then stands = standing(fence) end
  return stands
end

local function refusal(user, ended, newly_present)
  if newly_present then
    if not is_fenced() then return UNFENCED end
    if redis.call('SISMEMBER', blocked, user) == 1 then return BLOCKED end
  end
  return redis.call('EXISTS', ended) == 1 and ENDED or nil
end

-- The status that the user comes to when this session says `said`, with the reason and the instant of a change. The other
-- sessions are looked at, and dead ones dropped, only where a session is new or an online user says `away`.
local function settle(key, field, was, before, said)
  if before and (said == 'online' or was == 'away') then
    return said, 'heartbeat', now
  end
  local others = survey(key, now, field)
  drop(key, others.dead)
  if said == 'online' or others.status == 'online' then
    return 'online', 'heartbeat', now
  end
  return 'away', away_since(others, 'heartbeat', now)
end

local function beat(key, ended, user, sid, word)
  local field = 's:' .. sid
  local have = redis.pcall('HMGET', key, 'status', field, 'admin')
  if have.err then -- someone put another type there: the live set is the truth, the key is made anew
    redis.call('DEL', key)
    have = {}
  end
  local was, before, lent = have[1], have[2], have[3]
  if not (was and before) then
    local refused = refusal(user, ended, not was)
    if refused then return refused end
  end
  local said = (word == 'away') and 'away' or 'online'
  if word == 'touch' then
    if before and session_seen(before) + ttl_ms >= now then
      said = session_status(before)
    elseif was then -- new, or dead until now: comes back to what the others have made of the user
      said = survey(key, now).status or was
    end
  end
  local status, reason, at = said, 'heartbeat', now
  if lent then redis.call('HDEL', key, 'admin') end
  if was then
    status, reason, at = settle(key, field, was, before, said)
  else
    local unclaimed = tonumber(redis.call('ZSCORE', live, user) or nil)
    if unclaimed and unclaimed < now and redis.call('EXISTS', hold) == 0 then
      append(transitions, user, 'offline', 'expired', unclaimed, unclaimed - ttl_ms)
    end
  end
  if status ~= was then
    append(transitions, user, status, word == 'login' and 'login' or reason, at, now)
    redis.call('HSET', key, 'status', status, 'since', at, field, session_value(said, now))
  else
    redis.call('HSET', key, field, session_value(said, now))
  end
  redis.call('PEXPIREAT', key, deadline)
  redis.call('ZADD', live, deadline, user)
  return CODES[status]
end

local replies = { now, renew(heard, fence, now) }
for i = 0, (#ARGV - 1) / 3 - 1 do
  local key, ended = KEYS[7 + i * 2], KEYS[8 + i * 2]
  local user, sid, word = ARGV[2 + i * 3], ARGV[3 + i * 3], ARGV[4 + i * 3]
  replies[i + 3] = beat(key, ended, user, sid, word)
end
return replies
