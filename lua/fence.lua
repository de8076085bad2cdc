-- Reads the state of a shard's fence.
--
-- KEYS  1 live (zset)  2 transitions (stream)  3 blocked (set)  4 ended (zset)  5 fence (string: life, cursor)  6 moves (string)
--       7 heard (string)  8 hold (string)
-- ARGV  none
-- Reply seven words: the cursor where the fence stands ('' where it does not); the fence of a former life, whole ('' for
--       none, or where a key that belongs to it is gone); moves ('' for none); heard in ms (0 for never); the ms of the newest
--       id that the stream has given (0 for none); 1 where the shard had a fence, in whatever life, and has lost the live
--       set or the stream since (else 0); 1 while claims are on hold (else 0)
-- Appends nothing; reads never write.
-- Cost  O(1)
local live, transitions, blocked, ended, fence, moves, heard, hold = unpack(KEYS)
local stands, cursor, whole = standing(live, transitions, blocked, ended, fence)
local newest, has_stream = 0, redis.call('EXISTS', transitions) == 1
if has_stream then
  local about = redis.call('XINFO', 'STREAM', transitions)
  for i = 1, #about, 2 do
    if about[i] == 'last-generated-id' then newest = string.match(about[i + 1], '^%d+') end
  end
end
local last_heard = redis.call('GET', heard)
local is_damaged = (cursor or last_heard) and not (has_stream and redis.call('ZSCORE', live, WHOLE))
return {
  stands and cursor or '',
  (whole and not stands) and redis.call('GET', fence) or '',
  redis.call('GET', moves) or '',
  last_heard or '0',
  tostring(newest),
  is_damaged and '1' or '0',
  tostring(redis.call('EXISTS', hold)),
}
