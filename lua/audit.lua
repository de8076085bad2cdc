-- Reads all that Redis holds of some users, so that it can be compared: with itself, and with SQL.
--
-- KEYS  1 live (zset)  2 blocked (set), then the presence key of each user
-- ARGV  the id of each user
-- Reply now_ms, then for each user seven words: deadline in ms ('' for none); type of the presence key (none where there
--       is none); its expiry in ms (-1 for none); its status; the status that its live sessions come to ('' for none); 1
--       where any of its sessions, alive or not, has said online; 1 where the account is blocked
-- Appends nothing; reads never write.
-- Cost  O(sessions) a user; 3 commands for one who is not present
local live, blocked = KEYS[1], KEYS[2]
local now = now_ms()
local reply = { now }
for i, user in ipairs(ARGV) do
  local key = KEYS[i + 2]
  local kind = redis.call('TYPE', key).ok
  local expires, status, alive, said = -1, '', '', 0
  if kind == 'hash' then
    expires = redis.call('PEXPIRETIME', key)
    status = redis.call('HGET', key, 'status') or ''
    alive = survey(key, now).status or ''
    said = (alive == 'online' or ever_online(key)) and 1 or 0
  end
  local words = {
    redis.call('ZSCORE', live, user) or '', kind, expires, status, alive, said, redis.call('SISMEMBER', blocked, user),
  }
  for _, word in ipairs(words) do
    reply[#reply + 1] = word
  end
end
return reply
