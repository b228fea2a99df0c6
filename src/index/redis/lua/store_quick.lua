-- What `store` nearly always comes to, before what the other cases share is even defined: a run that
-- begins a segment, more blocks at a run's end, or blocks that are there under the same names, for a
-- slot that holds nothing of the run or what comes just before. Whatever is otherwise is left alone, to
-- be done below from the start. KEYS and ARGV as there. Where one script may touch all of them, also the KEYS of
-- `bind` and the run that `hung` lies in. Flag 8 says that every name is new, and
-- 16 that those are bound which are not listed; the first byte is 2 for a run that was made and which that one knows of.
do
  local id, offset, above, blocks, names, vocabulary, slot, stamp, copies, head, ttl, hung, _, tag, proof = unpack(ARGV)
  local run, list, sub, byte, char, call = KEYS[1], KEYS[2], string.sub, string.byte, string.char, redis.call
  local UNNAMED, ONCE = '\0\0\0\0\0\0\0\0', '\1\0\0\0'
  local n, from = #blocks / 8, byte(offset)
  -- The end of the answer about blocks whose names are new: these are bound if all KEYS are there.
  local function named(flags, waits)
    if not KEYS[3] then return char(flags + 8, 0) end
    local within = id == sub(tag, 1, 8) and char(128) .. tag or char(192) .. tag .. id
    local unbound = {}
    for at = bind_free(KEYS[3], KEYS[4], KEYS[5], ttl, within, names, waits), n - 1 do unbound[#unbound + 1] = char(at) end
    return char(flags + 16, #unbound) .. table.concat(unbound)
  end
  local usual = copies == '1' and not string.find(names, UNNAMED, 1, true)
  -- Where a segment is new, none of these is there, and nearly always nothing waits.
  local some = usual and from == 0 and call('EXISTS', run, list, KEYS[4] or list, KEYS[5] or list)
  local found = some == 0 and {} or redis.pcall('HMGET', run, 'k', 'h', 'c', slot)
  local have, kept, kids, held = found[1], found[2], found[3], found[4]

  if some == 0 or some and have == false and kept == false and held == false and call('EXISTS', list) == 0 then
    local value = stamp .. char(0, n) .. ONCE
    call('HSET', list, vocabulary, names, 'j', proof)
    if hung == '' then call('HSET', run, 'h', head, 'k', blocks, slot, value)
    else call('HSET', run, 'h', head, 'k', blocks, 'p', hung, slot, value) end
    call('EXPIRE', run, ttl)
    call('EXPIRE', list, ttl)
    -- What `hang` does where nothing hangs below that run yet. It has the block before if that is its last: a
    -- segment ends there.
    local above_run, made = KEYS[6], '\1'
    if above_run then
      local keys = redis.pcall('HGET', above_run, 'k')
      if type(keys) == 'string' and sub(keys, -8) == above
        and call('HSETNX', above_run, 'c', char(byte(hung) % 64) .. ONCE) == 1 then made = '\2' end
    end
    return made .. id .. char(0, n, n, n) .. named(2, some == 0 and 0 or nil)
  elseif usual and have and kept and #kept == 18 and byte(kept) == 1 and sub(kept, 7) == sub(head, 7) then
    local at = (from - byte(kept, 2)) * 8
    local follows = at >= 0 and #have % 8 == 0 and #have / 8 + byte(kept, 2) <= 64 and (from == 0 or at > 0 and sub(have, at - 7, at) == above)
    local value, fresh
    if follows then value, fresh = stretched(held, stamp, from, from + n) end
    if value then
      local called = redis.pcall('HGET', list, vocabulary)
      if at == #have and not kids and type(called) == 'string' and #called == at then
        call('HSET', list, vocabulary, called .. names)
        call('HSET', run, 'k', have .. blocks, slot, value)
        call('EXPIRE', run, ttl)
        call('EXPIRE', list, ttl)
        return '\0' .. id .. char(from, n, n, n) .. named(byte(fresh))
      elseif type(called) == 'string' and sub(have, at + 1, at + n * 8) == blocks
        and sub(called, at + 1, at + n * 8) == names then
        call('HSET', run, slot, value)
        if from == 0 then call('HSET', list, 'j', proof) end
        return '\0' .. id .. char(from, n, 0, n, byte(fresh), 0)
      end
    end
  end
end
