-- Whether an account and a session are still good, for a request that is no activity.
--
-- KEYS  1 live (zset)  2 transitions (stream)  3 blocked (set)  4 ended (zset)  5 fence (string)
-- ARGV  1 user id  2 sid ('' for a token without one)
-- Reply 0 both are good, -1 the account is blocked, -2 the session has ended, -3 the fence does not stand (Redis was
--       restarted or has lost data): see to it, then ask again
-- Appends nothing; reads never write.
-- Cost  O(1)
local live, transitions, blocked, ended, fence = unpack(KEYS)
local user, sid = ARGV[1], ARGV[2]
if not standing(live, transitions, blocked, ended, fence) then return -3 end
-- A block has ended the session as well, and is what there is to say.
if redis.call('SISMEMBER', blocked, user) == 1 then return -1 end
if sid ~= '' and redis.call('ZSCORE', ended, ended_session(user, sid)) then return -2 end
return 0
