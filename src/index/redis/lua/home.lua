-- A worker's record in its space, and the space's birth if it has none.
return guarded(function()
  call('HSETNX', KEYS[2], 'b', ARGV[3])
  local old = call('HGET', KEYS[1], ARGV[1])
  if old ~= ARGV[2] then
    call('HSET', KEYS[1], ARGV[1], ARGV[2])
    call('HINCRBY', KEYS[2], 'g', 1)
  end
  return call('HGET', KEYS[2], 'b')
end)
