-- Reads everything that is stored of a job.
-- KEYS  meta, leases, lease deadlines, scheduled
-- ARGV  id
-- RETURNS {now ms, state or '', record or false, state hash as a flat list, lease or false, lease deadline or -1, due
--         ms or -1}
-- MOVES  -
local id = ARGV[1]
local record = try('GET', base .. KEY_RECORD .. id)
if not record then
  local memories = remembered(call('HGET', KEYS[1], META_GENERATION), { id })
  return { now, memories and memories[1] and sub(memories[1], 1, 1) or '', false, {}, false, -1, -1 }
end
local hash = try('HGETALL', base .. KEY_STATE .. id) or {}
local settled = try('HGET', base .. KEY_STATE .. id, FIELD_FINAL_STATE)
local lease = call('HGET', KEYS[2], id)
local deadline = call('ZSCORE', KEYS[3], id)
local due = call('ZSCORE', KEYS[4], id)
local state = settled or (lease and STATE_LEASED) or (due and STATE_SCHEDULED) or STATE_READY
return { now, state, record, hash, lease, tonumber(deadline or -1), tonumber(due or -1) }
