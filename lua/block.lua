-- Brings fence and live set in line with what SQL says of some accounts, unless someone else did so since SQL was asked.
--
-- KEYS  1 live (zset)  2 transitions (stream)  3 blocked (set)  4 moves (string)  5 lent (set)  6 hold (string)
--       7 lost (string), then the presence key (hash) of each account
-- ARGV  1 ttl_ms  2 the moves as they were before SQL was asked ('' for none), then for each account, each once: user id,
--       verdict (block | allow | gone)
-- Reply -1 somebody else was here: ask SQL again; else how many users were taken offline
-- Appends offline (blocked) for each blocked user who was present, or (expired) where the deadline had passed unclaimed;
--       nothing for an account that is gone. A second run finds the moves changed, and changes nothing.
-- Cost  4 commands a thousand accounts, and O(log n) for each that is present
local live, transitions, blocked, moves, lent, hold, lost = unpack(KEYS, 1, 7)
local shard = { live = live, transitions = transitions, lent = lent, hold = hold, lost = lost }
local ttl_ms, expected = tonumber(ARGV[1]), ARGV[2]
if (redis.call('GET', moves) or '') ~= expected then
  return -1
end
local now = now_ms()
local evicted = 0
local USERS = 7 -- so many keys come before the users'
local AT_ONCE = 1000 -- Lua's stack holds some thousands of values

-- Takes the user out of the live set, where those stand who are present; of an account that is gone nothing is told.
local function evict(key, user, is_gone)
  if is_gone then
    redis.call('DEL', key)
    redis.call('SREM', lent, user)
    return redis.call('ZREM', live, user)
  end
  local latest = survey(key, now).latest
  end_presence(shard, key, user, 'blocked', now, ttl_ms, latest > 0 and latest or nil)
  return 1
end

local count = (#ARGV - 2) / 2
for first = 1, count, AT_ONCE do
  local barred, keys, gone, allowed = {}, {}, {}, {}
  for i = first, math.min(first + AT_ONCE - 1, count) do
    local user, verdict = ARGV[1 + i * 2], ARGV[2 + i * 2]
    if verdict == 'allow' then
      allowed[#allowed + 1] = user
    else
      barred[#barred + 1], keys[#keys + 1], gone[#gone + 1] = user, KEYS[USERS + i], verdict == 'gone'
    end
  end
  if #allowed > 0 then redis.call('SREM', blocked, unpack(allowed)) end
  if #barred > 0 then
    redis.call('SADD', blocked, unpack(barred))
    local deadlines, absent = redis.call('ZMSCORE', live, unpack(barred)), {}
    for i, user in ipairs(barred) do
      if deadlines[i] then
        evicted = evicted + evict(keys[i], user, gone[i])
      else
        absent[#absent + 1] = keys[i]
      end
    end
    if #absent > 0 then redis.call('DEL', unpack(absent)) end
  end
end
-- Begins with the time, so that no count from before a loss of data comes again.
if expected == '' then
  redis.call('SET', moves, now * 1000)
else
  redis.call('INCR', moves)
end
return evicted
