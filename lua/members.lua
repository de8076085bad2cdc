-- Walks over the live set as it is, whatever somebody put into it, from the latest deadline to the earliest: whoever sends
-- a heartbeat meanwhile moves away from the walk, so that it always comes to an end.
--
-- KEYS  1 live (zset)
-- ARGV  1 deadline to go on from ('+inf' to begin)  2 members to leave out at that deadline  3 members at most
-- Reply member and deadline of each, as text
-- Appends nothing; reads never write.
-- Cost  O(log n + members)
local live, from, skip, most = KEYS[1], ARGV[1], ARGV[2], ARGV[3]
return redis.call('ZRANGE', live, from, '-inf', 'BYSCORE', 'REV', 'LIMIT', skip, most, 'WITHSCORES')
