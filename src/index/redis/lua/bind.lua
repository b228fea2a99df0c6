-- Binds names of one group of a vocabulary, no two alike. KEYS: what the group's names mean, its unplaced blocks,
-- and who waits. ARGV: how many meanings a name may have, 0 for any number; ttl; then for each run what says that it is
-- meant, its blocks' names, their offsets, and '1' where they may be bound by now: then who means the run means them.
-- The first `free` names are bound by now.
-- Answers one digit for each name: 0 bound before, 1 first meaning, 2 a further one, 3 refused; then, for those
-- that somebody waits for, the number, the unplaced block, and the names that wait.
return guarded(function()
  local key, most = KEYS[1], tonumber(ARGV[1])
  local status, waiting = {}, {}
  local some = call('EXISTS', KEYS[2], KEYS[3]) > 0
  local function bind(name, where, within)
    local list, result = call('HGET', key, name), '1'
    if list then
      local next, count = 1, 0
      result = '2'
      while next <= #list do
        local length = length_of(list, next)
        local one = sub(list, next, next + length - 1)
        if one == where or one == within then result = '0' end
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
  for at = 3, #ARGV, 4 do
    local within, names, offsets, again = ARGV[at], ARGV[at + 1], ARGV[at + 2], ARGV[at + 3] == '1'
    for n = 1, #offsets do
      if #status < free then status[#status + 1] = '1'
      else
        local where = char(byte(within) - 128 + byte(offsets, n)) .. sub(within, 2)
        bind(sub(names, n * 8 - 7, n * 8), where, again and within)
      end
    end
  end
  call('EXPIRE', key, ARGV[2])
  return {table.concat(status), waiting}
end)
