-- Puts off the end of a lease. KEYS[1]: the worker's record. ARGV: life, owner, lease (ms). Answers 1, or 0 if
-- the lease or the life is another's by now.
return guarded(function()
  local record = call('HMGET', KEYS[1], 'life', 'owner')
  if record[1] ~= ARGV[1] or record[2] ~= ARGV[2] then return 0 end
  local time = call('TIME')
  local now = time[1] * 1000 + math.floor(time[2] / 1000)
  call('HSET', KEYS[1], 'until', string.format('%.0f', now + ARGV[3]))
  return 1
end)
