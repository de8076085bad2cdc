-- Reads the presence of some users.
--
-- KEYS  the presence key (hash) of each user
-- ARGV  none
-- Reply now_ms, then for each key two numbers: 0 offline, 1 online, 2 away; the last heartbeat in ms (0 where offline)
-- Appends nothing; reads never write.
-- Cost  O(sessions) a user
local now = now_ms()
local CODES = { online = 1, away = 2 }
local reply = { now }
for _, key in ipairs(KEYS) do
  local found = survey(key, now)
  reply[#reply + 1] = found.status and CODES[found.status] or 0
  reply[#reply + 1] = found.latest
end
return reply
