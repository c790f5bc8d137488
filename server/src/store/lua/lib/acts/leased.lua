-- Acts on jobs that a worker may hold.

-- Asks the holder of a job to stop; it loses the lease after the grace.
local function ask_to_stop(job, params, lease)
  local id, state_key = job.id, base .. KEY_STATE .. job.id
  local flags = #lease >= LEASE_BYTES and byte(lease, LEASE_FLAGS_AT)
  -- A second cancel cannot prolong the grace.
  local before = tonumber((try('HGET', state_key, FIELD_CANCEL_DEADLINE)))
  local deadline = min(now + params.grace_ms, before or now + params.grace_ms)
  touch_act(id, job.head, job.head.lane)
  write_state(id, FIELD_CANCEL_REASON, params.reason, FIELD_CANCEL_DEADLINE, deadline)
  if flags and not has(flags, FLAG_STATE) then
    local marked = sub(lease, 1, LEASE_TIME_END) .. char(flags + FLAG_STATE) .. sub(lease, LEASE_OWNER_AT)
    call('HSET', base .. KEY_LEASES, id, marked)
  end
  call('ZADD', base .. KEY_DEADLINES, 'LT', 'XX', deadline, id)
  notify(NOTIFY_CANCEL .. params.broker .. id .. struct.pack('>I4', params.grace_ms) .. params.reason)
end

-- Cancels a job: at once if no worker holds it, else by asking its holder to stop.
local function cancel(job, params)
  local id, head = job.id, job.head
  if job.is_final then return OUTCOME_WRONG_STATE, job.state end
  if job.state == STATE_LEASED then
    ask_to_stop(job, params, call('HGET', base .. KEY_LEASES, id))
    return OUTCOME_DONE, STATE_LEASED
  end
  local meta = read_meta()
  local memory = generation(meta[1], meta[2], params.window_ms)
  touch_act(id, head, head.lane)

  release_unique(id, head.flags)
  end_waiting(job, meta, memory, function()
    keep_settled(id, STATE_CANCELLED, now + retention(head, params.failure_retention), {
      FIELD_CANCEL_REASON, params.reason,
    })
  end)
  return OUTCOME_DONE, STATE_CANCELLED
end

-- Takes a job from its holder, whose calls find the lease lost from now on. Maintenance ends the lease as one that ran
-- out; or the job goes back to the head of its lane as if it had not been delivered.
local function expire_lease(job, params)
  local id, head = job.id, job.head
  if job.state ~= STATE_LEASED then return OUTCOME_WRONG_STATE, job.state end
  local lease = call('HGET', base .. KEY_LEASES, id)
  local is_whole = #lease >= LEASE_BYTES
  local is_cancelled = try('HGET', base .. KEY_STATE .. id, FIELD_CANCEL_REASON)
  local meta = read_meta()
  local memory = generation(meta[1], meta[2], params.window_ms)
  touch_act(id, head, head.lane)

  if params.without_loss and is_whole and not is_cancelled then
    put_back({ { id = id, flags = byte(lease, LEASE_FLAGS_AT), lane = head.lane, ms = now } })
    call('HSET', begin(memory), id, STATE_READY .. sub(lease, 1, MEMORY_NONCE_BYTES) .. NACK_UNDELIVERED)
    end_leases({ id })
    return OUTCOME_DONE, STATE_READY
  end
  if is_whole then call('HSET', base .. KEY_LEASES, id, LEASE_TAKEN_NONCE .. sub(lease, LEASE_TIME_AT)) end
  call('ZADD', base .. KEY_DEADLINES, now, id)
  return OUTCOME_DONE, STATE_LEASED
end
