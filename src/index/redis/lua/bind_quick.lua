-- What `bind` nearly always comes to, before what the other cases share is even defined. Whatever is otherwise is
-- left to be done below. KEYS and ARGV as there.
local free, all = 0, true
for at = 3, #ARGV do
  local bindings = ARGV[at]
  local n = bind_free(KEYS[1], KEYS[2], KEYS[3], ARGV[2], bindings)
  free = free + n
  all = n == #bindings / (string.byte(bindings, 9) < 64 and 21 or 29)
  if not all then break end
end
if all then return {string.rep('1', free), {}} end
