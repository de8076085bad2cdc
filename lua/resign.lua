-- Takes a persister's name off the group, and the names of those long gone; never one under which entries are pending
-- (they would be lost to everyone): what the persister leaves in hand is handed over, for whoever asks next.
--
-- KEYS  1 transitions (stream)
-- ARGV  1 group  2 consumer ('' for none)  3 idle_ms: who has not been heard for so long is gone
-- Reply how many names were taken off
-- Appends nothing. Run again it finds them gone. A persister that was only idle comes back with its next turn.
-- Cost  O(consumers + entries in hand)
local stream, group, consumer, idle_ms = KEYS[1], ARGV[1], ARGV[2], tonumber(ARGV[3])
local known = redis.pcall('XINFO', 'CONSUMERS', stream, group)
if known.err then
  return 0
end
local gone = 0
for _, flat in ipairs(known) do
  local about = {}
  for i = 1, #flat, 2 do about[flat[i]] = flat[i + 1] end
  if about.pending == 0 and (about.name == consumer or about.idle >= idle_ms) then
    redis.call('XGROUP', 'DELCONSUMER', stream, group, about.name)
    gone = gone + 1
  elseif about.name == consumer then
    for _, held in ipairs(redis.call('XPENDING', stream, group, '-', '+', about.pending, consumer)) do
      redis.call('XCLAIM', stream, group, consumer, 0, held[1], 'IDLE', idle_ms, 'JUSTID')
    end
  end
end
return gone
