-- Counts the jobs of a queue.
-- KEYS  meta, lane index, scheduled, leases, dead, settled, quarantine, lane tombstone counts, newer
-- ARGV  lanes to pass over: those of an earlier call
-- RETURNS {now ms, scheduled, leased, dead, settled, quarantined, newer, paused 0/1, enqueue paused 0/1, pause reason,
--         pause time ms, oldest ready ms or -1, 1 if there are more lanes, lane, jobs, ...}
-- MOVES  -
local meta = call('HMGET', KEYS[1], META_PAUSED, META_ENQUEUE_GATE, META_PAUSE_REASON, META_PAUSED_AT)
local first = tonumber(ARGV[1])
local lanes = call('ZRANGE', KEYS[2], first, first + (LANES_PER_COUNT - 1))
local ready, oldest_ms = {}, -1
local has_tombstones = call('EXISTS', KEYS[8]) == 1
for _, lane in ipairs(lanes) do
  local key = base .. KEY_LANE .. lane
  -- A lane of another type holds nothing of ours.
  local length = try('LLEN', key) or 0
  if has_tombstones then length = length - (tonumber(call('HGET', KEYS[8], lane)) or 0) end
  if length > 0 then
    local head = try('LINDEX', key, '0')
    local ms = head and #head == ENTRY_BYTES and unpack_ms(head, ENTRY_TIME_AT)
    if ms and (oldest_ms < 0 or ms < oldest_ms) then oldest_ms = ms end
    ready[#ready + 1] = lane
    ready[#ready + 1] = length
  end
end
return {
  now, call('ZCARD', KEYS[3]), call('HLEN', KEYS[4]), call('ZCARD', KEYS[5]), call('ZCARD', KEYS[6]),
  call('HLEN', KEYS[7]), call('LLEN', KEYS[9]), meta[1] and 1 or 0, meta[2] == GATE_PAUSED and 1 or 0,
  meta[3] or '', (tonumber(meta[4]) or 0), oldest_ms, #lanes == LANES_PER_COUNT and 1 or 0, unpack(ready),
}
