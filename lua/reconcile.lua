-- Declares offline those whom SQL calls present and of whom the live set knows nothing: what a Redis that lost its data
-- leaves behind.
--
-- KEYS  1 live (zset)  2 transitions (stream)  3 epoch (string)
-- ARGV  1 ttl_ms, then for each user: user id, SQL's last_seen in ms ('' for never)
-- Reply -1 this Redis has not yet been heard for a whole TTL: too early to miss anybody; else how many were declared
-- Appends offline (expired, at last_seen + ttl, no later than now) for each user without a deadline. Run again before
--       SQL has taken the first it appends a second, which the chain leaves out.
-- Cost  O(1) a user
local live, transitions, epoch = KEYS[1], KEYS[2], KEYS[3]
local ttl_ms, now = tonumber(ARGV[1]), now_ms()
local who, since = string.match(redis.call('GET', epoch) or '', '^(%S+) (%d+)$')
if who ~= life() or now <= tonumber(since) + ttl_ms then
  return -1
end
local declared = 0
for i = 2, #ARGV, 2 do
  local user, seen = ARGV[i], tonumber(ARGV[i + 1])
  if not redis.call('ZSCORE', live, user) then
    local at = seen and math.min(now, seen + ttl_ms) or now
    append(transitions, user, 'offline', 'expired', at, seen or at)
    declared = declared + 1
  end
end
return declared
