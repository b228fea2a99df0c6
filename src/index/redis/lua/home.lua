-- A worker's record in its space. A space of another birth is what is left of a store that is gone: it begins
-- anew.
return guarded(function()
  if call('HGET', KEYS[2], 'b') ~= ARGV[3] then
    call('DEL', KEYS[1], KEYS[2])
    call('HSET', KEYS[2], 'b', ARGV[3])
  end
  local old = call('HGET', KEYS[1], ARGV[1])
  if old ~= ARGV[2] then
    call('HSET', KEYS[1], ARGV[1], ARGV[2])
    call('HINCRBY', KEYS[2], 'g', 1)
  end
  return 0
end)
