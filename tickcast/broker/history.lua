-- Reads part of one stream's history, starting after a given number.
--
-- KEYS  1 meta hash   2 history
-- ARGV  1 the number   2 ticks and   3 bytes after which to stop
-- Returns the stream's epoch and last number, 1 if the history is complete, and the entries.

local meta = redis.call('HMGET', KEYS[1], 'epoch', 'seq')
local most_ticks, most_bytes = tonumber(ARGV[2]), tonumber(ARGV[3])
local step = 16
-- Use text because Lua's numbers are doubles. The range starts after the largest possible second
-- half of the ID, so it excludes the entry with that number.
local begin = '(' .. ARGV[1] .. '-18446744073709551615'
local entries, size, first, enough, complete = {}, 0, nil, false, false

while not (enough or complete) do
  local page = redis.call('XRANGE', KEYS[2], begin, '+', 'COUNT', step)
  for _, entry in ipairs(page) do
    entries[#entries + 1] = entry
    local fields = entry[2]
    for place = 2, #fields, 2 do size = size + #fields[place] end
    begin = '(' .. entry[1]
    local last = tonumber(string.match(entry[1], '^%d+'))
    first = first or last
    if size >= most_bytes or last - first >= most_ticks then
      enough = true
      break
    end
  end
  complete = not enough and #page < step
end

return {meta[1] or '', meta[2] or '0', complete and 1 or 0, entries}
