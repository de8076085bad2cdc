-- Raises the fence, or moves it along the log of account changes: `blocked` is complete up to `cursor` from now on.
--
-- KEYS  1 fence (string: cursor)  2 building (string: token of the building under way)
-- ARGV  1 cursor  2 the cursor that the fence must stand at ('' to raise it)  3 the token that the building must still
--       bear ('' to move it)
-- Reply 1 done, 0 not so: Redis has lost data meanwhile, or someone else has moved the fence
-- Appends nothing. Run again it finds the fence there.
-- Cost  O(1)
local fence, building = KEYS[1], KEYS[2]
local cursor, from, token = ARGV[1], ARGV[2], ARGV[3]
local stands
if token == '' then
  stands = redis.call('GET', fence) == from
else
  stands = redis.call('GET', building) == token
end
if not stands then
  return 0
end
redis.call('SET', fence, cursor)
return 1
