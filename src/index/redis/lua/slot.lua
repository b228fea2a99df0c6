-- The slot of a (worker, group, tier), given out once for each life. ARGV[2] is where slots begin, as
-- for the numbers of texts.
return guarded(function()
  local id = call('HGET', KEYS[1], 'k' .. ARGV[1])
  if id then return id end
  call('HSETNX', KEYS[1], 'n', ARGV[2])
  local next = call('HINCRBY', KEYS[1], 'n', 1)
  id = pack('<I4', next)
  call('HSET', KEYS[1], 'k' .. ARGV[1], id, 's' .. id, ARGV[1])
  call('HINCRBY', KEYS[2], 'g', 1)
  return id
end)
