-- What `bind` nearly always comes to, before what the other cases share is even defined. Whatever is otherwise is
-- left to be done below. KEYS and ARGV as there.
local free, all = 0, true
for at = 3, #ARGV, 4 do
  local n
  n, all = bind_free(KEYS[1], KEYS[2], KEYS[3], ARGV[2], ARGV[at], ARGV[at + 1])
  free = free + n
  if not all then break end
end
if all then return {string.rep('1', free), {}} end
