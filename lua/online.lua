-- Lists who is present, most recently seen first (of those with one deadline the one whose id as text is larger), and counts
-- them all.
--
-- KEYS  1 live (zset)  2 hold (string)
-- ARGV  1 offset  2 count (0 for the number alone)  3 deadline in ms and  4 user id behind which to begin, or two empty words
--       (then the offset counts)
-- Reply how many are present, for how many ms claims are still on hold because data was lost (0 for no hold), then user id and
--       deadline in ms of each on the page, as text
-- Appends nothing; reads never write.
-- Cost  O(log n + count); behind a user O(log n · log m) more, m of them with one deadline
local live, hold = KEYS[1], KEYS[2]
local offset, count, deadline, user = tonumber(ARGV[1]), tonumber(ARGV[2]), ARGV[3], ARGV[4]
local now = now_ms()
local present = redis.call('ZCOUNT', live, now, '+inf')
local reply = { string.format('%d', present), string.format('%d', math.max(redis.call('PTTL', hold), 0)) }

-- The first rank behind the user, who need not be there any more.
local function behind()
  local before = redis.call('ZCOUNT', live, '(' .. deadline, '+inf')
  local low, high = before, before + redis.call('ZCOUNT', live, deadline, deadline)
  while low < high do
    local middle = math.floor((low + high) / 2)
    if redis.call('ZRANGE', live, middle, middle, 'REV')[1] >= user then
      low = middle + 1
    else
      high = middle
    end
  end
  return low
end

if count > 0 then
  local first = deadline == '' and offset or behind()
  -- Those whose deadline has passed are the last.
  local last = math.min(first + count, present) - 1
  if first <= last then
    local page = redis.call('ZRANGE', live, first, last, 'REV', 'WITHSCORES')
    for i = 1, #page do
      reply[#reply + 1] = page[i]
    end
  end
end
return reply
