-- All that a slot holds of a run.
return guarded(function()
  local runs, named, tag, id, slot = unpack(ARGV)
  local key, lost, out = KEYS[1], 0, {blocks = 0}
  local value = call('HGET', key, slot)
  if not value then return answer(out, 0) end
  for at = 13, #value - 5, 6 do lost = lost + byte(value, at + 1) - byte(value, at) end
  call('HDEL', key, slot)
  trim(runs, named, tag, id, out)
  return answer(out, lost)
end)
