-- The one place that appends a transition, and the one that ends a presence.

-- Appends one transition. `at` and `seen` (the user's last heartbeat) in ms.
local function append(stream, user, to, reason, at, seen)
  redis.call('XADD', stream, '*', 'user', user, 'to', to, 'reason', reason, 'at', at, 'seen', seen)
end

-- Takes the user out of the live set and says why: as `expired`, at the deadline, where that had passed unclaimed; else
-- as `reason`, now. `seen` as in append; nil where only the deadline tells. Returns whether the user was in it.
local function end_presence(live, stream, key, user, reason, now, ttl_ms, seen)
  local deadline = tonumber(redis.call('ZSCORE', live, user) or nil)
  redis.call('DEL', key)
  if not deadline then
    return false
  end
  redis.call('ZREM', live, user)
  if deadline < now then
    append(stream, user, 'offline', 'expired', deadline, deadline - ttl_ms)
  else
    append(stream, user, 'offline', reason, now, seen or (deadline - ttl_ms))
  end
  return true
end
