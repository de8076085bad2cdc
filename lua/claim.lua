-- Claims passed deadlines: turns each into exactly one offline transition, whoever else tries the same.
--
-- KEYS  1 live (zset)  2 transitions (stream)  3 fence (string)  4 hold (string), then the presence key (hash) of each
--       user
-- ARGV  1 ttl_ms, then the id of each user
-- Reply how many were claimed by this call; none where the fence does not stand or claims are on hold: deadlines that a
--       server has from before it was restarted may have been overtaken by heartbeats that it has lost
-- Appends offline (expired, at the deadline) for each user whose deadline has passed. A user who came back has a later
--       deadline and is left alone; one whom another call claimed has none. Run again it finds nothing.
-- Cost  O(log n) a user; deleting the key is also the touch that makes Redis publish its expiry
local live, transitions, fence, hold, ttl_ms = KEYS[1], KEYS[2], KEYS[3], KEYS[4], tonumber(ARGV[1])
local now = now_ms()
local claimed = 0
if not standing(fence) or redis.call('EXISTS', hold) == 1 then
  return claimed
end
for i = 2, #ARGV do
  local user = ARGV[i]
  local deadline = tonumber(redis.call('ZSCORE', live, user) or nil)
  if deadline and deadline < now then
    end_presence(live, transitions, KEYS[i + 3], user, 'expired', now, ttl_ms)
    claimed = claimed + 1
  end
end
return claimed
