-- Names of one group do not mean these blocks any more. KEYS[1]: what the group's names mean. ARGV: for each the name, the
-- block's place, and the offsets of other blocks that its run calls so. Where the list has each of these by itself, the
-- run is meant no more.
return guarded(function()
  for at = 1, #ARGV, 3 do
    local name, where, others = ARGV[at], ARGV[at + 1], ARGV[at + 2]
    local child, tail = byte(where) < 64 and 0 or 64, sub(where, 2)
    local list, all, has, next = call('HGET', KEYS[1], name) or '', {}, {}, 1
    while next <= #list do
      local length = length_of(list, next)
      local one = sub(list, next, next + length - 1)
      all[#all + 1], has[one], next = one, true, next + length
    end
    local within, needed = char(128 + child) .. tail, false
    for other = 1, #others do
      needed = needed or not has[char(byte(others, other) + child) .. tail]
    end
    local kept = {}
    for _, one in ipairs(all) do
      if one ~= where and (one ~= within or needed) then kept[#kept + 1] = one end
    end
    if #kept == 0 then call('HDEL', KEYS[1], name)
    elseif #kept < #all then call('HSET', KEYS[1], name, table.concat(kept)) end
  end
  return 0
end)
