-- The slot of a (worker, group, tier), given out once for each life; nothing if the worker has slots of
-- ARGV[3] other groups; '?' if the worker has no record, as nobody would see what it holds. ARGV[2] is where slots
-- begin, as for the numbers of texts.
return guarded(function()
  local own, most = ARGV[1], tonumber(ARGV[3])
  if call('HEXISTS', KEYS[1], 'w' .. sub(own, 1, 4)) == 0 then return '?' end
  local id = call('HGET', KEYS[1], 'k' .. own)
  if id then return id end
  local others, count = {}, 0
  for _, field in ipairs(call('HKEYS', KEYS[1])) do
    local group = sub(field, 6, 9)
    if #field == 10 and sub(field, 1, 5) == 'k' .. sub(own, 1, 4) and group ~= sub(own, 5, 8)
      and not others[group] then
      others[group], count = true, count + 1
    end
  end
  if count >= most then return '' end
  call('HSETNX', KEYS[1], 'n', ARGV[2])
  local next = call('HINCRBY', KEYS[1], 'n', 1)
  id = pack('<I4', next)
  call('HSET', KEYS[1], 'k' .. own, id, 's' .. id, own)
  call('HINCRBY', KEYS[2], 'g', 1)
  return id
end)
