-- Names of one group do not mean these places any more.
return guarded(function()
  local base = ARGV[1]
  for at = 2, #ARGV, 3 do
    local key, name, where = base .. ARGV[at], ARGV[at + 1], ARGV[at + 2]
    local list = call('HGET', key, name)
    if list == where then call('HDEL', key, name)
    elseif list then
      local kept, next = {}, 1
      while next <= #list do
        local length = byte(list, next) < 64 and 17 or 25
        local one = sub(list, next, next + length - 1)
        if one ~= where then kept[#kept + 1] = one end
        next = next + length
      end
      if #kept == 0 then call('HDEL', key, name) else call('HSET', key, name, table.concat(kept)) end
    end
  end
  return 0
end)
