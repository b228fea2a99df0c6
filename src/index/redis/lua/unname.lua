-- A name that was refused is not one of the block's. KEYS[1]: the names of its run. Answers the offsets of the run's
-- blocks that are called so still.
return guarded(function()
  call('HDEL', KEYS[1], 'j')
  local vocabulary, start, offset, name = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4]
  local value, at = call('HGET', KEYS[1], vocabulary) or '', (offset - start) * 8
  if sub(value, at + 1, at + 8) == name then
    call('HSET', KEYS[1], vocabulary, sub(value, 1, at) .. UNNAMED .. sub(value, at + 9))
  end
  local more, kept = vocabulary .. '+', {}
  local also = call('HGET', KEYS[1], more) or ''
  for at = 1, #also, 9 do
    local entry = sub(also, at, at + 8)
    if entry ~= char(offset) .. name then kept[#kept + 1] = entry end
  end
  if also ~= '' then
    if #kept == 0 then call('HDEL', KEYS[1], more) else call('HSET', KEYS[1], more, table.concat(kept)) end
  end
  return called_so(start, call('HGET', KEYS[1], vocabulary) or '', table.concat(kept), name)
end)
