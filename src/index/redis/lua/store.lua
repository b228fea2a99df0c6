-- One more copy of each block of a stretch within one segment. KEYS are the run that the stretch
-- begins in or behind; and its names; `hung` is where a run hangs that begins the segment, as far as the caller knows;
-- `most` is how many names a block may have, 0 for any number. Where a block has so many, it is the last
-- of a part's new names, flag 4 is set, and the caller takes back what is stored from there on.
return guarded(function()
  local id, offset, above, blocks, names, vocabulary, slot, stamp, copies, head, ttl, hung, most, tag =
    unpack(ARGV)
  local runs, named = sub(KEYS[1], 1, -17), sub(KEYS[2], 1, -17)
  offset, copies, most = byte(offset), tonumber(copies), tonumber(most)
  local key, n, done, parts, created = KEYS[1], #blocks / 8, 0, {}, '\0'
  local found = call('HMGET', key, 'k', 'h', slot)
  local start, have, held, stamped, full = 0, found[1], found[3], nil, nil

  -- Which of the names are new here; all of them if an earlier attempt may have died before it
  -- bound them.
  local function name(from, to, all)
    if names == '' then return '' end
    local list, want, unbound = key == KEYS[1] and KEYS[2] or named .. hex(id), sub(names, from * 8 + 1, to * 8), {}
    local value, at = created == '\0' and call('HGET', list, vocabulary) or '', (offset + from - start) * 8
    local zero = string.find(want, UNNAMED, 1, true)
    if not all and not zero and sub(value, at + 1, at + #want) == want then return '' end
    if #value <= at and not zero then
      call('HSET', list, vocabulary, value .. string.rep('\0', at - #value) .. want)
      call('EXPIRE', list, ttl)
      for block = from, to - 1 do unbound[#unbound + 1] = char(block) end
      return table.concat(unbound)
    end
    local also, more = nil, vocabulary .. '+'
    for block = from, to - 1 do
      local called, at = sub(names, block * 8 + 1, block * 8 + 8), (offset + block - start) * 8
      local old = sub(value, at + 1, at + 8)
      if old == called and called ~= UNNAMED then
        if all then unbound[#unbound + 1] = char(block) end
      elseif called ~= UNNAMED and (old == '' or old == UNNAMED) then
        value = value .. string.rep('\0', at - #value)
        value = sub(value, 1, at) .. called .. sub(value, at + 9)
        unbound[#unbound + 1] = char(block)
      else
        also = also or call('HGET', list, more) or ''
        local entry, known = char(offset + block) .. called, false
        local count = 1
        for at = 1, #also, 9 do
          known = known or sub(also, at, at + 8) == entry
          if sub(also, at, at) == char(offset + block) then count = count + 1 end
        end
        if all or not known then unbound[#unbound + 1] = char(block) end
        if not known and most > 0 and count >= most then
          full = true
          break
        end
        if not known then also = also .. entry end
      end
    end
    if value ~= '' then call('HSET', list, vocabulary, value) end
    call('EXPIRE', list, ttl)
    if also and also ~= '' then call('HSET', list, more, also) end
    return table.concat(unbound)
  end

  -- Blocks `done` to `to` of the stretch are in run `id`, `made` of them since just now.
  local function part(to, made)
    local from = offset + done
    if key ~= KEYS[1] then held = nil end
    -- The part before in the same run has left the stamp of this very change.
    local own = key == stamped and UNSTAMPED or stamp
    local gained, again, fresh = add(key, slot, own, from, offset + to, copies, held)
    held, stamped = nil, not again and key or nil
    full = nil
    local unbound = name(done, to, again)
    -- Owners put off the end of what they hold; who joins a run need not.
    if made > 0 then call('EXPIRE', key, ttl) end
    parts[#parts + 1] = id .. char(from, to - done, made, gained, (again and 1 or 0) + (fresh and 2 or 0) + (full and 4 or 0),
      #unbound) .. unbound
    done = to
  end

  -- What a run is called that was lost while its names were not is not what this one is.
  local function make(key, list, ...)
    if call('HLEN', list) > 0 then call('DEL', list) end
    call('HSET', key, ...)
  end

  if have then
    local begins, kept = start_of(key, found[2])
    start = begins
    if #have == 0 or #have % 8 ~= 0 or start + #have / 8 > 64 then damaged(key) end
    if sub(kept, 7) ~= sub(head, 7) then return '' end
  end
  if offset > 0 then
    local at = (offset - 1 - start) * 8
    if not have or at < 0 or sub(have, at + 1, at + 8) ~= above then return '' end
  elseif not have then
    if hung == '' then make(key, KEYS[2], 'h', head, 'k', blocks)
    else make(key, KEYS[2], 'h', head, 'k', blocks, 'p', hung) end
    created = '\1'
    part(n, n)
    return created .. table.concat(parts)
  end

  while true do
    local at = (offset + done - start) * 8
    local rest = math.min(n - done, #have / 8 - at / 8)
    local same = rest
    if sub(have, at + 1, at + rest * 8) ~= sub(blocks, done * 8 + 1, (done + rest) * 8) then
      same = 0
      while same < rest and sub(have, at + same * 8 + 1, at + same * 8 + 8)
        == sub(blocks, (done + same) * 8 + 1, (done + same) * 8 + 8) do same = same + 1 end
    end
    if same > 0 then part(done + same, 0) end
    if done == n then return created .. table.concat(parts) end
    at = (offset + done - start) * 8
    local child = sub(blocks, done * 8 + 1, done * 8 + 8)
    local below = call('HGET', runs .. hex(child), 'k')
    if below then
      if #below == 0 or #below % 8 ~= 0 or offset + done + #below / 8 > 64 then
        damaged(runs .. hex(child))
      end
      key, id, have, start = runs .. hex(child), child, below, offset + done
    elseif at == #have then
      call('HSET', key, 'k', have .. sub(blocks, done * 8 + 1))
      part(n, n - done)
      return created .. table.concat(parts)
    else
      kid(key, offset + done - 1, 1)
      local above = place(tag, id, offset + done - 1)
      key, id, start = runs .. hex(child), child, offset + done
      make(key, named .. hex(child), 'h', sub(head, 1, 1) .. char(start) .. sub(head, 3), 'k',
        sub(blocks, done * 8 + 1), 'p', above)
      part(n, n - done)
      return created .. table.concat(parts)
    end
  end
end)
