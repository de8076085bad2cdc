-- Reads the state of the fence.
--
-- KEYS  1 fence (string: life, cursor)  2 moves (string)  3 heard (string)  4 transitions (stream)
-- ARGV  none
-- Reply five words: the cursor where the fence stands ('' where it does not); the fence of a former life, whole ('' for
--       none); moves ('' for none); heard in ms (0 for never); the ms of the newest id that the stream has given (0 for
--       none)
-- Appends nothing; reads never write.
-- Cost  O(1)
local fence, moves, heard, transitions = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local stands, cursor = standing(fence)
local newest = 0
if redis.call('EXISTS', transitions) == 1 then
  local about = redis.call('XINFO', 'STREAM', transitions)
  for i = 1, #about, 2 do
    if about[i] == 'last-generated-id' then newest = string.match(about[i + 1], '^%d+') end
  end
end
return {
  stands and cursor or '',
  (cursor and not stands) and redis.call('GET', fence) or '',
  redis.call('GET', moves) or '',
  redis.call('GET', heard) or '0',
  tostring(newest),
}
