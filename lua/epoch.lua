-- Notes since when this Redis server has been heard: the epoch. A restart, a failover or lost data begin a new one.
--
-- KEYS  1 epoch (string: run id, ms)
-- ARGV  1 the server's run id
-- Reply now_ms, the epoch's first ms, 1 where this call began it (else 0)
-- Appends nothing. Run again it finds the epoch begun.
-- Cost  O(1)
local epoch, run_id = KEYS[1], ARGV[1]
local now = now_ms()
local who, since = string.match(redis.call('GET', epoch) or '', '^(%S+) (%d+)$')
if who == run_id then
  return { now, tonumber(since), 0 }
end
redis.call('SET', epoch, string.format('%s %d', run_id, now))
return { now, now, 1 }
