-- Finds the batch with the first tick of a stream at or after a given time.
--
-- Field `m` of each entry is the greatest time before that entry. It never decreases, whatever the
-- order of the ticks' own times, so a binary search works.
--
-- KEYS  1 meta hash   2 history
-- ARGV  1 the time, in the form of `keys.sortable`
-- Returns the stream's epoch and last number, the result, and an entry that depends on the result:
--       NONE     all ticks are older; no entry
--       FOUND    the entry that contains the tick
--       TRIMMED  there were such ticks, but they are no longer retained; the oldest retained entry,
--                if there is one

local meta = redis.call('HMGET', KEYS[1], 'epoch', 'seq', 'max')
local epoch, seq = meta[1] or '', meta[2] or '0'

local function first_from(number)
  return redis.call('XRANGE', KEYS[2], string.format('%d', number), '+', 'COUNT', 1)[1]
end

local function greatest_before(entry)
  for place = 1, #entry[2], 2 do
    if entry[2][place] == 'm' then return entry[2][place + 1] end
  end
  return ''
end

local function last_of(entry)
  return tonumber(string.match(entry[1], '^%d+'))
end

if (meta[3] or '') < ARGV[1] then return {epoch, seq, 'NONE'} end

local found = first_from(0)
if not found then return {epoch, seq, 'TRIMMED'} end
if greatest_before(found) >= ARGV[1] then return {epoch, seq, 'TRIMMED', found} end

local low, high = last_of(found), tonumber(seq)
while low < high do
  local middle = low + math.floor((high - low) / 2) + 1
  local entry = first_from(middle)
  if entry and greatest_before(entry) < ARGV[1] then
    found, low = entry, last_of(entry)
  else
    high = middle - 1
  end
end
return {epoch, seq, 'FOUND', found}
