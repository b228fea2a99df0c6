-- Binds names of one group of a vocabulary, no two alike. KEYS: what the group's names mean, its unplaced blocks,
-- and who waits. ARGV: how many meanings a name may have, 0 for any number; ttl; then for each run
-- what its places have after their first byte, those first bytes, and the names.
-- Answers one digit for each name: 0 bound before, 1 first meaning, 2 a further one, 3 refused; then, for those
-- that somebody waits for, the number, the unplaced block, and the names that wait.
return guarded(function()
  local key, most = KEYS[1], tonumber(ARGV[1])
  local status, waiting = {}, {}
  local some = call('EXISTS', KEYS[2], KEYS[3]) > 0
  local function bind(name, where)
    local list, result = call('HGET', key, name), '1'
    if list then
      local next, count = 1, 0
      result = '2'
      while next <= #list do
        local length = byte(list, next) < 64 and 13 or 21
        if sub(list, next, next + length - 1) == where then result = '0' end
        next, count = next + length, count + 1
      end
      if result == '2' and most > 0 and count >= most then result = '3' end
    end
    if result == '1' or result == '2' then call('HSET', key, name, (list or '') .. where) end
    status[#status + 1] = result
    if some and result ~= '3' then
      local unplaced, names = call('HGET', KEYS[2], name), call('HGET', KEYS[3], name)
      if unplaced or names then
        waiting[#waiting + 1] = {#status - 1, unplaced or '', names or ''}
      end
    end
  end
  for at = 3, #ARGV, 3 do
    local rest, starts, names = ARGV[at], ARGV[at + 1], ARGV[at + 2]
    for one = 1, #starts do bind(sub(names, one * 8 - 7, one * 8), sub(starts, one, one) .. rest) end
  end
  call('EXPIRE', key, ARGV[2])
  return {table.concat(status), waiting}
end)
