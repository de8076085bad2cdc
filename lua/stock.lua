-- Tells the state of a shard: what waits for SQL and with whom, since when this server has been heard, and which of the
-- shard's keys somebody made something else of.
--
-- KEYS  1 live (zset)  2 transitions (stream)  3 blocked (set)  4 ended (zset)  5 fence (string)  6 moves (string)
--       7 epoch (string)
-- ARGV  1 group  2 the server's run id
-- Reply now_ms; since when this server has been heard, ms (-1 where nobody has noted it); entries in the stream; id of
--       the oldest ('' for none); 1 where the group is there; entries pending; consumer of the oldest pending one; for
--       how many ms it has been with that one; then name and type of each key that is of another type than it must be.
--       Where the stream is one of these nothing is told of it.
-- Appends nothing; reads never write.
-- Cost  O(1)
local transitions, epoch = KEYS[2], KEYS[7]
local group, run_id = ARGV[1], ARGV[2]
local TYPES = { 'zset', 'stream', 'set', 'zset', 'string', 'string', 'string' }
local reply = { now_ms(), -1, 0, '', 0, 0, '', 0 }
local odd = {}
for i, key in ipairs(KEYS) do
  local kind = redis.call('TYPE', key).ok
  if kind ~= 'none' and kind ~= TYPES[i] then
    odd[key] = true
    reply[#reply + 1] = key
    reply[#reply + 1] = kind
  end
end
if not odd[epoch] then
  local who, since = string.match(redis.call('GET', epoch) or '', '^(%S+) (%d+)$')
  if who == run_id then
    reply[2] = tonumber(since)
  end
end
if odd[transitions] then
  return reply
end
reply[3] = redis.call('XLEN', transitions)
local oldest = redis.call('XRANGE', transitions, '-', '+', 'COUNT', 1)
if oldest[1] then
  reply[4] = oldest[1][1]
end
local summary = redis.pcall('XPENDING', transitions, group)
if summary.err then -- there is no such group
  return reply
end
reply[5], reply[6] = 1, summary[1]
local pending = redis.call('XPENDING', transitions, group, '-', '+', 1)
if pending[1] then
  reply[7], reply[8] = pending[1][2], pending[1][3]
end
return reply
