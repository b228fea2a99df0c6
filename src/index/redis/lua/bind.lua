-- Binds names of one group of a vocabulary. KEYS are the group's unplaced blocks and who waits.
-- Answers one digit for each: 0 bound before, 1 first meaning, 2 a further one, 3 refused; then, for those
-- that somebody waits for, the number, the unplaced block, and the names that wait.
return guarded(function()
  local base, most = ARGV[1], tonumber(ARGV[2])
  local status, waiting = {}, {}
  local some = call('EXISTS', KEYS[1], KEYS[2]) > 0
  for at = 3, #ARGV, 3 do
    local key, name, where = base .. ARGV[at], ARGV[at + 1], ARGV[at + 2]
    local result = '1'
    if call('HSETNX', key, name, where) == 0 then
      local list, next, count = call('HGET', key, name), 1, 0
      result = '2'
      while next <= #list do
        local length = byte(list, next) < 64 and 17 or 25
        if sub(list, next, next + length - 1) == where then result = '0' end
        next, count = next + length, count + 1
      end
      if result == '2' and most > 0 and count >= most then result = '3' end
      if result == '2' then call('HSET', key, name, list .. where) end
    end
    status[#status + 1] = result
    if some and result ~= '3' then
      local unplaced, names = call('HGET', KEYS[1], name), call('HGET', KEYS[2], name)
      if unplaced or names then
        waiting[#waiting + 1] = {#status - 1, unplaced or '', names or ''}
      end
    end
  end
  return {table.concat(status), waiting}
end)
