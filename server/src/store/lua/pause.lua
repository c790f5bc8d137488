-- Pauses or resumes a queue.
-- KEYS  meta, lane index
-- ARGV  broker, '1' pause or '0' resume, '1' refuse new jobs too, reason
-- RETURNS {1}
-- MOVES  -
local lanes = call('ZRANGE', KEYS[2], '0', LANES_PER_FETCH)
local policy_version = call('HGET', KEYS[1], META_POLICY_VERSION)
if ARGV[2] == '1' then
  call('HSET', KEYS[1], META_PAUSED, '1', META_PAUSE_REASON, ARGV[4], META_PAUSED_AT, now)
else
  call('HDEL', KEYS[1], META_PAUSED, META_PAUSE_REASON, META_PAUSED_AT)
  for _, lane in ipairs(lanes) do notify(NOTIFY_LANE_READY .. ARGV[1] .. lane) end
end
if ARGV[2] == '1' and ARGV[3] == '1' then
  call('HSET', KEYS[1], META_ENQUEUE_GATE, GATE_PAUSED)
elseif policy_version then
  call('HSET', KEYS[1], META_ENQUEUE_GATE, GATE_POLICY .. policy_version)
else
  call('HDEL', KEYS[1], META_ENQUEUE_GATE)
end
return { 1 }
