-- The life of this server. A restart or a failover begins another, perhaps with older data: until someone who knows what
-- was there before has looked, nobody becomes newly present and no deadline is claimed.

local function life()
  return string.match(redis.call('INFO', 'server'), 'run_id:(%x+)') or 'unknown'
end

-- Whether a fence (`<life> <cursor>`) was raised, or taken over, in this very life; its cursor.
local function standing(fence)
  local whose, cursor = string.match(redis.call('GET', fence) or '', '^(%S+) (.*)$')
  return whose == life(), cursor
end
