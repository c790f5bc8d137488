-- Cancels a job: at once if nobody holds it, else by asking the holder, who loses the lease when the grace is over.
-- KEYS  meta, leases, lease deadlines, scheduled, start_by, tombstones, lane tombstone counts, dead, settled
-- ARGV  broker, id, reason, grace ms, dedupe window ms, failure retention ms
-- RETURNS {state, 1 if this call has ended the job}; '' if there is no such job
-- MOVES  READY → CANCELLED, SCHEDULED → CANCELLED
local broker, id, reason, grace_ms = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4])
local window_ms, failure_retention = tonumber(ARGV[5]), tonumber(ARGV[6])

-- decide
local head = read_head(id)
local meta = call('HMGET', KEYS[1], 'dg', 'ds', 'w')
if not head then
  return { remembered_end(meta[1], id) or '' }
end
local state = try('HGET', base .. 's' .. id, 'st')
if state then return { state } end
local lease = call('HGET', KEYS[2], id)
touch(unpack(KEYS))
local memories = generation(meta[1], meta[2], window_ms)
touch_ends({})

-- act
if lease then
  local flags = #lease >= LEASE_BYTES and byte(lease, 23)
  -- Whoever asks again cannot prolong the grace.
  local ends = min(now + grace_ms, tonumber((try('HGET', base .. 's' .. id, 'cd'))) or now + grace_ms)
  write_state(id, 'cr', reason, 'cd', ends)
  if flags and not has(flags, FLAG_STATE) then
    call('HSET', KEYS[2], id, sub(lease, 1, 22) .. char(flags + FLAG_STATE) .. sub(lease, 24))
  end
  call('ZADD', KEYS[3], 'LT', 'XX', ends, id)
  tell('c' .. broker .. id .. struct.pack('>I4', grace_ms) .. reason)
  return { STATE_LEASED }
end
local scheduled = call('ZSCORE', KEYS[4], id)
local flags = head.flags
release_unique(id, flags)
call('HSET', begin(memories), id, STATE_CANCELLED)
if not scheduled then
  -- Somewhere in its lane: the entry is skipped when its turn comes.
  add(KEYS[6], id .. head.lane, 1)
  add(KEYS[7], head.lane, 1)
end
keep_settled(id, STATE_CANCELLED, now + retention(head, failure_retention), { 'cr', reason })
call('ZREM', KEYS[4], id)
if has(flags, FLAG_START_BY) then call('ZREM', KEYS[5], id) end
tell_waiters(meta[3], { id })
return { STATE_CANCELLED, 1 }
