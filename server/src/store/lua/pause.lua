-- Pauses or resumes a queue.
-- KEYS  meta, lane index
-- ARGV  broker, '1' pause or '0' resume, '1' refuse new jobs too, reason
-- RETURNS {1}
-- MOVES  -
local lanes = call('ZRANGE', KEYS[2], '0', LANES_PER_FETCH)
if ARGV[2] == '1' then
  call('HSET', KEYS[1], META_PAUSED, '1', META_PAUSE_REASON, ARGV[4], META_PAUSED_AT, now)
  if ARGV[3] == '1' then
    call('HSET', KEYS[1], META_ENQUEUE_PAUSED, '1')
  else
    call('HDEL', KEYS[1], META_ENQUEUE_PAUSED)
  end
else
  call('HDEL', KEYS[1], META_PAUSED, META_PAUSE_REASON, META_PAUSED_AT, META_ENQUEUE_PAUSED)
  for _, lane in ipairs(lanes) do notify(NOTIFY_LANE_READY .. ARGV[1] .. lane) end
end
return { 1 }
