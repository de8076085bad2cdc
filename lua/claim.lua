-- Claims passed deadlines: turns each into exactly one offline transition, whoever else tries the same.
--
-- KEYS  1 live (zset)  2 transitions (stream)  3 fence (string)  4 hold (string), then the presence key (hash) of each
--       user
-- ARGV  1 ttl_ms, then the id of each user, in the same order
-- Reply how many were claimed by this call; none where the fence does not stand or claims are on hold: deadlines that a
--       server has from before it was restarted may have been overtaken by heartbeats that it has lost
-- Appends offline (expired, at the deadline) for each user whose deadline has passed. A user who came back has a later
--       deadline and is left alone; one whom another call claimed has none. Run again it finds nothing.
-- Cost  O(log n) a user; deleting the key is also the touch that makes Redis publish its expiry
local live, transitions, fence, hold, ttl_ms = KEYS[1], KEYS[2], KEYS[3], KEYS[4], tonumber(ARGV[1])
local now = now_ms()
local USERS = 4 -- so many keys come before the users'; a user's argument stands two places nearer
local AT_ONCE = 1000 -- Lua's stack holds some thousands of values

if not standing(fence) or redis.call('EXISTS', hold) == 1 then
  return 0
end
local claimed, taken = 0, {}
for first = 2, #ARGV, AT_ONCE do
  local last = math.min(first + AT_ONCE - 1, #ARGV)
  local deadlines = redis.call('ZMSCORE', live, unpack(ARGV, first, last))
  local gone, keys = {}, {}
  for i, deadline in ipairs(deadlines) do
    deadline = tonumber(deadline or nil)
    local user = ARGV[first + i - 1]
    if deadline and deadline < now and not taken[user] then
      taken[user] = true
      append(transitions, user, 'offline', 'expired', deadline, deadline - ttl_ms)
      gone[#gone + 1] = user
      keys[#keys + 1] = KEYS[USERS + first + i - 2]
    end
  end
  if #gone > 0 then
    redis.call('ZREM', live, unpack(gone))
    redis.call('DEL', unpack(keys))
    claimed = claimed + #gone
  end
end
return claimed
