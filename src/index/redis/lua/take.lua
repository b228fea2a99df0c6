-- One copy less of blocks of a run, of which a slot may hold some. Answers what `answer` says, with
-- '1' for each block of which it did, and at last 'g' if it holds nothing of the run any more.
return guarded(function()
  local runs, named, tag, id, slot, stamp, offsets = unpack(ARGV)
  local key, hits, lost, out = KEYS[1], {}, 0, {blocks = 0}
  local value = call('HGET', key, slot)
  if not value then return answer(out, 0, string.rep('0', #offsets) .. 'g') end
  local copies = spread(key, value)
  local left = sub(value, 1, 12)
  if applied(stamp, left) then return answer(out, 0, string.rep('1', #offsets)) end
  local last = #value >= 18 and byte(value, #value - 4) or 0
  for at = 1, #offsets do
    local offset = byte(offsets, at)
    local n = copies[offset] or 0
    hits[at] = n > 0 and '1' or '0'
    if n > 0 then
      copies[offset] = n - 1
      if n == 1 then lost = lost + 1 end
    end
  end
  value = gather(stamp == UNSTAMPED and left or stamp, copies)
  if #value == 12 then
    call('HDEL', key, slot)
    hits[#hits + 1] = 'g'
  else
    call('HSET', key, slot, value)
  end
  local ends = #value > 12 and byte(value, #value - 4) or 0
  local length = call('HSTRLEN', key, 'k') / 8
  if ends < last and last == start_of(key) + length then trim(runs, named, tag, id, out) end
  return answer(out, lost, table.concat(hits))
end)
