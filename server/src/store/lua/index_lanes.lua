-- Puts lanes that are missing in the lane index back into it: after a restore, or the loss of a key.
-- KEYS  meta, lane index
-- ARGV  lanes
-- RETURNS {how many were missing}
-- MOVES  -
local missing = {}
for _, lane in ipairs(ARGV) do
  local head = try('LINDEX', base .. KEY_LANE .. lane, '0')
  if head and #head == ENTRY_BYTES and not call('ZSCORE', KEYS[2], lane) then
    missing[#missing + 1] = { name = lane, score = lane_score(lane, unpack_ms(head, ENTRY_TIME_AT)) }
  end
end
touch(KEYS[2])
for _, lane in ipairs(missing) do
  call('ZADD', KEYS[2], lane.score, lane.name)
  notify(NOTIFY_LANE_READY .. NOBODY .. lane.name)
end
return { #missing }
