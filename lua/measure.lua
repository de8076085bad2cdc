-- Measures a shard for the operator: who is present, what waits for SQL, and since when.
--
-- KEYS  1 live (zset)  2 transitions (stream)
-- ARGV  none
-- Reply now_ms, how many are present, how many transitions wait, when the oldest of them was made in ms (now_ms where
--       none waits)
-- Appends nothing; reads never write.
-- Cost  O(log n)
local live, transitions = KEYS[1], KEYS[2]
local now = now_ms()
local oldest = redis.call('XRANGE', transitions, '-', '+', 'COUNT', 1)[1]
return {
  now,
  redis.call('ZCOUNT', live, now, '+inf'),
  redis.call('XLEN', transitions),
  oldest and tonumber(string.match(oldest[1], '^%d+')) or now,
}
