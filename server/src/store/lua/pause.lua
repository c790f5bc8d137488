-- Pauses or resumes a queue.
-- KEYS  meta, lane index
-- ARGV  broker, '1' pause or '0' resume, '1' refuse new jobs too, reason
-- RETURNS {1}
-- MOVES  -
local lanes = call('ZRANGE', KEYS[2], 0, LANES_PER_LOOK)
if ARGV[2] == '1' then
  call('HSET', KEYS[1], 'pa', '1', 'pr', ARGV[4], 'pt', now)
  if ARGV[3] == '1' then call('HSET', KEYS[1], 'ep', '1') else call('HDEL', KEYS[1], 'ep') end
else
  call('HDEL', KEYS[1], 'pa', 'pr', 'pt', 'ep')
  for _, lane in ipairs(lanes) do tell('r' .. ARGV[1] .. lane) end
end
return { 1 }
