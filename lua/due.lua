-- Finds whose deadline has passed, the earliest first, and the next one that will.
--
-- KEYS  1 live (zset)  2 transitions (stream)  3 blocked (set)  4 ended (zset)  5 fence (string)  6 hold (string)
--       7 heard (string)
-- ARGV  1 members at most
-- Reply now_ms, 1 where the fence stands (0: Redis was restarted or has lost data), for how many ms claims are still
--       on hold, heard in ms (0 for never), the earliest deadline still to come among the members looked at (0 where all
--       of them have passed, -1 where there is none at all), the latest deadline of all (0 for none), then member and
--       deadline of each that has passed
-- Appends nothing; reads never write.
-- Cost  O(log n + members)
local live, transitions, blocked, ended, fence, hold, heard = unpack(KEYS)
local most = tonumber(ARGV[1])
local now = now_ms()
local held_ms = math.max(redis.call('PTTL', hold), 0)
local stands = standing(live, transitions, blocked, ended, fence) and 1 or 0
local latest = redis.call('ZRANGE', live, 0, 0, 'REV', 'WITHSCORES')[2]
local reply = { now, stands, held_ms, tonumber(redis.call('GET', heard) or 0), -1, tonumber(latest or 0) }
-- One more, for the mark of a whole live set is the first.
local earliest = redis.call('ZRANGE', live, 0, most, 'WITHSCORES')
for i = 1, #earliest, 2 do
  local deadline = tonumber(earliest[i + 1])
  if earliest[i] == WHOLE then
    deadline = nil
  elseif deadline >= now then
    reply[5] = deadline
    return reply
  end
  if deadline then
    reply[5] = 0
    reply[#reply + 1] = earliest[i]
    reply[#reply + 1] = deadline
  end
end
return reply
