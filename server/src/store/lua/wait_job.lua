-- Registers that a call waits for the end of a job, and reads where it is.
-- KEYS  meta, waiters
-- ARGV  id, how long ms
-- RETURNS {state of a settled job, or a WAIT_ word}
-- MOVES  -
local id, until_ms = ARGV[1], now + tonumber(ARGV[2])
local meta = call('HMGET', KEYS[1], META_WAITED_UNTIL, META_GENERATION)
local state = try('HGET', base .. KEY_STATE .. id, FIELD_FINAL_STATE)
local has_record = call('EXISTS', base .. KEY_RECORD .. id) == 1
if not state and not has_record then
  state = remembered_end(meta[2], id) or WAIT_UNKNOWN
end
if state then return { state } end
call('ZREMRANGEBYSCORE', KEYS[2], '-inf', now)
call('ZADD', KEYS[2], 'GT', until_ms, id)
if (tonumber(meta[1]) or 0) < until_ms then call('HSET', KEYS[1], META_WAITED_UNTIL, until_ms) end
return { WAIT_UNSETTLED }
