-- Turns at something that one process at a time does, bounded by a TTL.

-- Takes the turn for `span_ms`, unless another holder has it. A turn that would last longer than its span is from before
-- the clock was set back, and counts as over. Returns whether `holder` has it now.
local function take_turn(turn, holder, span_ms)
  if redis.call('SET', turn, holder, 'NX', 'PX', span_ms) then return true end
  if redis.call('PTTL', turn) > span_ms then
    redis.call('SET', turn, holder, 'PX', span_ms)
    return true
  end
  return redis.call('GET', turn) == holder
end
