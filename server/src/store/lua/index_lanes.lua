-- Puts lanes back into the index that are missing in it: after a restore, or the loss of a key.
-- KEYS  meta, lane index
-- ARGV  lanes
-- RETURNS {lanes that were missing}
-- MOVES  -
local missing = {}
for _, lane in ipairs(ARGV) do
  local key = base .. 'r:' .. lane
  local head = try('LINDEX', key, '0')
  if head and #head == 23 and not call('ZSCORE', KEYS[2], lane) then missing[#missing + 1] = { lane, lane_score(lane, unpack_ms(head, 2)) } end
end
touch(KEYS[2])
for _, item in ipairs(missing) do
  call('ZADD', KEYS[2], item[2], item[1])
  tell('r' .. NOBODY .. item[1])
end
return { #missing }
