-- Renews, for a batch of one shard, the presences of those who are present and say nothing new, and names the others.
--
-- KEYS  1 live (zset)  2 transitions (stream)  3 blocked (set)  4 ended (zset)  5 fence (string)  6 heard (string), then for
--       each heartbeat: presence key (hash)
-- ARGV  1 ttl_ms  2 the words, a letter for each heartbeat: o online, a away, t touch, any other is new,
--       then for each heartbeat: user id, field of its session (s:<sid>)
-- Reply now_ms, heard in ms where this call has renewed it (an instant at which heartbeats were taken under a standing
--       fence; else 0), a letter for each heartbeat: o renewed, and the user is online; a renewed, and away; - untouched,
--       because the session is new to the key, or the status would change: for lua/arrive.lua
-- Appends nothing. Run again it renews again.
-- Cost  3 commands for each heartbeat, and one ZADD for all. Numbers become text once a batch: Redis takes a number by
--       printing it with 17 digits, which costs more than the command.
local live, transitions, blocked, ended, fence, heard = unpack(KEYS, 1, 6)
local USERS = 6 -- so many keys come before the users'
local ttl_ms, words = tonumber(ARGV[1]), ARGV[2]
local now = now_ms()
local deadline = string.format('%d', now + ttl_ms)
local SAID = { o = 'online', a = 'away' }
local VALUES = { online = string.format('%d', now), away = string.format('%d away', now) }
local LETTERS = { online = 'o', away = 'a' }

local keys, args, call, pcall, sub, match = KEYS, ARGV, redis.call, redis.pcall, string.sub, string.match
local letters, moves, n = {}, {}, 0
local left
for i = 1, #words do
  local key, user, field = keys[USERS + i], args[1 + 2 * i], args[2 + 2 * i]
  -- Another type of key gives an error, which has neither. A presence that was lent has no session.
  local have = pcall('HMGET', key, 'status', field)
  local was, before = have[1], have[2]
  local word, letter = sub(words, i, i), '-'
  -- Whoever was left to arrive in this batch stays behind it.
  if before and not (left and left[key]) then
    local said = SAID[word]
    if word == 't' and tonumber(match(before, '^%d+')) + ttl_ms >= now then
      said = match(before, 'away$') or 'online'
    end
    if said == was then
      call('HSET', key, field, VALUES[said])
      call('PEXPIREAT', key, deadline)
      moves[n + 1], moves[n + 2], n = deadline, user, n + 2
      letter = LETTERS[said]
    end
  end
  if letter == '-' then
    left = left or {}
    left[key] = true
  end
  letters[i] = letter
end
local function stands() return (standing(live, transitions, blocked, ended, fence)) end
-- At most 512 values: a batch is 256.
if n > 0 then call('ZADD', live, unpack(moves)) end
return { now, renew(heard, now, stands), table.concat(letters) }
