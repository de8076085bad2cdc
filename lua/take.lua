-- Takes the next batch to persist: everything delivered and not acknowledged, oldest first, then new entries. A batch is
-- always a prefix of what SQL lacks, which is what keeps each user's order through any number of persisters.
--
-- KEYS  1 transitions (stream)
-- ARGV  1 group  2 consumer  3 entries at most  4 lease_ms: how long another consumer's turn is respected
--       5 id after which to go on, in the turn that a call before has begun ('' to begin one)
-- Reply now_ms, wait_ms (0, or how long another consumer's turn may still last), then the entries as XRANGE gives them
-- Appends nothing; creates the group where it is missing. Run again it returns the same batch.
-- Cost  O(entries)
local stream = KEYS[1]
local group, consumer, count, lease_ms = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local after = ARGV[5]
local now = now_ms()

local oldest = redis.pcall('XPENDING', stream, group, '-', '+', 1)
if oldest.err then
  if redis.call('EXISTS', stream) == 0 then
    return { now, 0 }
  end
  redis.call('XGROUP', 'CREATE', stream, group, '0')
  oldest = {}
end
if oldest[1] then
  local holder, idle_ms = oldest[1][2], oldest[1][3]
  if holder ~= consumer and idle_ms < lease_ms then
    return { now, lease_ms - idle_ms }
  end
  if after ~= '' then
    -- The turn goes on, though the oldest may wait for a row that is held in SQL, and is not taken again now.
    redis.call('XCLAIM', stream, group, consumer, 0, oldest[1][1], 'JUSTID')
  end
end

local reply = { now, 0 }
local from = '0-0'
if after ~= '' then
  local ms, seq = string.match(after, '^(%d+)-(%d+)$')
  from = string.format('%s-%d', ms, tonumber(seq) + 1)
end
local pending = redis.call('XAUTOCLAIM', stream, group, consumer, 0, from, 'COUNT', count)
for _, entry in ipairs(pending[2]) do
  if entry then reply[#reply + 1] = entry end
end
local room = count - (#reply - 2)
if room > 0 and pending[1] == '0-0' then
  local fresh = redis.call('XREADGROUP', 'GROUP', group, consumer, 'COUNT', room, 'STREAMS', stream, '>')
  if fresh then
    for _, entry in ipairs(fresh[1][2]) do
      reply[#reply + 1] = entry
    end
  end
end
if #reply == 2 and after == '' then
  -- Entries that the group has passed and nobody holds (someone moved the group by hand): SQL lacks them all the same.
  for _, entry in ipairs(redis.call('XRANGE', stream, '-', '+', 'COUNT', count)) do
    reply[#reply + 1] = entry
  end
end
return reply
