-- The one place that appends a transition, and the one that ends a presence.

-- Appends one transition. `at` and `seen` (the user's last heartbeat; '' where none is known) in ms. Never makes the stream: one
-- that was evicted is missed until the fence is raised again, which also restores the order of its ids.
local function append(stream, user, to, reason, at, seen)
  redis.call('XADD', stream, 'NOMKSTREAM', '*', 'user', user, 'to', to, 'reason', reason, 'at', at, 'seen', seen)
end

-- The last heartbeat that follows from a deadline; '' for a presence that an administrator lent, which no heartbeat made.
local function seen_by_deadline(lent, user, deadline, ttl_ms)
  return redis.call('SISMEMBER', lent, user) == 1 and '' or deadline - ttl_ms
end

-- Takes the user out of the live set and says why: as `expired`, at the deadline, where that had passed unclaimed; else
-- as `reason`, now. `seen` as in append; nil where only the deadline tells. Returns whether the user was in it.
local function end_presence(live, stream, lent, key, user, reason, now, ttl_ms, seen)
  local deadline = tonumber(redis.call('ZSCORE', live, user) or nil)
  redis.call('DEL', key)
  if deadline then
    redis.call('ZREM', live, user)
    local by_deadline = seen_by_deadline(lent, user, deadline, ttl_ms)
    if deadline < now then
      append(stream, user, 'offline', 'expired', deadline, by_deadline)
    else
      append(stream, user, 'offline', reason, now, seen or by_deadline)
    end
  end
  redis.call('SREM', lent, user)
  return deadline ~= nil
end
