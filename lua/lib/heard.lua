-- A recent instant at which heartbeats were taken under a standing fence: what a restarted Redis must still know of.

-- How old it may be, ms: what a restart loses of these last ones goes unnoticed.
local HEARD_MS = 100

-- Renews it where it is too old and the fence stands, as `stands` tells; returns the instant, or 0 where it stays as it is.
local function renew(heard, now, stands)
  if math.abs(now - tonumber(redis.call('GET', heard) or 0)) < HEARD_MS or not stands() then return 0 end
  redis.call('SET', heard, now)
  return now
end
