-- A run of another segment does not hang below an offset of this one any more.
return guarded(function()
  local runs, named, tag, id, offset = unpack(ARGV)
  local out = {blocks = 0}
  if call('EXISTS', KEYS[1]) == 0 then return answer(out, 0) end
  kid(KEYS[1], tonumber(offset), -1)
  trim(runs, named, tag, id, out)
  return answer(out, 0)
end)
