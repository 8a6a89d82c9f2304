-- Counts a connection in each of the given groups, or in none if a group is full. All servers of a
-- store share the groups.
--
-- KEYS[1]   sorted set: servers, by their expiry time in ms
-- KEYS[2…]  hash: connections of a group, by server
-- ARGV[1]   this server
-- ARGV[2]   time until it expires, ms
-- ARGV[3…]  for each group: this server's connections including the new one, and the limit
-- Returns 0, or the number of the group that is full.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local this_server = ARGV[1]
redis.call('ZADD', KEYS[1], now + ARGV[2], this_server)

for group = 1, #KEYS - 1 do
  local key = KEYS[group + 1]
  local total = tonumber(ARGV[2 * group + 1])
  local counts = redis.call('HGETALL', key)
  for i = 1, #counts, 2 do
    local server = counts[i]
    if server ~= this_server then
      local expires = redis.call('ZSCORE', KEYS[1], server)
      if expires and tonumber(expires) > now then
        total = total + tonumber(counts[i + 1])
      else
        redis.call('HDEL', key, server)
      end
    end
  end
  if total > tonumber(ARGV[2 * group + 2]) then
    return group
  end
end

for group = 1, #KEYS - 1 do
  redis.call('HSET', KEYS[group + 1], this_server, ARGV[2 * group + 1])
  redis.call('EXPIRE', KEYS[group + 1], 3600)
end
return 0
