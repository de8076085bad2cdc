-- Records heartbeats of one shard by which something changes, or may: a user newly present, a new session, another status.
--
-- KEYS  1 live (zset)  2 transitions (stream)  3 blocked (set)  4 ended (zset)  5 fence (string)  6 hold (string)
--       7 heard (string)  8 lent (set)  9 lost (string), then for each heartbeat: presence key (hash)
-- ARGV  1 ttl_ms  2 how many sessions a presence key holds at most  3 changes_us: the time in which one change of status is
--       given back, us  4 burst_us: how far ahead all may be given back, us (model::limit)
--       then for each heartbeat: user id, sid ('' for tokens without one), word (online | away | touch | login)
-- Reply now_ms, heard in ms where this call has renewed it (an instant at which heartbeats were taken under a standing
--       fence; else 0), then for each heartbeat: 1 the user is online, 2 away, -1 the account is blocked, -2 the session
--       has ended, -3 the fence does not stand (Redis was restarted or lost data): see to it, then ask again
-- Appends offline (expired, as lua/claim.lua) and online where the deadline had passed unclaimed (online alone while
--       claims are on hold); online or away where the user is newly present; a change of status, unless the user's
--       heartbeats have changed it too often lately. Run again it finds all of it done.
-- Cost  4 commands and more: the fence and the ended sessions are looked at only where a session is new to the key. A batch
--       reads `heard` and renews it now and then.
local live, transitions, blocked, ended, fence, hold, heard, lent, lost = unpack(KEYS, 1, 9)
local shard = { hold = hold, lost = lost }
local ttl_ms, max_sessions = tonumber(ARGV[1]), tonumber(ARGV[2])
local changes_us, burst_us = tonumber(ARGV[3]), tonumber(ARGV[4])
local USERS, BEATS = 9, 4 -- so many keys, and arguments, come before those of the heartbeats
local now = now_ms()
local deadline = now + ttl_ms
local CODES = { online = 1, away = 2 }
local BLOCKED, ENDED, UNFENCED = -1, -2, -3

local stands
local function is_fenced()
  if stands == nil then stands = standing(live, transitions, blocked, ended, fence) end
  return stands
end

local function refusal(user, sid, newly_present)
  if not is_fenced() then return UNFENCED end
  if newly_present and redis.call('SISMEMBER', blocked, user) == 1 then return BLOCKED end
  return sid ~= '' and redis.call('ZSCORE', ended, ended_session(user, sid)) and ENDED or nil
end

-- Makes room for one more session: the one heard longest ago is forgotten first (of several, the one whose name comes first), and
-- is a new one if it speaks again. Returns whether any was forgotten.
local function make_room(key)
  -- `status` and `since` are no sessions, nor is `changes`, which most keys lack.
  if redis.call('HLEN', key) < max_sessions + 2 then return false end
  local flat, sessions = redis.call('HGETALL', key), {}
  for i = 1, #flat, 2 do
    if is_session(flat[i]) then sessions[#sessions + 1] = { flat[i], session_seen(flat[i + 1]) or 0 } end
  end
  table.sort(sessions, function(one, other)
    return one[2] < other[2] or one[2] == other[2] and one[1] < other[1]
  end)
  local oldest = {}
  for i = 1, #sessions - max_sessions + 1 do oldest[i] = sessions[i][1] end
  drop(key, oldest)
  return #oldest > 0
end

-- The status that the user comes to when this session says `said`, with the reason and the instant of a change. The other
-- sessions are looked at, and dead ones and those beyond the bound dropped, only where a session is new or an online user says
-- `away`.
local function settle(key, field, was, before, said)
  if before and (said == 'online' or was == 'away') then
    return said, 'heartbeat', now
  end
  local others = survey(key, now, field)
  drop(key, others.dead)
  -- What was forgotten counts no more.
  if not before and make_room(key) then others.status = survey(key, now, field).status end
  if said == 'online' or others.status == 'online' then
    return 'online', 'heartbeat', now
  end
  return 'away', away_since(shard, others, 'heartbeat', now)
end

-- Whether the user's heartbeats may change the status once more (GCRA, as lua/limit.lua). What is counted is kept in the
-- presence key, and goes with it: coming online is not counted.
local function may_change(key)
  local now_us = now * 1000
  local full = tonumber(redis.call('HGET', key, 'changes') or 0)
  if full > now_us + burst_us then full = now_us end -- from before the clock was set back
  local after = math.max(full, now_us) + changes_us
  if after > now_us + burst_us then return false end
  redis.call('HSET', key, 'changes', string.format('%d', after))
  return true
end

local function beat(key, user, sid, word)
  local field = 's:' .. sid
  local have = redis.pcall('HMGET', key, 'status', field, 'admin')
  if have.err then -- another type of value was put there: the live set is the truth, the key is made anew
    redis.call('DEL', key)
    have = {}
  end
  local was, before, was_lent = have[1], have[2], have[3]
  if not (was and before) then
    local refused = refusal(user, sid, not was)
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
  if was_lent then redis.call('HDEL', key, 'admin') end
  if was then
    status, reason, at = settle(key, field, was, before, said)
    if status ~= was and reason == 'heartbeat' and word ~= 'login' and not was_lent and not may_change(key) then
      status, said = was, was
    end
  else
    local unclaimed = tonumber(redis.call('ZSCORE', live, user) or nil)
    local expired = unclaimed and expired_at(shard, unclaimed, now)
    if expired then
      append(transitions, user, 'offline', 'expired', expired, seen_by_deadline(lent, user, unclaimed, ttl_ms))
    end
  end
  if was_lent or not was then redis.call('SREM', lent, user) end
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

local replies = { now, renew(heard, now, is_fenced) }
for i = 0, (#ARGV - BEATS) / 3 - 1 do
  local user, sid, word = ARGV[BEATS + 1 + i * 3], ARGV[BEATS + 2 + i * 3], ARGV[BEATS + 3 + i * 3]
  replies[i + 3] = beat(KEYS[USERS + 1 + i], user, sid, word)
end
return replies
