-- Publishes one batch of one stream, atomically: numbers it, keeps it, hands it on.
--
-- KEYS  1 meta hash   2 history
-- ARGV  1 epoch of the feed, as the publisher knows it
--       2 "1" where the stream is known to have been published before
--       3 ticks in the batch      4 publish time, microseconds
--       5 ticks to retain         6 age to retain, milliseconds
--       7 the batch, packed       8 its last tick alone, packed
--       9 channel
-- Returns the number of the first tick, or an error:
--       STALE  the stream is in a later epoch: ask for the feed's epoch and try again
--       LOST   a known stream is gone, so numbers would repeat: begin a new epoch and try again

local stored = redis.call('HMGET', KEYS[1], 'epoch', 'seq')
local epoch, seq = stored[1], tonumber(stored[2] or '0')

if not epoch and ARGV[2] == '1' then
  return redis.error_reply('LOST the stream has no numbering any more')
end
if epoch and epoch > ARGV[1] then
  return redis.error_reply('STALE the feed is in a later epoch')
end
if epoch ~= ARGV[1] then
  seq = 0
  redis.call('DEL', KEYS[2])
  redis.call('HSET', KEYS[1], 'epoch', ARGV[1])
end

local first, last = seq + 1, seq + tonumber(ARGV[3])
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local oldest = now - tonumber(ARGV[6])

redis.call('HSET', KEYS[1], 'seq', string.format('%d', last), 'latest', ARGV[8], 'published', ARGV[4])
redis.call('XADD', KEYS[2], 'MINID', '=', string.format('%d', math.max(0, last - tonumber(ARGV[5]) + 1)),
  string.format('%d-%d', last, now), 'b', ARGV[7])

-- Every publish adds one entry and removes up to four that are too old, so age is held as well.
for _ = 1, 4 do
  local entry = redis.call('XRANGE', KEYS[2], '-', '+', 'COUNT', 1)[1]
  if tonumber(string.match(entry[1], '%-(%d+)$')) >= oldest then break end
  redis.call('XDEL', KEYS[2], entry[1])
end
redis.call('PEXPIRE', KEYS[2], ARGV[6])

local header = string.format('%s %d %s\n', ARGV[1], first, ARGV[4])
redis.call('PUBLISH', ARGV[9], header .. ARGV[7])
return first
