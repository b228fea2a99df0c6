-- A batch was applied. KEYS[1]: the worker's record. ARGV: life, number, owner, mark (may be missing). Answers
-- 1, or 0 if the lease or the life is another's by now.
return guarded(function()
  local record = call('HMGET', KEYS[1], 'life', 'seq', 'owner')
  if tonumber(record[1] or '-1') ~= tonumber(ARGV[1]) or record[3] ~= ARGV[3] then return 0 end
  if tonumber(ARGV[2]) >= tonumber(record[2] or '-1') then
    call('HSET', KEYS[1], 'seq', ARGV[2], 'mark', ARGV[4] or '')
    call('HDEL', KEYS[1], 'going')
  end
  return 1
end)
