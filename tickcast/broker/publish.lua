-- Publishes one batch of one stream atomically: numbers it, stores it and publishes it.
--
-- KEYS  1 meta hash   2 history
-- ARGV  1 epoch of the feed, as the publisher knows it
--       2 the number that the stream must have reached in this epoch; -1 if it must have numbers
--         in some epoch; 0 if it may be new
--       3 ticks in the batch      4 publish time, microseconds
--       5 ticks to retain         6 age to retain, milliseconds
--       7 the batch, packed       8 its last tick alone, packed
--       9 its greatest tick time, in the form of `keys.sortable`
--      10 the publisher's field   11 its number for the batch: fixed width, always increasing
--      12 channel
-- Returns the number of the first tick, 0 if the batch has been published before, or an error:
--       STALE  the stream is in a later epoch, which the error names: get the feed's epoch and try
--              again
--       LOST   Redis has lost numbers that were assigned, and would assign them again: begin a new
--              epoch and try again

local PUBLISHERS_MAX = 64

local stored = redis.call('HMGET', KEYS[1], 'epoch', 'seq', 'max', ARGV[10])
local epoch, seq, greatest, mark = stored[1], tonumber(stored[2] or '0'), stored[3], stored[4]

-- A mark is the number and the time of the publisher's last batch. Compared as text, it is greater
-- than the number of that batch and of all earlier ones.
if mark and mark >= ARGV[11] then return 0 end
if epoch and epoch > ARGV[1] then return redis.error_reply('STALE ' .. epoch) end
if epoch ~= ARGV[1] then seq, greatest = 0, false end
if seq < tonumber(ARGV[2]) or (not epoch and ARGV[2] ~= '0') then
  return redis.error_reply('LOST the numbers of the stream do not go as far as they did')
end

local first, last = string.format('%d', seq + 1), string.format('%d', seq + ARGV[3])
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local now_text = string.format('%d', now)

if not mark and redis.call('HLEN', KEYS[1]) > PUBLISHERS_MAX then
  -- Forget the least recently active publisher. One that awaits an answer was active just now.
  local fields = redis.call('HGETALL', KEYS[1])
  local publishers, oldest, since = 0, nil, nil
  for place = 1, #fields, 2 do
    if string.sub(fields[place], 1, 2) == 'p:' then
      local at = string.match(fields[place + 1], '%d+$')
      publishers = publishers + 1
      if not since or at < since then oldest, since = fields[place], at end
    end
  end
  if publishers >= PUBLISHERS_MAX then redis.call('HDEL', KEYS[1], oldest) end
end

if epoch ~= ARGV[1] then redis.call('DEL', KEYS[2]) end
redis.call('HSET', KEYS[1], 'epoch', ARGV[1], 'seq', last, 'latest', ARGV[8], 'published', ARGV[4],
  'max', greatest and greatest > ARGV[9] and greatest or ARGV[9],
  ARGV[10], ARGV[11] .. ' ' .. now_text)
redis.call('XADD', KEYS[2], 'MINID', '=', string.format('%d', math.max(0, last - ARGV[5] + 1)),
  last .. '-' .. now_text, 'b', ARGV[7], 'm', greatest or '')

-- Each publish adds one entry and removes up to four that are too old, which enforces the age.
local too_old = now - ARGV[6]
for _ = 1, 4 do
  local entry = redis.call('XRANGE', KEYS[2], '-', '+', 'COUNT', 1)[1]
  if tonumber(string.match(entry[1], '%-(%d+)$')) >= too_old then break end
  redis.call('XDEL', KEYS[2], entry[1])
end
redis.call('PEXPIRE', KEYS[2], ARGV[6])

redis.call('PUBLISH', ARGV[12], ARGV[1] .. ' ' .. first .. ' ' .. ARGV[4] .. '\n' .. ARGV[7])
return seq + 1
