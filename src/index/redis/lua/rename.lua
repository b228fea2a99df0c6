-- A block's name in one vocabulary becomes one in another. KEYS[1]: the names of the block's run.
return guarded(function()
  call('HDEL', KEYS[1], 'j')
  local old, new, start, offset, name = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4]), ARGV[5]
  local at, entry = (offset - start) * 8, char(offset) .. name
  local value = call('HGET', KEYS[1], old) or ''
  if sub(value, at + 1, at + 8) == name then
    call('HSET', KEYS[1], old, sub(value, 1, at) .. UNNAMED .. sub(value, at + 9))
  end
  local kept, also = {}, call('HGET', KEYS[1], old .. '+') or ''
  for from = 1, #also, 9 do
    if sub(also, from, from + 8) ~= entry then kept[#kept + 1] = sub(also, from, from + 8) end
  end
  if #kept == 0 then call('HDEL', KEYS[1], old .. '+')
  else call('HSET', KEYS[1], old .. '+', table.concat(kept)) end
  value = call('HGET', KEYS[1], new) or ''
  local had = sub(value, at + 1, at + 8)
  if name ~= UNNAMED and (had == '' or had == UNNAMED) then
    value = value .. string.rep('\0', at - #value)
    call('HSET', KEYS[1], new, sub(value, 1, at) .. name .. sub(value, at + 9))
  elseif had ~= name or name == UNNAMED then
    also = call('HGET', KEYS[1], new .. '+') or ''
    for from = 1, #also, 9 do if sub(also, from, from + 8) == entry then return 0 end end
    call('HSET', KEYS[1], new .. '+', also .. entry)
  end
  return 0
end)
