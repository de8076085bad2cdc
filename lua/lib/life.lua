-- The life of this server, and whether a shard's bookkeeping is whole.
--
-- A restart or a failover begins another life, perhaps with older data. Eviction, or an operator's DEL, may take any single
-- key. In both cases nobody becomes newly present and no deadline is claimed until an instance has compared Redis with SQL
-- and raised the fence again.

-- A member of `blocked`, `live` (score 0) and `ended` (score 0) that is no user: it goes with the key, so that a key which was
-- lost and made anew by a later write is told from one that is complete.
local WHOLE = '0'

local function life()
  return string.match(redis.call('INFO', 'server'), 'run_id:(%x+)') or 'unknown'
end

-- Whether none of the keys that belong together has been lost since the fence was raised.
local function is_whole(live, transitions, blocked, ended)
  return redis.call('EXISTS', transitions) == 1
    and redis.call('SISMEMBER', blocked, WHOLE) == 1
    and redis.call('ZSCORE', live, WHOLE) ~= false
    and redis.call('ZSCORE', ended, WHOLE) ~= false
end

-- Whether the fence (`<life> <cursor>`) was raised, or taken over, in this very life and the shard is whole; the fence's
-- cursor, and whether the shard is whole, whatever life the fence is of.
local function standing(live, transitions, blocked, ended, fence)
  local whose, cursor = string.match(redis.call('GET', fence) or '', '^(%S+) (.*)$')
  local whole = cursor ~= nil and is_whole(live, transitions, blocked, ended)
  return whole and whose == life(), cursor, whole
end
