-- What a slot's field of a run says when it holds blocks `from` to `to` as well, each once, and whether it is
-- new: where it holds nothing of the run, or what comes just before and by an earlier change. Else nil.
local function stretched(held, stamp, from, to)
  if not held then return stamp .. string.char(from, to) .. '\1\0\0\0', '\2' end
  if #held ~= 18 or string.byte(held, 14) ~= from or string.sub(held, 15) ~= '\1\0\0\0' then return end
  local left, unstamped = string.sub(held, 1, 12), '\0\0\0\0\0\0\0\0\0\0\0\0'
  if stamp == unstamped then stamp = left
  elseif left ~= unstamped then
    local a, b, c = struct.unpack('>I4I4I4', stamp)
    local x, y, z = struct.unpack('>I4I4I4', left)
    if a < x or a == x and (b < y or b == y and c <= z) then return end
  end
  return stamp .. string.sub(held, 13, 13) .. string.char(to) .. '\1\0\0\0', '\0'
end
