-- Begins a new life of a worker, whose blocks its owner is about to store from scratch. KEYS[1]: the worker's
-- record. ARGV: the life that it has ('-1' for none), owner, lease (ms), vocabulary. Answers 'go', 'apart' (it has another
-- one by now), or 'other' and the owner that has the lease.
return guarded(function()
  local had, owner, lease = ARGV[1], ARGV[2], ARGV[3]
  local record = call('HMGET', KEYS[1], 'life', 'owner', 'until')
  local time = call('TIME')
  local now = time[1] * 1000 + math.floor(time[2] / 1000)
  if record[2] and record[2] ~= owner and tonumber(record[3] or '0') > now then
    return {'other', record[2]}
  end
  if (record[1] or '-1') ~= had then return {'apart', ''} end
  call('HSET', KEYS[1], 'life', string.format('%.0f', tonumber(had) + 1), 'seq', '-1', 'mark', '',
    'going', 'all', 'voc', ARGV[4], 'owner', owner, 'until', string.format('%.0f', now + lease))
  return {'go', ''}
end)
