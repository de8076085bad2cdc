-- Raises the fence, moves it along the log of account changes, or takes over the one of a former life: `blocked` and `ended`
-- are complete up to `cursor` from now on.
--
-- KEYS  1 live (zset)  2 transitions (stream)  3 blocked (set)  4 ended (zset)  5 fence (string: life, cursor)
--       6 building (string: token of the building under way)  7 hold (string)  8 lost (string)
-- ARGV  1 step (note | build | move | adopt)  2 cursor ('' to note a loss alone)  3 what must still hold: the token that the building
--       bears (note, build), the cursor that the fence stands at (move), the fence of the former life, whole (adopt)  4 hold_ms: for how long no
--       deadline is claimed from now on, because data was lost (0 for no hold)  5 lost_ms: the last moment at which the lost
--       data are known to have served (0 where none were lost)  6 the newest stream id that SQL holds ('' for none)
--       7 consumer group
-- Reply 1 done, 0 not so: Redis has lost data meanwhile, or another call has moved the fence
-- Appends nothing. A build makes the stream where it is missing, and lets its ids go on above the newest that SQL holds,
--       whatever Redis's clock says: SQL takes only what is newer. Run again it finds the fence there.
-- Cost  O(1)
local live, transitions, blocked, ended, fence, building, hold, lost = unpack(KEYS)
local step, cursor, expected, hold_ms, lost_ms, floor, group = unpack(ARGV)

-- Whether a stream id is below another; both as `<ms>-<seq>`.
local function is_below(one, other)
  local ms, seq = string.match(one, '^(%d+)-(%d+)$')
  local other_ms, other_seq = string.match(other, '^(%d+)-(%d+)$')
  ms, other_ms = tonumber(ms), tonumber(other_ms)
  return ms < other_ms or (ms == other_ms and tonumber(seq) < tonumber(other_seq))
end

local function last_id()
  local about = redis.call('XINFO', 'STREAM', transitions)
  for i = 1, #about, 2 do
    if about[i] == 'last-generated-id' then return about[i + 1] end
  end
end

local function make_whole()
  -- It is there already, as a rule.
  redis.pcall('XGROUP', 'CREATE', transitions, group, '0', 'MKSTREAM')
  if floor ~= '' and is_below(last_id(), floor) then redis.call('XSETID', transitions, floor) end
  redis.call('SADD', blocked, WHOLE)
  redis.call('ZADD', live, 0, WHOLE)
  redis.call('ZADD', ended, 0, WHOLE)
end

local holds
if step == 'build' or step == 'note' then
  holds = redis.call('GET', building) == expected
elseif step == 'move' then
  holds = redis.call('GET', fence) == life() .. ' ' .. expected
else
  holds = redis.call('GET', fence) == expected and is_whole(live, transitions, blocked, ended)
end
if not holds then
  return 0
end
if step == 'build' then make_whole() end
if step ~= 'note' then redis.call('SET', fence, life() .. ' ' .. cursor) end
if tonumber(hold_ms) > 0 then
  redis.call('SET', hold, 'data was lost', 'PX', hold_ms)
end
if tonumber(lost_ms) > tonumber(redis.call('GET', lost) or 0) then
  redis.call('SET', lost, lost_ms)
end
return 1
