-- Counts one more against a limit, unless it is reached (GCRA; model::limit computes the same).
--
-- KEYS  1 limit (string: the microsecond at which all is given back; its TTL ends then)
-- ARGV  1 the time in which one is given back, us  2 how far ahead all may be given back, us
-- Reply 1 where it counts, 0 where the limit is reached; the time after which the next may come, us
-- Appends nothing. Run again it counts once more: the caller sends it once.
-- Cost  O(1)
local limit = KEYS[1]
local interval, tolerance = tonumber(ARGV[1]), tonumber(ARGV[2])
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000000 + tonumber(time[2])
local latest = now + tolerance
local full = tonumber(redis.call('GET', limit)) or 0
-- No count reaches further ahead: this one is from before the clock was set back.
if full > latest then full = now end
local after = math.max(full, now) + interval
if after > latest then
  return { 0, after - latest }
end
redis.call('SET', limit, string.format('%d', after), 'PXAT', math.ceil(after / 1000))
return { 1, math.max(after + interval - latest, 0) }
