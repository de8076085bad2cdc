-- Finds whose deadline has passed, the earliest first, and the next one that will.
--
-- KEYS  1 live (zset)  2 fence (string)  3 hold (string)  4 heard (string)
-- ARGV  1 members at most
-- Reply now_ms, 1 where the fence stands (0: Redis was restarted or has lost its data), for how many ms claims are still
--       on hold, heard in ms (0 for never), the earliest deadline still to come among the members looked at (0 where all
--       of them have passed, -1 where there is none at all), then member and deadline of each that has passed
-- Appends nothing; reads never write.
-- Cost  O(log n + members)
local live, fence, hold, heard, most = KEYS[1], KEYS[2], KEYS[3], KEYS[4], tonumber(ARGV[1])
local now = now_ms()
local held_ms = math.max(redis.call('PTTL', hold), 0)
local reply = { now, standing(fence) and 1 or 0, held_ms, tonumber(redis.call('GET', heard) or 0), -1 }
local earliest = redis.call('ZRANGE', live, 0, most - 1, 'WITHSCORES')
for i = 1, #earliest, 2 do
  local deadline = tonumber(earliest[i + 1])
  if deadline >= now then
    reply[5] = deadline
    return reply
  end
  reply[5] = 0
  reply[#reply + 1] = earliest[i]
  reply[#reply + 1] = deadline
end
return reply
