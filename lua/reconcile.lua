-- Declares offline those whom SQL calls present and of whom Redis knows nothing: what a Redis that lost its data leaves behind.
--
-- KEYS  1 live (zset)  2 transitions (stream)  3 blocked (set)  4 ended (zset)  5 fence (string)  6 epoch (string)
--       7 lost (string), then the presence key (hash) of each user
-- ARGV  1 ttl_ms, then for each user: user id, SQL's last_seen in ms ('' for never)
-- Reply -1 the fence does not stand, or this Redis has not yet been heard for a whole TTL, or not since it lost data: too early to
--       miss anybody; else how many were declared
-- Appends offline (expired) for each user without a deadline and without a presence key: at last_seen + ttl, or at the last
--       moment at which lost data are known to have served, if that is later (a user who was present then had a later
--       deadline); no later than now. Run again before SQL has taken the first it appends a second, which the chain
--       leaves out.
-- Cost  2 commands a user
local live, transitions, blocked, ended, fence, epoch, lost = unpack(KEYS, 1, 7)
local USERS = 7 -- so many keys come before the users'
local ttl_ms, now = tonumber(ARGV[1]), now_ms()
local who, since = string.match(redis.call('GET', epoch) or '', '^(%S+) (%d+)$')
local served = served_until(lost)
-- Either way off, for one that lies far ahead is from before a clock was set back.
local heard_enough = who == life() and now > tonumber(since) + ttl_ms and math.abs(now - served) > ttl_ms
if not heard_enough or not standing(live, transitions, blocked, ended, fence) then
  return -1
end
local declared = 0
for i = 2, #ARGV, 2 do
  local user, seen = ARGV[i], tonumber(ARGV[i + 1])
  if not redis.call('ZSCORE', live, user) and redis.call('EXISTS', KEYS[USERS + i / 2]) == 0 then
    -- A last_seen that lies ahead is from before a clock was set back, and tells nothing.
    if seen and seen > now then seen = nil end
    local at = seen and ended_at(seen + ttl_ms, served, now) or now
    append(transitions, user, 'offline', 'expired', at, seen or '')
    declared = declared + 1
  end
end
return declared
