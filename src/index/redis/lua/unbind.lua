-- Names of one group do not mean these places any more. KEYS[1]: what the group's names mean.
return guarded(function()
  for at = 1, #ARGV, 2 do
    local name, where = ARGV[at], ARGV[at + 1]
    local list = call('HGET', KEYS[1], name)
    if list == where then call('HDEL', KEYS[1], name)
    elseif list then
      local kept, next = {}, 1
      while next <= #list do
        local length = byte(list, next) < 64 and 13 or 21
        local one = sub(list, next, next + length - 1)
        if one ~= where then kept[#kept + 1] = one end
        next = next + length
      end
      if #kept == 0 then call('HDEL', KEYS[1], name) else call('HSET', KEYS[1], name, table.concat(kept)) end
    end
  end
  return 0
end)
