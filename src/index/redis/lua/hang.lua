-- One more run of another segment hangs below an offset of this one. Made with almost every segment,
-- so it goes without what the other scripts share.
local found = redis.call('HMGET', KEYS[1], 'h', 'c')
if not found[1] then return 0 end
local list, parts, count = found[2] or '', {}, 1
for at = 1, #list, 5 do
  if string.sub(list, at, at) == ARGV[1] then
    count = count + struct.unpack('<I4', list, at + 1)
  else
    parts[#parts + 1] = string.sub(list, at, at + 4)
  end
end
parts[#parts + 1] = ARGV[1] .. struct.pack('<I4', count)
redis.call('HSET', KEYS[1], 'c', table.concat(parts))
return 1
