-- An unplaced block: ARGV[1] says what is to be done with a slot's copies of it.
-- KEYS[1] is the hash of unplaced blocks. A value is '\0', or '\1' and the link (24 bytes), then
-- (slot 4, stamp 12, copies u32) for each holder. Answers {known before, hit, value before, value
-- after}.
return guarded(function()
  local what, name, link, slot, stamp, copies, ttl = unpack(ARGV)
  local value = call('HGET', KEYS[1], name)
  local before, parts, hit = value or '', {}, 0
  if what == 'lift' then
    if value then call('HDEL', KEYS[1], name) end
    return {value and 1 or 0, 0, before, ''}
  end
  if not value and what ~= 'add' then return {0, 0, '', ''} end
  local own, at = '\0', 2
  if value and byte(value) == 1 then own, at = sub(value, 1, 25), 26 end
  if (#before - at + 1) % 20 ~= 0 and value then damaged(KEYS[1]) end
  if own == '\0' and what == 'add' and link ~= '' then own = '\1' .. link end
  for from = at, #before, 20 do
    local holder = sub(before, from, from + 19)
    if sub(holder, 1, 4) == slot then
      local left, n = sub(holder, 5, 16), unpacked('<I4', holder, 17)
      hit = 1
      if applied(stamp, left) then n = n
      elseif what == 'add' then n = math.min(n + tonumber(copies), 4294967295)
      elseif what == 'take' then n = n - 1
      else n = 0 end
      if stamp == UNSTAMPED then stamp = left end
      holder = n > 0 and slot .. stamp .. pack('<I4', n) or ''
    end
    parts[#parts + 1] = holder
  end
  if hit == 0 and what == 'add' then
    parts[#parts + 1] = slot .. stamp .. pack('<I4', tonumber(copies))
  end
  local after = own .. table.concat(parts)
  if #after == #own then
    call('HDEL', KEYS[1], name)
    after = ''
  else
    call('HSET', KEYS[1], name, after)
    call('EXPIRE', KEYS[1], ttl)
  end
  return {value and 1 or 0, hit, before, after}
end)
