-- Names the users of whom SQL's mirror may not know the latest yet, with their status: a page of what the stream still holds, or
-- of passed deadlines.
--
-- KEYS  1 live (zset)  2 transitions (stream)
-- ARGV  1 kind of page (stream | passed)  2 the entry's id (stream), or the deadline in ms (passed), behind which to begin ('' for
--       the first)  3 how many at most
-- Reply id of the last entry, or the last deadline ('' for an empty page), how many the page holds, then user id and status of
--       each; the last mention of a user counts. A page of deadlines is longer than asked for where several users share
--       its last one
-- Appends nothing; reads never write.
-- Cost  O(log n + entries)
local live, transitions = KEYS[1], KEYS[2]
local kind, after, most = ARGV[1], ARGV[2], tonumber(ARGV[3])

local function waiting()
  local from = after == '' and '-' or '(' .. after
  local entries = redis.call('XRANGE', transitions, from, '+', 'COUNT', most)
  local reply = { #entries > 0 and entries[#entries][1] or '', string.format('%d', #entries) }
  for _, entry in ipairs(entries) do
    local about = {}
    for i = 1, #entry[2], 2 do about[entry[2][i]] = entry[2][i + 1] end
    reply[#reply + 1], reply[#reply + 2] = about.user or '', about.to or ''
  end
  return reply
end

local function passed()
  -- From above 0: that is the score of the mark of a whole set.
  local from, until_ms = '(' .. (after == '' and '0' or after), '(' .. string.format('%d', now_ms())
  local page = redis.call('ZRANGE', live, from, until_ms, 'BYSCORE', 'LIMIT', 0, most, 'WITHSCORES')
  local last = page[#page] or ''
  local reply = { last, string.format('%d', #page / 2) }
  for i = 1, #page, 2 do
    if #page < most * 2 or page[i + 1] ~= last then
      reply[#reply + 1], reply[#reply + 2] = page[i], 'offline'
    end
  end
  if #page == most * 2 then
    for _, user in ipairs(redis.call('ZRANGE', live, last, last, 'BYSCORE')) do
      reply[#reply + 1], reply[#reply + 2] = user, 'offline'
    end
  end
  return reply
end

return kind == 'stream' and waiting() or passed()
