-- Whether a batch of a worker's life is to be applied, and by this owner. KEYS[1]: the worker's record.
-- Answers 'go', 'again' (it has been), 'old' (there was a later life), 'renew' (this is a later life:
-- retire what the earlier one held, then ask with ARGV[5] = '1'), or 'other' and the owner that has the lease.
-- A record of another birth than ARGV[6] is left over from a store that is gone.
return guarded(function()
  local life, seq, owner, lease, renewed = tonumber(ARGV[1]), tonumber(ARGV[2]), ARGV[3], ARGV[4], ARGV[5]
  local record = call('HMGET', KEYS[1], 'life', 'seq', 'owner', 'until', 'b')
  if record[5] ~= ARGV[6] then
    call('DEL', KEYS[1])
    call('HSET', KEYS[1], 'b', ARGV[6])
    record = {}
  end
  local time = call('TIME')
  local now = time[1] * 1000 + math.floor(time[2] / 1000)
  local had = tonumber(record[1] or '-1')
  if had > life then return {'old', ''} end
  if record[3] and record[3] ~= owner and tonumber(record[4] or '0') > now then
    return {'other', record[3]}
  end
  if had < life then
    if had >= 0 and renewed ~= '1' then return {'renew', ''} end
    call('HSET', KEYS[1], 'life', ARGV[1], 'seq', '-1')
    record[2] = '-1'
  end
  call('HSET', KEYS[1], 'owner', owner, 'until', string.format('%.0f', now + lease))
  if seq <= tonumber(record[2] or '-1') then return {'again', ''} end
  return {'go', ''}
end)
