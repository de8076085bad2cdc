-- Names the users of whom SQL's mirror may not know the latest yet, with their status: a page of what the stream still holds,
-- then a page of passed deadlines.
--
-- KEYS  1 live (zset)  2 transitions (stream)
-- ARGV  1 id of the stream's entry at which to begin (`(<id>` behind it, `-` for the first)  2 offset at which to begin among the
--       passed deadlines ('' for not yet: the stream comes first)  3 how many at most
-- Reply id of the last entry ('' where the stream has no more), then user id and status of each; the last mention of a user
--       counts. With an offset: how many passed deadlines the page holds, then the same
-- Appends nothing; reads never write.
-- Cost  O(log n + entries)
local live, transitions = KEYS[1], KEYS[2]
local after, offset, most = ARGV[1], ARGV[2], tonumber(ARGV[3])
if offset == '' then
  local entries = redis.call('XRANGE', transitions, after, '+', 'COUNT', most)
  local reply = { #entries == most and entries[#entries][1] or '' }
  for _, entry in ipairs(entries) do
    local about = {}
    for i = 1, #entry[2], 2 do about[entry[2][i]] = entry[2][i + 1] end
    reply[#reply + 1], reply[#reply + 2] = about.user or '', about.to or ''
  end
  return reply
end
-- From above 0: that is the score of the mark of a whole set.
local passed = redis.call('ZRANGE', live, '(0', '(' .. string.format('%d', now_ms()), 'BYSCORE', 'LIMIT', offset, most)
local reply = { string.format('%d', #passed) }
for _, user in ipairs(passed) do
  reply[#reply + 1], reply[#reply + 2] = user, 'offline'
end
return reply
