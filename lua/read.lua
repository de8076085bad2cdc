-- Reads the presence of some users, and counts who is present.
--
-- KEYS  1 live (zset)  2 hold (string), then the presence key (hash) of each user
-- ARGV  none
-- Reply now_ms, how many are present, for how many ms claims are still on hold because data was lost (0 for no hold), then for
--       each user two numbers: 0 offline, 1 online, 2 away; the last heartbeat in ms (0 where offline, or where an
--       administrator lent the presence)
-- Appends nothing; reads never write.
-- Cost  O(log n), and O(sessions) a user: one command for each, and another for who has several
local live, hold = KEYS[1], KEYS[2]
local now = now_ms()
local CODES = { online = 1, away = 2 }

-- The value of a presence's only session; nil where it has several, or holds something else. It lives as long as its key.
local function only_session(flat)
  if #flat ~= 6 then return nil end
  for i = 1, 5, 2 do
    if is_session(flat[i]) then return flat[i + 1] end
  end
end

local function read(key)
  local flat = redis.pcall('HGETALL', key)
  if flat.err or #flat == 0 then return 0, 0 end
  local value = only_session(flat)
  if value then return CODES[session_status(value)], session_seen(value) or 0 end
  local found = survey(key, now)
  return found.status and CODES[found.status] or 0, found.latest
end

local held_ms = math.max(redis.call('PTTL', hold), 0)
local reply, n = { now, redis.call('ZCOUNT', live, now, '+inf'), held_ms }, 3
for i = 3, #KEYS do
  reply[n + 1], reply[n + 2] = read(KEYS[i])
  n = n + 2
end
return reply
