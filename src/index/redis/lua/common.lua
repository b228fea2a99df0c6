-- What the scripts share. A run is the hash `<runs><key in hex>`, its names the hash
-- `<named><key in hex>`; docs/redis.md has the fields byte by byte.
local sub, byte, char = string.sub, string.byte, string.char
local pack, unpacked = struct.pack, struct.unpack
local UNSTAMPED, UNNAMED = string.rep('\0', 12), string.rep('\0', 8)

local function damaged(key) error({err = 'DAMAGED value under ' .. key}) end

local touched
local function call(name, key, ...)
  touched = key or touched
  local reply
  if key then reply = redis.pcall(name, key, ...) else reply = redis.pcall(name) end
  if type(reply) == 'table' and reply.err then
    if string.find(reply.err, 'WRONGTYPE', 1, true) or string.find(reply.err, 'not an integer', 1, true) then
      damaged(key)
    end
    error({err = reply.err})
  end
  return reply
end

local function hex(id)
  return string.format('%02x%02x%02x%02x%02x%02x%02x%02x', byte(id, 1, 8))
end

-- Where a block is: offset and tag, and the run unless that is the segment's first.
local function place(tag, id, offset)
  if id == sub(tag, 1, 8) then return char(offset) .. tag end
  return char(offset + 64) .. tag .. id
end

-- How long what begins there in a list of meanings is.
local function length_of(list, at) return byte(list, at) % 128 < 64 and 13 or 21 end

local function run_of(place)
  if byte(place) < 64 then return sub(place, 2, 9) end
  return sub(place, 14, 21)
end

-- Whether what has this stamp has been applied by whoever left that one.
local function applied(stamp, left)
  if stamp == UNSTAMPED then return false end
  local a, b, c = unpacked('>I4I4I4', stamp)
  local x, y, z = unpacked('>I4I4I4', left)
  if a ~= x then return a < x end
  if b ~= y then return b < y end
  return c <= z
end

-- A holder's value as copies by offset, and back.
local function spread(key, value)
  if #value < 12 or (#value - 12) % 6 ~= 0 then damaged(key) end
  local copies = {}
  for at = 13, #value, 6 do
    local from, to, n = unpacked('<BBI4', value, at)
    if from >= to or to > 64 then damaged(key) end
    for offset = from, to - 1 do copies[offset] = n end
  end
  return copies
end

local function gather(stamp, copies)
  local parts, offset = {stamp}, 0
  while offset < 64 do
    local from, n = offset, copies[offset]
    repeat offset = offset + 1 until offset == 64 or copies[offset] ~= n
    if n and n > 0 then parts[#parts + 1] = pack('<BBI4', from, offset, n) end
  end
  return table.concat(parts)
end

-- n more copies of [from, to). Returns the entries gained, whether that had been applied before, and
-- whether the slot held nothing of the run. `value` is what it holds, if that was just read.
local function add(key, slot, stamp, from, to, n, value)
  if value == nil then value = call('HGET', key, slot) end
  if not value then
    call('HSET', key, slot, stamp .. pack('<BBI4', from, to, n))
    return to - from, false, true
  end
  if #value < 12 then damaged(key) end
  local left = sub(value, 1, 12)
  if applied(stamp, left) then return 0, true, false end
  if stamp == UNSTAMPED then stamp = left end
  if #value == 18 and n == 1 and byte(value, 14) == from and sub(value, 15) == '\1\0\0\0' then
    call('HSET', key, slot, stamp .. sub(value, 13, 13) .. char(to) .. '\1\0\0\0')
    return to - from, false, false
  end
  local copies, gained = spread(key, value), 0
  for offset = from, to - 1 do
    local had = copies[offset] or 0
    if had == 0 then gained = gained + 1 end
    copies[offset] = math.min(had + n, 4294967295)
  end
  call('HSET', key, slot, gather(stamp, copies))
  return gained, false, false
end

local function start_of(key, head)
  head = head or call('HGET', key, 'h')
  if not head or #head ~= 18 or byte(head) ~= 1 or byte(head, 2) > 63 then damaged(key) end
  return byte(head, 2), head
end

-- Counts what hangs below an offset of a run: a list of (offset, count u32).
local function kid(key, offset, more)
  local list, parts, left = call('HGET', key, 'c') or '', {}, more
  for at = 1, #list, 5 do
    local o, n = unpacked('<BI4', list, at)
    if o == offset then left = left + n
    else parts[#parts + 1] = sub(list, at, at + 4) end
  end
  if left > 0 then parts[#parts + 1] = pack('<BI4', offset, left) end
  if #parts == 0 then call('HDEL', key, 'c') else call('HSET', key, 'c', table.concat(parts)) end
end

-- The offsets of the blocks that have a name, by what stands beside a run that begins at `start`.
local function called_so(start, names, more, name)
  local offsets, at = {}, nil
  if name ~= UNNAMED then at = string.find(names, name, 1, true) end
  while at do
    if at % 8 == 1 then offsets[#offsets + 1] = char(start + (at - 1) / 8) end
    at = string.find(names, name, at + 1, true)
  end
  for at = 1, #more, 9 do
    if sub(more, at + 1, at + 8) == name then offsets[#offsets + 1] = sub(more, at, at) end
  end
  return table.concat(offsets)
end

-- Takes away the end of a run that nobody holds and nothing hangs below, and then of the run that it
-- hangs on. `out` collects the blocks that went, with each name the offsets of the run's other blocks that are called
-- so, and the place in another segment that the last of these runs hung on.
local function trim(runs, named, tag, id, out)
  while true do
    local key, names = runs .. hex(id), named .. hex(id)
    local fields = call('HGETALL', key)
    if #fields == 0 then return end
    local start, last, blocks, above = start_of(key), 0, '', nil
    for at = 1, #fields, 2 do
      local field, value = fields[at], fields[at + 1]
      if field == 'k' then blocks = value
      elseif field == 'p' then above = value
      elseif field == 'c' then
        for kids = 1, #value, 5 do last = math.max(last, byte(value, kids) + 1) end
      elseif #field == 4 and #value >= 18 then last = math.max(last, byte(value, #value - 4)) end
    end
    local keep = math.max(last - start, 0)
    if keep * 8 >= #blocks then return end
    out.blocks = out.blocks + #blocks / 8 - keep
    fields = call('HGETALL', names)
    local gone, kept = {}, {}
    for at = 1, #fields, 2 do
      local field, value = fields[at], fields[at + 1]
      if #field == 4 then
        if #value % 8 ~= 0 then damaged(names) end
        for name = keep * 8 + 1, #value, 8 do
          local called = sub(value, name, name + 7)
          if called ~= UNNAMED then gone[#gone + 1] = {char(start + (name - 1) / 8), field, called} end
        end
        kept[field] = sub(value, 1, keep * 8)
        if #value > keep * 8 then call('HSET', names, field, kept[field]) end
      elseif field == 'j' then call('HDEL', names, 'j')
      else
        if #field ~= 5 or #value % 9 ~= 0 then damaged(names) end
        local further = {}
        for also = 1, #value, 9 do
          if byte(value, also) >= start + keep then
            gone[#gone + 1] = {sub(value, also, also), sub(field, 1, 4), sub(value, also + 1, also + 8)}
          else further[#further + 1] = sub(value, also, also + 8) end
        end
        kept[field] = table.concat(further)
        if #further == 0 then call('HDEL', names, field) else call('HSET', names, field, kept[field]) end
      end
    end
    for _, one in ipairs(gone) do
      local others = called_so(start, kept[one[2]] or '', kept[one[2] .. '+'] or '', one[3])
      out[#out + 1] = id .. one[1] .. one[2] .. one[3] .. char(#others) .. others
    end
    if keep > 0 then
      call('HSET', key, 'k', sub(blocks, 1, keep * 8))
      return
    end
    call('DEL', key, names)
    if start == 0 then out.above = above return end
    if not above then return end
    id = run_of(above)
    if call('EXISTS', runs .. hex(id)) == 0 then return end
    kid(runs .. hex(id), start - 1, -1)
  end
end

local function answer(out, lost, extra)
  return {lost, out.blocks, table.concat(out), out.above or '', extra or ''}
end

local function guarded(script)
  local fine, result = pcall(script)
  if fine then return result end
  if type(result) == 'table' then return result end
  -- What Lua itself stumbles over is a value that is not as it should be.
  return redis.error_reply('DAMAGED value under ' .. (touched or KEYS[1]) .. ' : ' .. tostring(result))
end
