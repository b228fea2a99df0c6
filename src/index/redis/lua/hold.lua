-- One more copy of blocks that are there. Answers for each '1', or '0' where it is not there; then
-- the entries gained, and whether the slot held nothing of the run.
return guarded(function()
  local slot, stamp, copies, offsets = unpack(ARGV)
  local key, hits, gained, first = KEYS[1], {}, 0, 0
  local have = call('HGET', key, 'k')
  if not have then return {string.rep('0', #offsets), 0, 0} end
  local start = start_of(key)
  local value = call('HGET', key, slot)
  if value and #value >= 12 and applied(stamp, sub(value, 1, 12)) then
    return {string.rep('1', #offsets), 0, 0}
  end
  for at = 1, #offsets do
    local offset = byte(offsets, at)
    if offset < start or offset >= start + #have / 8 then hits[at] = '0'
    else
      -- Stamped with the last of them only, so that the first does not hide the others.
      local got, _, fresh =
        add(key, slot, at == #offsets and stamp or UNSTAMPED, offset, offset + 1, tonumber(copies))
      gained, hits[at] = gained + got, '1'
      if fresh then first = 1 end
    end
  end
  return {table.concat(hits), gained, first}
end)
