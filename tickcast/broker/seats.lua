-- Takes a seat in each of the given rooms, or in none if a room is full. All servers of a store
-- share the rooms.
--
-- KEYS[1]   sorted set: servers, by their expiry time in ms
-- KEYS[2…]  hash: seats taken in a room, by server
-- ARGV[1]   this server
-- ARGV[2]   time until it expires, ms
-- ARGV[3…]  for each room: this server's seats including the new one, total number of seats
-- Returns 0, or the number of the room that is full.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local me = ARGV[1]
redis.call('ZADD', KEYS[1], now + ARGV[2], me)

for room = 1, #KEYS - 1 do
  local key = KEYS[room + 1]
  local taken = tonumber(ARGV[2 * room + 1])
  local seats = redis.call('HGETALL', key)
  for i = 1, #seats, 2 do
    local server = seats[i]
    if server ~= me then
      local counts_until = redis.call('ZSCORE', KEYS[1], server)
      if counts_until and tonumber(counts_until) > now then
        taken = taken + tonumber(seats[i + 1])
      else
        redis.call('HDEL', key, server)
      end
    end
  end
  if taken > tonumber(ARGV[2 * room + 2]) then
    return room
  end
end

for room = 1, #KEYS - 1 do
  redis.call('HSET', KEYS[room + 1], me, ARGV[2 * room + 1])
  redis.call('EXPIRE', KEYS[room + 1], 3600)
end
return 0
