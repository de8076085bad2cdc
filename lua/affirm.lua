-- Says again of users who are present what their status is: for SQL, where it says otherwise because Redis came back with
-- data from before they left.
--
-- KEYS  1 live (zset)  2 transitions (stream), then the presence key (hash) of each user
-- ARGV  the id of each user
-- Reply how many are present, and were said again
-- Appends the user's status (heartbeat, now) for each who is present. Where SQL knew, the chain leaves it out; so it does
--       when this is run again.
-- Cost  O(sessions) a user
local live, transitions = KEYS[1], KEYS[2]
local now = now_ms()
local affirmed = 0
for i, user in ipairs(ARGV) do
  local deadline = tonumber(redis.call('ZSCORE', live, user) or nil)
  local found = survey(KEYS[i + 2], now)
  if deadline and deadline >= now and found.status then
    append(transitions, user, redis.call('HGET', KEYS[i + 2], 'status'), 'heartbeat', now, found.latest > 0 and found.latest or '')
    affirmed = affirmed + 1
  end
end
return affirmed
