-- Reads everything there is about a job.
-- KEYS  meta, leases, lease deadlines, scheduled
-- ARGV  id
-- RETURNS {now ms, state or '', record or false, state hash as a flat list, lease value or false, lease deadline or -1, due ms or -1}
-- MOVES  -
local id = ARGV[1]
local record = try('GET', base .. 'j' .. id)
if not record then
  local before = remembered(call('HGET', KEYS[1], 'dg'), { id })
  return { now, before and before[1] and sub(before[1], 1, 1) or '', false, {}, false, -1, -1 }
end
local state = try('HGETALL', base .. 's' .. id) or {}
local settled = try('HGET', base .. 's' .. id, 'st')
local lease = call('HGET', KEYS[2], id)
local deadline = call('ZSCORE', KEYS[3], id)
local due = call('ZSCORE', KEYS[4], id)
local where = settled or (lease and STATE_LEASED) or (due and STATE_SCHEDULED) or STATE_READY
return { now, where, record, state, lease, tonumber(deadline or -1), tonumber(due or -1) }
