-- Names of one group do not mean these blocks any more. KEYS[1]: what the group's names mean. A block that a name does
-- not mean by itself is one of its run's: then the name does not mean the run any more. Answers for each '1' where it still
-- does.
return guarded(function()
  local still = {}
  for at = 1, #ARGV, 2 do
    local name, where = ARGV[at], ARGV[at + 1]
    local within = char(byte(where) < 64 and 128 or 192) .. sub(where, 2)
    local list = call('HGET', KEYS[1], name) or ''
    local all, next, itself, run = {}, 1, nil, nil
    while next <= #list do
      local length = length_of(list, next)
      local one = sub(list, next, next + length - 1)
      all[#all + 1] = one
      if one == where then itself = #all elseif one == within then run = #all end
      next = next + length
    end
    still[#still + 1] = itself and run and '1' or '0'
    if itself or run then
      table.remove(all, itself or run)
      if #all == 0 then call('HDEL', KEYS[1], name) else call('HSET', KEYS[1], name, table.concat(all)) end
    end
  end
  return table.concat(still)
end)
