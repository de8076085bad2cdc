-- Lets go of transitions that SQL has committed: out of the group's pending list and out of the stream in one step.
--
-- KEYS  1 transitions (stream)
-- ARGV  1 group, then the entry ids in stream order: what take gave, or a part of it
-- Reply how many entries left the stream
-- Appends nothing. Run again it finds them gone.
-- Cost  O(entries / 100) where they are all that lies before the last of them; O(100) an entry where strangers lie between
local stream, group = KEYS[1], ARGV[1]
local count = #ARGV - 1

-- Whether every entry of the stream is one of these, pending behind them, or not yet delivered. Entries that are none of
-- that (another program moved the group, or acknowledged what SQL lacks), and those before the last of these that are pending
-- (they wait for a row that another application holds in SQL), would go with a cut. Redis before 7.0 does not tell.
local function nothing_else_is_there()
  local earlier = redis.pcall('XPENDING', stream, group, '-', ARGV[#ARGV], 1)
  if earlier.err or earlier[1] then
    return false
  end
  local groups = redis.pcall('XINFO', 'GROUPS', stream)
  for _, flat in ipairs(groups.err and {} or groups) do
    local about = {}
    for i = 1, #flat, 2 do about[flat[i]] = flat[i + 1] end
    if about.name == group and about.lag then
      return redis.call('XLEN', stream) == count + about.pending + about.lag
    end
  end
  return false
end

for i = 2, #ARGV, 1000 do
  redis.pcall('XACK', stream, group, unpack(ARGV, i, math.min(i + 999, #ARGV)))
end
if count > 0 and nothing_else_is_there() then
  local ms, seq = string.match(ARGV[#ARGV], '^(%d+)-(%d+)$')
  return redis.call('XTRIM', stream, 'MINID', string.format('%s-%d', ms, tonumber(seq) + 1))
end
local left = 0
for i = 2, #ARGV, 1000 do
  left = left + redis.call('XDEL', stream, unpack(ARGV, i, math.min(i + 999, #ARGV)))
end
return left
