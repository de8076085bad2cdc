-- Finds whose deadline has passed, the earliest first, and the next one that will.
--
-- KEYS  1 live (zset)
-- ARGV  1 members at most
-- Reply now_ms, the earliest deadline still to come among the members looked at (0 where all looked at have passed, -1
--       where there is none at all), then member and deadline of each that has passed
-- Appends nothing; reads never write.
-- Cost  O(log n + members)
local live, most = KEYS[1], tonumber(ARGV[1])
local now = now_ms()
local reply = { now, -1 }
local earliest = redis.call('ZRANGE', live, 0, most - 1, 'WITHSCORES')
for i = 1, #earliest, 2 do
  local deadline = tonumber(earliest[i + 1])
  if deadline >= now then
    reply[2] = deadline
    return reply
  end
  reply[2] = 0
  reply[#reply + 1] = earliest[i]
  reply[#reply + 1] = deadline
end
return reply
