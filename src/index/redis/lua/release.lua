-- A text has its number no more, if that is still this one: whoever uses the text again begins anew.
return guarded(function()
  if call('HGET', KEYS[1], ARGV[1]) == ARGV[2] then return call('HDEL', KEYS[1], ARGV[1]) end
  return 0
end)
