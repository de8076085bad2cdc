-- Brings fence and live set in line with what SQL says of some accounts, unless someone else did so since SQL was asked.
--
-- KEYS  1 live (zset)  2 transitions (stream)  3 blocked (set)  4 moves (string), then the presence key (hash) of each
--       account
-- ARGV  1 ttl_ms  2 the moves as they were before SQL was asked ('' for none), then for each account: user id, verdict
--       (block | allow | gone)
-- Reply -1 somebody else was here: ask SQL again; else how many users were taken offline
-- Appends offline (blocked) for each blocked user who was present, or (expired) where the deadline had passed unclaimed;
--       nothing for an account that is gone. A second run finds the moves changed, and changes nothing.
-- Cost  O(log n) an account
local live, transitions, blocked, moves = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local ttl_ms, expected = tonumber(ARGV[1]), ARGV[2]
if (redis.call('GET', moves) or '') ~= expected then
  return -1
end
local now = now_ms()
local evicted = 0
for i = 0, (#ARGV - 2) / 2 - 1 do
  local key, user, verdict = KEYS[5 + i], ARGV[3 + i * 2], ARGV[4 + i * 2]
  if verdict == 'allow' then
    redis.call('SREM', blocked, user)
  else
    redis.call('SADD', blocked, user)
    if verdict == 'gone' then
      redis.call('DEL', key)
      evicted = evicted + redis.call('ZREM', live, user)
    else
      local latest = survey(key, now).latest
      if end_presence(live, transitions, key, user, 'blocked', now, ttl_ms, latest > 0 and latest or nil) then
        evicted = evicted + 1
      end
    end
  end
end
-- Begins with the time, so that no count from before a loss of data comes again.
if expected == '' then
  redis.call('SET', moves, now * 1000)
else
  redis.call('INCR', moves)
end
return evicted
