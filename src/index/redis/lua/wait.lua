-- A name waits ('add') or does not wait any more ('end') for what its parent's name will mean.
-- Answers what that means already. KEYS: what names mean, and who waits.
return guarded(function()
  local what, parent, child, ttl = unpack(ARGV)
  local list, kept, known = call('HGET', KEYS[2], parent) or '', {}, false
  for at = 1, #list, 8 do
    local one = sub(list, at, at + 7)
    if one == child then known = true else kept[#kept + 1] = one end
  end
  if what == 'add' then
    if not known then call('HSET', KEYS[2], parent, list .. child) end
    call('EXPIRE', KEYS[2], ttl)
  elseif known then
    if #kept == 0 then call('HDEL', KEYS[2], parent)
    else call('HSET', KEYS[2], parent, table.concat(kept)) end
  end
  return call('HGET', KEYS[1], parent) or ''
end)
