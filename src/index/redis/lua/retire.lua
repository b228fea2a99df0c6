-- A worker's slots, of one tier or of all, are nobody's from now on, or only those in ARGV[4]; ARGV[3]
-- says whether the worker itself goes, too. Answers them. KEYS: table, space, dead slots.
return guarded(function()
  local worker, tier, whole, some = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
  local fields, gone, only = call('HGETALL', KEYS[1]), {}, {}
  for at = 1, #some, 4 do only[sub(some, at, at + 3)] = true end
  for at = 1, #fields, 2 do
    local field, value = fields[at], fields[at + 1]
    if sub(field, 1, 1) == 's' and #field == 5 and sub(value, 1, 4) == worker
      and (tier == '' or sub(value, 9, 9) == tier) and (some == '' or only[sub(field, 2)]) then
      gone[#gone + 1] = sub(field, 2)
      call('HDEL', KEYS[1], field, 'k' .. value)
      call('SADD', KEYS[3], sub(field, 2) .. worker)
    end
  end
  if whole == '1' then call('HDEL', KEYS[1], 'w' .. worker) end
  if #gone > 0 or whole == '1' then call('HINCRBY', KEYS[2], 'g', 1) end
  return gone
end)
