-- Lists who is present, most recently seen first, and counts them all.
--
-- KEYS  1 live (zset)
-- ARGV  1 offset  2 count (0 for the number alone)
-- Reply how many are present, then user id and deadline in ms of each on the page
-- Appends nothing; reads never write.
-- Cost  O(log n + offset + count)
local live, offset, count = KEYS[1], tonumber(ARGV[1]), tonumber(ARGV[2])
local now = now_ms()
local reply = { redis.call('ZCOUNT', live, now, '+inf') }
if count > 0 then
  local page = redis.call('ZRANGE', live, '+inf', now, 'BYSCORE', 'REV', 'LIMIT', offset, count, 'WITHSCORES')
  for i = 1, #page do
    reply[i + 1] = tonumber(page[i]) or 0 -- 0: a member that is no user id
  end
end
return reply
