-- Binds names that mean nothing yet, in a group where nothing waits, and says whether that is so; else nothing
-- is changed. `key`, `unplaced` and `waiting` are the KEYS of `bind`; `bound` has each name and its place.
local function bind_free(key, unplaced, waiting, ttl, names, bound)
  local found = redis.pcall('HMGET', key, unpack(names))
  local free = not found.err
  for at = 1, #names do free = free and not found[at] end
  if not free or redis.call('EXISTS', unplaced, waiting) > 0 then return false end
  redis.call('HSET', key, unpack(bound))
  redis.call('EXPIRE', key, ttl)
  return true
end
