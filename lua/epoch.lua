-- Notes since when this Redis server has been heard: the epoch. A restart, a failover or lost data begin a new one.
--
-- KEYS  1 epoch (string: life, ms)
-- ARGV  none
-- Reply now_ms, the epoch's first ms, 1 where this call began it (else 0)
-- Appends nothing. Run again it finds the epoch begun.
-- Cost  O(1)
local epoch = KEYS[1]
local now, whose = now_ms(), life()
local who, since = string.match(redis.call('GET', epoch) or '', '^(%S+) (%d+)$')
since = tonumber(since)
-- One that lies ahead is from before the clock was set back.
if who == whose and since <= now then
  return { now, since, 0 }
end
redis.call('SET', epoch, string.format('%s %d', whose, now))
return { now, now, 1 }
