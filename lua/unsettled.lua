-- Names the users of whom SQL's mirror may not know the latest yet, with their status.
--
-- KEYS  1 live (zset)  2 transitions (stream)
-- ARGV  1 how many at most, of each of the two kinds
-- Reply user id and status of each: what the stream still holds in its order, then offline for passed deadlines; the last
--       mention of a user counts
-- Appends nothing; reads never write.
-- Cost  O(entries)
local live, transitions, most = KEYS[1], KEYS[2], tonumber(ARGV[1])
local now = now_ms()
local reply = {}
for _, entry in ipairs(redis.call('XREVRANGE', transitions, '+', '-', 'COUNT', most)) do
  local fields = entry[2]
  for i = 1, #fields, 2 do
    if fields[i] == 'user' or fields[i] == 'to' then
      reply[#reply + 1] = fields[i + 1]
    end
  end
end
-- newest first so far: turn it round, pair by pair
local ordered = {}
for i = #reply - 1, 1, -2 do
  ordered[#ordered + 1] = reply[i]
  ordered[#ordered + 1] = reply[i + 1]
end
for _, user in ipairs(redis.call('ZRANGE', live, '-inf', '(' .. string.format('%d', now), 'BYSCORE', 'LIMIT', 0, most)) do
  ordered[#ordered + 1] = user
  ordered[#ordered + 1] = 'offline'
end
return ordered
