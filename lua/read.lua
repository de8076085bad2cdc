-- Reads the presence of some users, and counts who is present.
--
-- KEYS  1 live (zset), then the presence key (hash) of each user
-- ARGV  none
-- Reply now_ms, how many are present, then for each user two numbers: 0 offline, 1 online, 2 away; the last heartbeat in ms
--       (0 where offline)
-- Appends nothing; reads never write.
-- Cost  O(log n), and O(sessions) a user
local live = KEYS[1]
local now = now_ms()
local CODES = { online = 1, away = 2 }
local reply = { now, redis.call('ZCOUNT', live, now, '+inf') }
for i = 2, #KEYS do
  local found = survey(KEYS[i], now)
  reply[#reply + 1] = found.status and CODES[found.status] or 0
  reply[#reply + 1] = found.latest
end
return reply
