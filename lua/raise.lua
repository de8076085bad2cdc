-- Raises the fence, moves it along the log of account changes, or takes over the one of a former life: `blocked` is
-- complete up to `cursor` from now on.
--
-- KEYS  1 fence (string: life, cursor)  2 building (string: token of the building under way)  3 hold (string)
-- ARGV  1 step (build | move | adopt)  2 cursor  3 what must still hold: the token that the building bears (build), the
--       cursor that the fence stands at (move), the fence of the former life, whole (adopt)  4 hold_ms: for how long no
--       deadline is claimed from now on, because data was lost (0 for no hold)
-- Reply 1 done, 0 not so: Redis has lost data meanwhile, or someone else has moved the fence
-- Appends nothing. Run again it finds the fence there.
-- Cost  O(1)
local fence, building, hold = KEYS[1], KEYS[2], KEYS[3]
local step, cursor, expected, hold_ms = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4])
local holds
if step == 'build' then
  holds = redis.call('GET', building) == expected
elseif step == 'move' then
  holds = redis.call('GET', fence) == life() .. ' ' .. expected
else
  holds = redis.call('GET', fence) == expected
end
if not holds then
  return 0
end
redis.call('SET', fence, life() .. ' ' .. cursor)
if hold_ms > 0 then
  redis.call('SET', hold, 'data was lost', 'PX', hold_ms)
end
return 1
