-- Binds names that mean nothing yet, in a group where nothing waits: 32 at a time, as long as none of these means
-- anything. `key`, `unplaced` and `waiting` are the KEYS of `bind`; `bindings` has names with their places, all places as
-- long as the first. Answers how many it bound, and whether that is all. They go through locals, as each call costs, each
-- value that a table takes on the way, and each argument of a call beyond the 32nd.
local function bind_free(key, unplaced, waiting, ttl, bindings)
  local call, pcall, values = redis.call, redis.pcall, struct.unpack
  if call('EXISTS', unplaced, waiting) > 0 then return 0, false end
  local length, form, done = 21, 'c8c13', 0
  if string.byte(bindings, 9) > 63 then length, form = 29, 'c8c21' end
  local n, many = #bindings / length, string.rep(form, 32)
  while done + 32 <= n do
    local n1, p1, n2, p2, n3, p3, n4, p4, n5, p5, n6, p6, n7, p7, n8, p8,
      n9, p9, n10, p10, n11, p11, n12, p12, n13, p13, n14, p14, n15, p15, n16, p16,
      n17, p17, n18, p18, n19, p19, n20, p20, n21, p21, n22, p22, n23, p23, n24, p24,
      n25, p25, n26, p26, n27, p27, n28, p28, n29, p29, n30, p30, n31, p31, n32, p32
      = values(many, bindings, done * length + 1)
    local found = pcall('HMGET', key, n1, n2, n3, n4, n5, n6, n7, n8, n9, n10, n11, n12, n13, n14, n15, n16,
      n17, n18, n19, n20, n21, n22, n23, n24, n25, n26, n27, n28, n29, n30, n31, n32)
    for at = 1, 32 do if found[at] ~= false then return done, false end end
    call('HSET', key, n1, p1, n2, p2, n3, p3, n4, p4, n5, p5, n6, p6, n7, p7, n8, p8,
      n9, p9, n10, p10, n11, p11, n12, p12, n13, p13, n14, p14, n15, p15, n16, p16)
    call('HSET', key, n17, p17, n18, p18, n19, p19, n20, p20, n21, p21, n22, p22, n23, p23, n24, p24,
      n25, p25, n26, p26, n27, p27, n28, p28, n29, p29, n30, p30, n31, p31, n32, p32)
    done = done + 32
  end
  local rest = n - done
  if rest > 0 then
    local names, all = {}, {values(string.rep(form, rest), bindings, done * length + 1)}
    for at = 1, rest do names[at] = all[2 * at - 1] end
    local found = pcall('HMGET', key, unpack(names))
    for at = 1, rest do if found[at] ~= false then return done, false end end
    call('HSET', key, unpack(all, 1, 2 * rest))
  end
  call('EXPIRE', key, ttl)
  return n, true
end
