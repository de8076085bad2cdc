-- Takes a turn at something that one process at a time does.
--
-- KEYS  1 turn (string with TTL: its holder)
-- ARGV  1 holder  2 span_ms: how long the turn lasts
-- Reply 1 the holder has the turn, 0 another has it
-- Appends nothing. Run again it finds the turn taken.
-- Cost  O(1)
return take_turn(KEYS[1], ARGV[1], tonumber(ARGV[2])) and 1 or 0
