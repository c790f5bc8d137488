-- Sets or removes the policy of a queue, if it has not changed meanwhile.
-- KEYS  meta, policy
-- ARGV  version that the change is based on ('' any, '0' none), policy as JSON, '' to remove it
-- RETURNS {1 if it was set, else 0; the version that it has now, 0 none}
-- MOVES  -
local meta = call('HMGET', KEYS[1], META_POLICY_VERSION, META_ENQUEUE_GATE)
local before = tonumber(meta[1] or 0) or 0
if ARGV[1] ~= '' and tonumber(ARGV[1]) ~= before then return { 0, before } end
touch(KEYS[2])
-- The version is the time of the change, so that a policy that is removed and set again has another one.
local version = string.format('%d', ARGV[2] == '' and 0 or max(now_us, before + 1))
local is_paused = meta[2] == GATE_PAUSED
if ARGV[2] == '' then
  call('UNLINK', KEYS[2])
  call('HDEL', KEYS[1], META_POLICY_VERSION)
  if not is_paused then call('HDEL', KEYS[1], META_ENQUEUE_GATE) end
else
  call('SET', KEYS[2], version .. ' ' .. ARGV[2])
  call('HSET', KEYS[1], META_POLICY_VERSION, version)
  if not is_paused then call('HSET', KEYS[1], META_ENQUEUE_GATE, GATE_POLICY .. version) end
end
return { 1, tonumber(version) }
