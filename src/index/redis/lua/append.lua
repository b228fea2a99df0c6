-- Whether a batch of a worker's life is to be applied by this owner, on top of exactly what it says comes before.
-- KEYS[1]: the worker's record. ARGV: life, number and mark before ('-1' and '' for none), number and mark
-- after, owner, lease (ms). Answers 'go', 'again' (it has been), 'other' and the owner that has the lease, or
-- 'apart': something else is there, or a batch was left half applied by somebody else.
return guarded(function()
  local life, before, mark, after, mark_after, owner, lease = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6], ARGV[7]
  local record = call('HMGET', KEYS[1], 'life', 'seq', 'mark', 'owner', 'until', 'going')
  local time = call('TIME')
  local now = time[1] * 1000 + math.floor(time[2] / 1000)
  if record[4] and record[4] ~= owner and tonumber(record[5] or '0') > now then
    return {'other', record[4]}
  end
  if not record[1] or record[1] ~= life then return {'apart', ''} end
  if record[6] and not (record[6] == after and record[4] == owner) then return {'apart', ''} end
  local is_done = record[2] == after and (record[3] or '') == mark_after
  if not is_done and not ((record[2] or '-1') == before and (record[3] or '') == mark) then
    return {'apart', ''}
  end
  call('HSET', KEYS[1], 'owner', owner, 'until', string.format('%.0f', now + lease))
  if is_done then return {'again', ''} end
  call('HSET', KEYS[1], 'going', after)
  return {'go', ''}
end)
