-- What `bind` nearly always comes to, before what the other cases share is even defined. Whatever is otherwise is
-- left alone, to be done below from the start. KEYS and ARGV as there.
do
  local sub, n, names, bound = string.sub, 0, {}, {}
  for at = 3, #ARGV, 3 do
    local rest, starts, all = ARGV[at], ARGV[at + 1], ARGV[at + 2]
    for one = 1, #starts do
      local name = sub(all, one * 8 - 7, one * 8)
      n = n + 1
      names[n] = name
      bound[2 * n - 1], bound[2 * n] = name, sub(starts, one, one) .. rest
    end
  end
  if bind_free(KEYS[1], KEYS[2], KEYS[3], ARGV[2], names, bound) then return {string.rep('1', n), {}} end
end
