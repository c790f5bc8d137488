-- Cancels a job: at once if no worker holds it, else by asking its holder to stop, who loses the lease after a grace.
-- KEYS  meta, leases, lease deadlines, scheduled, start_by, tombstones, lane tombstone counts, dead, settled
-- ARGV  broker, id, reason, grace ms, deduplication window ms, failure retention ms
-- RETURNS {state, 1 if this call has ended the job}; '' if there is no such job
-- MOVES  READY → CANCELLED, SCHEDULED → CANCELLED
local broker, id, reason, grace_ms = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4])
local window_ms, failure_retention = tonumber(ARGV[5]), tonumber(ARGV[6])

-- Decide.
local head = read_head(id)
local meta = call('HMGET', KEYS[1], META_GENERATION, META_GENERATION_START, META_WAITED_UNTIL)
if not head then return { remembered_end(meta[1], id) or '' } end
local state = try('HGET', base .. KEY_STATE .. id, FIELD_FINAL_STATE)
if state then return { state } end
local lease = call('HGET', KEYS[2], id)
touch(base .. KEY_LOG .. id, unpack(KEYS))
local chosen = generation(meta[1], meta[2], window_ms)
touch_ends({})

-- Act.
if lease then
  local flags = #lease >= LEASE_BYTES and byte(lease, LEASE_FLAGS_AT)
  -- A second cancel cannot prolong the grace.
  local before = tonumber((try('HGET', base .. KEY_STATE .. id, FIELD_CANCEL_DEADLINE)))
  local deadline = min(now + grace_ms, before or now + grace_ms)
  write_state(id, FIELD_CANCEL_REASON, reason, FIELD_CANCEL_DEADLINE, deadline)
  if flags and not has(flags, FLAG_STATE) then
    call('HSET', KEYS[2], id, sub(lease, 1, LEASE_TIME_END) .. char(flags + FLAG_STATE) .. sub(lease, LEASE_OWNER_AT))
  end
  call('ZADD', KEYS[3], 'LT', 'XX', deadline, id)
  notify(NOTIFY_CANCEL .. broker .. id .. struct.pack('>I4', grace_ms) .. reason)
  return { STATE_LEASED }
end
local is_scheduled = call('ZSCORE', KEYS[4], id)
local flags = head.flags
release_unique(id, flags)
call('HSET', begin(chosen), id, STATE_CANCELLED)
-- Somewhere in its lane: a fetch skips the entry.
if not is_scheduled then add_tombstone(id, head.lane) end
keep_settled(id, STATE_CANCELLED, now + retention(head, failure_retention), { FIELD_CANCEL_REASON, reason })
call('ZREM', KEYS[4], id)
if has(flags, FLAG_START_BY) then call('ZREM', KEYS[5], id) end
notify_waiters(meta[3], { id })
return { STATE_CANCELLED, 1 }
