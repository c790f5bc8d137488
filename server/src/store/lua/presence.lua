-- Stores the report of one broker: that it lives, and its streams. Runs when Redis is full, too.
-- KEYS  brokers by the time of their last report, streams of this broker
-- ARGV  id of the broker, seconds after which it is forgotten, '1' these are all of its streams, number of streams that
--       are gone, their sessions..., then session and encoded stream of each that is there
-- RETURNS {1}
-- MOVES  -
local id, forget_seconds, gone = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[4])
local seconds = floor(now / 1000)
touch(KEYS[1], KEYS[2])
if ARGV[3] == '1' then call('UNLINK', KEYS[2]) end
if gone > 0 then call('HDEL', KEYS[2], unpack(ARGV, 5, 4 + gone)) end
if #ARGV > 4 + gone then call('HSET', KEYS[2], unpack(ARGV, 5 + gone)) end
call('EXPIRE', KEYS[2], forget_seconds)
call('ZADD', KEYS[1], seconds, id)
call('ZREMRANGEBYSCORE', KEYS[1], '-inf', seconds - 20 * forget_seconds)
return { 1 }
