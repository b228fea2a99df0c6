-- The number of a text, given out once. ARGV[2] is where numbers begin: a random number, so that a client
-- that has not noticed that the store was emptied does not write under another's numbers.
return guarded(function()
  local id = call('HGET', KEYS[1], ARGV[1])
  if id then return tonumber(id) end
  call('HSETNX', KEYS[1], 'n', ARGV[2])
  local next = call('HINCRBY', KEYS[1], 'n', 1)
  call('HSET', KEYS[1], ARGV[1], next)
  return next
end)
