-- Walks over the fence's accounts as they are; who is added or taken out meanwhile may be met or not.
--
-- KEYS  1 blocked (set)
-- ARGV  1 place to go on from ('0' to begin)  2 accounts at a time, about
-- Reply the place to go on from ('0' at the end), then user ids; one may come twice
-- Appends nothing; reads never write.
-- Cost  O(accounts of the page)
local page = redis.call('SSCAN', KEYS[1], ARGV[1], 'COUNT', ARGV[2])
table.insert(page[2], 1, page[1])
return page[2]
