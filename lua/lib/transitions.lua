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

-- Until when data served that are lost, ms; 0 where none were.
local function served_until(lost)
  return tonumber(redis.call('GET', lost) or 0)
end

-- When a presence ended whose deadline has passed: at the deadline, but not before lost data served last. The user may have had a
-- later deadline in them.
local function ended_at(deadline, served, now)
  return math.min(now, math.max(deadline, served))
end

-- The same for one presence: nil where its deadline has not passed, or tells nothing because claims are on hold.
local function expired_at(shard, deadline, now)
  if deadline >= now or redis.call('EXISTS', shard.hold) == 1 then return nil end
  return ended_at(deadline, served_until(shard.lost), now)
end

-- Takes the user out of the live set and says why: as `expired` where the deadline had passed unclaimed; else as `reason`,
-- now (nil: the user stays, and nothing is said). `shard` names its keys live, transitions, lent, hold and lost; `seen` as in
-- append, nil where only the deadline tells. Returns whether the user was in it.
local function end_presence(shard, key, user, reason, now, ttl_ms, seen)
  local deadline = tonumber(redis.call('ZSCORE', shard.live, user) or nil)
  redis.call('DEL', key)
  if deadline then
    redis.call('ZREM', shard.live, user)
    local by_deadline = seen_by_deadline(shard.lent, user, deadline, ttl_ms)
    local expired = expired_at(shard, deadline, now)
    if expired then
      append(shard.transitions, user, 'offline', 'expired', expired, by_deadline)
    elseif reason then
      append(shard.transitions, user, 'offline', reason, now, seen or by_deadline)
    end
  end
  redis.call('SREM', shard.lent, user)
  return deadline ~= nil
end
