-- One more copy of each block from a run's first on that somebody stored before, where the run's names have the
-- proof of these blocks and what they are called. KEYS: the run, and its names. ARGV: slot, stamp, what the run has as
-- `h`, the proof, and one past the last block's offset, in one string. Answers 1; or 0 without having changed anything where it
-- is not so, or not as simple.
local sub, about = string.sub, ARGV[1]
local slot = sub(about, 1, 4)
local found = redis.pcall('HMGET', KEYS[1], 'h', slot)
if found[1] ~= sub(about, 17, 34) then return 0 end
local value = stretched(found[2], sub(about, 5, 16), 0, string.byte(about, 55))
if not value or redis.pcall('HGET', KEYS[2], 'j') ~= sub(about, 35, 54) then return 0 end
redis.call('HSET', KEYS[1], slot, value)
return 1
