-- The number of a text, given out once.
return guarded(function()
  local id = call('HGET', KEYS[1], ARGV[1])
  if id then return tonumber(id) end
  local next = call('HINCRBY', KEYS[1], 'n', 1)
  call('HSET', KEYS[1], ARGV[1], next)
  return next
end)
