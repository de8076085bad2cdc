-- Lets go of transitions that SQL has committed: out of the group's pending list and out of the stream in one step.
--
-- KEYS  1 transitions (stream)
-- ARGV  1 group, then the entry ids
-- Reply how many entries left the stream
-- Appends nothing. Run again it finds them gone.
-- Cost  O(1) an entry
local stream, group = KEYS[1], ARGV[1]
local left = 0
for i = 2, #ARGV, 1000 do
  local last = math.min(i + 999, #ARGV)
  redis.pcall('XACK', stream, group, unpack(ARGV, i, last))
  left = left + redis.call('XDEL', stream, unpack(ARGV, i, last))
end
return left
