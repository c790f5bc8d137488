-- How much is in a queue.
-- KEYS  meta, lane index, scheduled, leases, dead, settled, quarantine, lane tombstone counts, newer
-- ARGV  lanes to pass over: those of an earlier call
-- RETURNS {now ms, scheduled, leased, dead, settled, quarantined, newer, paused 0/1, enqueue paused 0/1, pause reason, pause time ms, oldest ready ms or -1,
--         1 if there are more lanes, lane, jobs, ...}
-- MOVES  -
local meta = call('HMGET', KEYS[1], 'pa', 'ep', 'pr', 'pt')
local first = tonumber(ARGV[1])
local lanes = call('ZRANGE', KEYS[2], first, first + LANES_PER_COUNT - 1)
local answer = {
  now, call('ZCARD', KEYS[3]), call('HLEN', KEYS[4]), call('ZCARD', KEYS[5]), call('ZCARD', KEYS[6]), call('HLEN', KEYS[7]), call('LLEN', KEYS[9]),
  meta[1] and 1 or 0, meta[2] and 1 or 0, meta[3] or '', (tonumber(meta[4]) or 0), -1,
  #lanes == LANES_PER_COUNT and 1 or 0,
}
local buried = call('EXISTS', KEYS[8]) == 1
for _, lane in ipairs(lanes) do
  local key = base .. 'r:' .. lane
  -- A lane of another type holds nothing of ours.
  local length = try('LLEN', key) or 0
  if buried then length = length - (tonumber(call('HGET', KEYS[8], lane)) or 0) end
  if length > 0 then
    local head = try('LINDEX', key, 0)
    local ms = head and #head == 23 and unpack_ms(head, 2)
    if ms and (answer[12] < 0 or ms < answer[12]) then answer[12] = ms end
    answer[#answer + 1] = lane
    answer[#answer + 1] = length
  end
end
return answer
