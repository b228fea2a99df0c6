-- Binds names of blocks of one run that mean nothing yet, in a group where nothing waits: 32 at a time, as long as none
-- of these means anything. `key`, `unplaced` and `waiting` are the KEYS of `bind`; all get one meaning, the run `within`.
-- `waits` is 0 where the caller knows that `unplaced` and `waiting` are not there, else nil. Answers how many it bound, and
-- whether that is all. They go through locals, as each call costs, each value that a table takes on the way, and each
-- argument of a call beyond the 32nd.
local function bind_free(key, unplaced, waiting, ttl, within, names, waits)
  local call, pcall, values, w = redis.call, redis.pcall, struct.unpack, within
  if (waits or call('EXISTS', unplaced, waiting)) > 0 then return 0, false end
  local n, done, many = #names / 8, 0, string.rep('c8', 32)
  while done + 32 <= n do
    local a, b, c, d, e, f, g, h, i, j, k, l, m, o, p, q, A, B, C, D, E, F, G, H, I, J, K, L, M, O, P, Q
      = values(many, names, done * 8 + 1)
    local found = pcall('HMGET', key, a, b, c, d, e, f, g, h, i, j, k, l, m, o, p, q,
      A, B, C, D, E, F, G, H, I, J, K, L, M, O, P, Q)
    for at = 1, 32 do if found[at] ~= false then return done, false end end
    call('HSET', key, a, w, b, w, c, w, d, w, e, w, f, w, g, w, h, w, i, w, j, w, k, w, l, w, m, w, o, w, p, w, q, w)
    call('HSET', key, A, w, B, w, C, w, D, w, E, w, F, w, G, w, H, w, I, w, J, w, K, w, L, w, M, w, O, w, P, w, Q, w)
    done = done + 32
  end
  local rest = n - done
  if rest > 0 then
    local some, pairs = {values(string.rep('c8', rest), names, done * 8 + 1)}, {}
    local found = pcall('HMGET', key, unpack(some, 1, rest))
    for at = 1, rest do
      if found[at] ~= false then return done, false end
      pairs[2 * at - 1], pairs[2 * at] = some[at], w
    end
    call('HSET', key, unpack(pairs))
  end
  call('EXPIRE', key, ttl)
  return n, true
end
