-- Claims passed deadlines: turns each into exactly one offline transition, whoever else tries the same.
--
-- KEYS  1 live (zset)  2 transitions (stream)  3 blocked (set)  4 ended (zset)  5 fence (string)  6 hold (string)
--       7 lent (set)  8 lost (string), then the presence key (hash) of each user
-- ARGV  1 ttl_ms, then the id of each user, in the same order
-- Reply how many were claimed by this call; none where the fence does not stand or claims are on hold: deadlines that a
--       server has from before it was restarted may have been overtaken by heartbeats that it has lost
-- Appends offline (expired, at the deadline, but not before lost data served last) for each user whose deadline has passed. A user who came back has a later
--       deadline and is left alone; one whom another call claimed has none. Run again it finds nothing.
-- Cost  O(log n) a user; deleting the key is also the touch that makes Redis publish its expiry
local live, transitions, blocked, ended, fence, hold, lent, lost = unpack(KEYS, 1, 8)
local ttl_ms = tonumber(ARGV[1])
local now = now_ms()
local USERS = 8 -- so many keys come before the users'; the first user's id is the second argument
local AT_ONCE = 1000 -- Lua's stack holds some thousands of values

if not standing(live, transitions, blocked, ended, fence) or redis.call('EXISTS', hold) == 1 then
  return 0
end
local claimed, taken = 0, {}
local served = served_until(lost)
local any_lent = redis.call('EXISTS', lent) == 1
for first = 2, #ARGV, AT_ONCE do
  local last = math.min(first + AT_ONCE - 1, #ARGV)
  local deadlines = redis.call('ZMSCORE', live, unpack(ARGV, first, last))
  local gone, keys = {}, {}
  for i, deadline in ipairs(deadlines) do
    deadline = tonumber(deadline or nil)
    local user = ARGV[first + i - 1]
    if deadline and deadline < now and not taken[user] then
      taken[user] = true
      local seen = any_lent and seen_by_deadline(lent, user, deadline, ttl_ms) or deadline - ttl_ms
      append(transitions, user, 'offline', 'expired', ended_at(deadline, served, now), seen)
      gone[#gone + 1] = user
      keys[#keys + 1] = KEYS[USERS + first + i - 2]
    end
  end
  if #gone > 0 then
    redis.call('ZREM', live, unpack(gone))
    if any_lent then redis.call('SREM', lent, unpack(gone)) end
    redis.call('DEL', unpack(keys))
    claimed = claimed + #gone
  end
end
return claimed
