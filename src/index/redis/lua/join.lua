-- One more copy of each block of a stretch that somebody stored before, under the same names, in the first run of
-- a segment. KEYS: the run, and its names. ARGV: vocabulary, slot, stamp, what the run has as `h`, the last block's
-- key and the first one's offset, in one string, as each argument costs; and the names. Each key is made of the
-- key before: where the last one is the run's, all are. Answers 1; or 0 without having changed anything where
-- it is not so, or not as simple: then `store` does it.
local sub, about, names = string.sub, ARGV[1], ARGV[2]
local vocabulary, slot, stamp = sub(about, 1, 4), sub(about, 5, 8), sub(about, 9, 20)
local from = string.byte(about, 47)
local to = from + #names / 8
local found = redis.pcall('HMGET', KEYS[1], 'h', 'k', slot)
local have = found[2]
if found[1] ~= sub(about, 21, 38) or not have or sub(have, to * 8 - 7, to * 8) ~= sub(about, 39, 46) then return 0 end
local value = stretched(found[3], stamp, from, to)
if not value then return 0 end
local called = redis.pcall('HGET', KEYS[2], vocabulary)
if from > 0 or called ~= names then
  if type(called) ~= 'string' or sub(called, from * 8 + 1, to * 8) ~= names then return 0 end
end
redis.call('HSET', KEYS[1], slot, value)
return 1
