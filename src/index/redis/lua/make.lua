-- Makes the store, unless somebody has; answers what it is.
return guarded(function()
  if call('EXISTS', KEYS[1]) == 0 then
    call('HSET', KEYS[1], 'version', ARGV[1], 'birth', ARGV[2], 'groups', ARGV[3], ARGV[4], ARGV[5])
  end
  return call('HGETALL', KEYS[1])
end)
