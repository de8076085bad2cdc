-- Finds whose deadline has passed, the earliest first, and the next one that will.
--
-- KEYS  1 live (zset)  2 fence (string)
-- ARGV  1 members at most
-- Reply now_ms, 1 where the fence stands (0: Redis has lost its data), the earliest deadline still to come among the
--       members looked at (0 where all of them have passed, -1 where there is none at all), then member and deadline of
--       each that has passed
-- Appends nothing; reads never write.
-- Cost  O(log n + members)
local live, fence, most = KEYS[1], KEYS[2], tonumber(ARGV[1])
local now = now_ms()
local reply = { now, redis.call('EXISTS', fence), -1 }
local earliest = redis.call('ZRANGE', live, 0, most - 1, 'WITHSCORES')
for i = 1, #earliest, 2 do
  local deadline = tonumber(earliest[i + 1])
  if deadline >= now then
    reply[3] = deadline
    return reply
  end
  reply[3] = 0
  reply[#reply + 1] = earliest[i]
  reply[#reply + 1] = deadline
end
return reply
