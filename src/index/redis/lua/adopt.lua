-- Says where a run hangs, if it is still there.
return guarded(function()
  if call('EXISTS', KEYS[1]) == 1 then call('HSET', KEYS[1], 'p', ARGV[1]) end
  return 0
end)
