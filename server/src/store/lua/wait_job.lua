-- Registers that somebody waits for a job to settle, and reads where it is.
-- KEYS  meta, waiters
-- ARGV  id, how long ms
-- RETURNS {state of a settled job, or ''}
-- MOVES  -
local id, until_ms = ARGV[1], now + tonumber(ARGV[2])
local meta = call('HMGET', KEYS[1], 'w', 'dg')
local state = try('HGET', base .. 's' .. id, 'st')
local there = call('EXISTS', base .. 'j' .. id) == 1
if not state and not there then
  state = remembered_end(meta[2], id) or '?'
end
if state then return { state } end
call('ZREMRANGEBYSCORE', KEYS[2], '-inf', now)
call('ZADD', KEYS[2], 'GT', until_ms, id)
if (tonumber(meta[1]) or 0) < until_ms then call('HSET', KEYS[1], 'w', until_ms) end
return { '' }
