-- A run of another segment hangs below an offset of this one, or does no more.
return guarded(function()
  local runs, named, tag, id, offset, more = unpack(ARGV)
  local out = {blocks = 0}
  if call('EXISTS', KEYS[1]) == 0 then return answer(out, 0) end
  kid(KEYS[1], tonumber(offset), tonumber(more))
  if tonumber(more) < 0 then trim(runs, named, tag, id, out) end
  return answer(out, 0)
end)
