-- Takes a persister's name off the group, unless entries are still pending under it (they would be lost to everyone).
--
-- KEYS  1 transitions (stream)
-- ARGV  1 group  2 consumer
-- Reply 1 the name is gone, 0 it holds entries or there is no group
-- Appends nothing. Run again it finds the name gone.
-- Cost  O(1)
local stream, group, consumer = KEYS[1], ARGV[1], ARGV[2]
local held = redis.pcall('XPENDING', stream, group, '-', '+', 1, consumer)
if held.err or #held > 0 then
  return 0
end
redis.call('XGROUP', 'DELCONSUMER', stream, group, consumer)
return 1
