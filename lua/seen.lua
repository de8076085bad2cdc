-- Pages through who is present by deadline: what the write-behind of last_seen reads, and whatever compares present users with
-- something else.
--
-- KEYS  1 live (zset)  2 lent (set)
-- ARGV  1 deadline in ms after which to start ('' for now)  2 deadline at which to end (+inf for the last; whoever sends
--       heartbeats meanwhile moves ahead of a reader without end)  3 members at most
-- Reply now_ms, the last deadline of the page ('' for an empty one), then user id and deadline in ms of each as text, ascending;
--       the deadline is '' where an administrator lent the presence: no heartbeat made it. The page is longer than asked for
--       where several users share its last deadline
-- Appends nothing; reads never write.
-- Cost  O(log n + members)
local live, lent, after, until_ms, most = KEYS[1], KEYS[2], ARGV[1], ARGV[2], tonumber(ARGV[3])
local now = now_ms()
local from = after == '' and now or ('(' .. after)
local page = redis.call('ZRANGE', live, from, until_ms, 'BYSCORE', 'LIMIT', 0, most, 'WITHSCORES')
if #page == most * 2 then
  local last = page[#page]
  local known = {}
  for i = 1, #page, 2 do known[page[i]] = true end
  local ties = redis.call('ZRANGE', live, last, last, 'BYSCORE')
  for _, user in ipairs(ties) do
    if not known[user] then
      page[#page + 1] = user
      page[#page + 1] = last
    end
  end
end
local any_lent = redis.call('EXISTS', lent) == 1
local reply = { string.format('%d', now), page[#page] or '' }
for i = 1, #page, 2 do
  local is_lent = any_lent and redis.call('SISMEMBER', lent, page[i]) == 1
  reply[i + 2], reply[i + 3] = page[i], is_lent and '' or page[i + 1]
end
return reply
