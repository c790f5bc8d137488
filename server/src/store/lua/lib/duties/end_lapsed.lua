-- Duty: end leases that ran out, because the attempt took too long, the worker did not stop for a cancel, or it is
-- gone.

-- The leases that ran out, each with what is known of its job; and the ids whose records a newer version wrote.
local function read_lapsed(run)
  local ids = call('ZRANGEBYSCORE', base .. KEY_DEADLINES, '-inf', now, 'LIMIT', 0, run.limit)
  if #ids >= run.limit then run.more = 1 end
  if #ids == 0 then return {}, {}, ids end
  local values = call('HMGET', base .. KEY_LEASES, unpack(ids))
  local plans, newer_ids = {}, {}
  for k, id in ipairs(ids) do
    local head, newer = read_head(id)
    local state, foreign = try(
      'HMGET', base .. KEY_STATE .. id,
      FIELD_ATTEMPTS, FIELD_LOSSES, FIELD_CANCEL_REASON, FIELD_FINAL_STATE, FIELD_UNCONFIRMED, FIELD_RELEASES
    )
    state = state or {}
    if head then
      touch(base .. KEY_LANE .. head.lane, base .. KEY_QUARANTINED_LANE .. head.lane)
    end
    if newer then
      newer_ids[#newer_ids + 1] = id
    else
      local value = values[k]
      -- A lease that is cut does not tell its owner: it ends as one that was lost.
      if head and value and #value < LEASE_BYTES then value = false end
      plans[#plans + 1] = {
        id = id, head = head, value = value, foreign = foreign,
        attempts = tonumber(state[1]) or 0, losses = tonumber(state[2]) or 0,
        cancel_asked = state[3], final = state[4], unconfirmed = tonumber(state[5]) or 0, was_released = state[6],
      }
    end
  end
  return plans, newer_ids, ids
end

local function settle_lapsed(out, plan, state, until_ms, fields)
  release_unique(plan.id, plan.flags)
  keep_settled(plan.id, state, until_ms, fields)
  out.settled[#out.settled + 1] = plan.id
  out.memory[#out.memory + 1] = plan.id
  out.memory[#out.memory + 1] = state
end

-- Fields of the state hash: what is counted, and a failure of the broker's own making.
local function failure_fields(field, count, failure_type, message)
  return {
    field, count, FIELD_FAILURE_TYPE, failure_type, FIELD_FAILURE_MESSAGE, message, FIELD_FAILURE_STACK, '',
    FIELD_FAILED_AT, now,
  }
end

local function dead_letter(out, plan, fields)
  out.dead = out.dead + 1
  settle_lapsed(out, plan, STATE_DEAD, 0, fields)
end

-- Puts a job back to the head of its lane, with this count in its state.
local function requeue(out, plan, field, count)
  write_state(plan.id, field, count)
  local flags = plan.flags
  if not has(flags, FLAG_STATE) then flags = flags + FLAG_STATE end
  out.front[#out.front + 1] = { id = plan.id, flags = flags, lane = plan.head.lane, ms = now }
end

-- No worker said that the job had arrived: neither an attempt nor a loss.
local function end_unconfirmed(run, out, plan)
  out.unconfirmed = out.unconfirmed + 1
  local times = plan.unconfirmed + 1
  if times >= run.max_unconfirmed then
    call('ZREM', base .. KEY_START_BY, plan.id)
    dead_letter(out, plan, failure_fields(FIELD_UNCONFIRMED, times, 'Unconfirmed', times .. UNCONFIRMED_TEXT))
  else
    requeue(out, plan, FIELD_UNCONFIRMED, times)
  end
end

local function end_timed_out(run, out, plan, timeout_ms)
  local id, head, attempts = plan.id, plan.head, plan.attempts + 1
  out.timed_out = out.timed_out + 1
  out.timed_priorities = out.timed_priorities .. sub(head.lane, 1, 1)
  local message = 'context deadline exceeded: the attempt took longer than its attempt_timeout of '
    .. timeout_ms / 1000 .. ' s'
  local fields = failure_fields(FIELD_ATTEMPTS, attempts, 'Timeout', message)
  if plan.was_released then fields[#fields + 1], fields[#fields + 2] = FIELD_RELEASES, 0 end
  if is_last_attempt(head, attempts, run.max_attempts) or is_non_retryable(id, head, 'Timeout') then
    dead_letter(out, plan, fields)
  else
    write_state(id, unpack(fields))
    call('ZADD', base .. KEY_SCHEDULED, now + backoff_ms(head, attempts, run.backoff, run.random), id)
  end
end

local function end_lost(run, out, plan)
  out.lost = out.lost + 1
  local losses, most = plan.losses + 1, plan.head.max_losses
  if losses >= (most and most > 0 and most or run.max_losses) then
    local message = 'the workers that held this job were lost ' .. losses .. ' times'
    dead_letter(out, plan, failure_fields(FIELD_LOSSES, losses, 'LeaseLost', message))
  else
    requeue(out, plan, FIELD_LOSSES, losses)
  end
end

-- Decides how one lease ends, and does it.
local function end_lapsed_lease(run, out, plan)
  local id, head, value = plan.id, plan.head, plan.value
  if not head then
    if value then
      quarantine(id, 'leased without a readable record')
      run.quarantined[#run.quarantined + 1] = id
    end
    return
  end
  if plan.final then return end
  if plan.foreign and call('EXISTS', base .. KEY_STATE .. id) == 1 then
    call('RENAME', base .. KEY_STATE .. id, base .. KEY_QUARANTINED_STATE .. id)
  end
  plan.flags = value and byte(value, LEASE_FLAGS_AT) or entry_flags(head.flags)
  if not has(plan.flags, FLAG_STATE) and call('EXISTS', base .. KEY_STATE .. id) == 1 then
    plan.flags = plan.flags + FLAG_STATE
  end
  local timeout_ms = attempt_timeout(head, run.attempt_timeout)
  local timed_out = value and now >= unpack_ms(value, LEASE_TIME_AT) + timeout_ms
  -- A Lease call is confirmed by nothing before its end: its attempt counts when it takes too long.
  local counts = not value or sub(value, LEASE_CONFIRMED_AT, LEASE_CONFIRMED_AT) == '1'
    or timed_out and sub(value, LEASE_OWNER_AT, LEASE_OWNER_END) == NOBODY
  if (counts or plan.cancel_asked) and has(plan.flags, FLAG_START_BY) then call('ZREM', base .. KEY_START_BY, id) end
  if plan.cancel_asked then
    out.cancelled = out.cancelled + 1
    settle_lapsed(out, plan, STATE_CANCELLED, now + retention(head, run.failure_retention), {})
  elseif not counts then
    end_unconfirmed(run, out, plan)
  elseif timed_out then
    end_timed_out(run, out, plan, timeout_ms)
  else
    end_lost(run, out, plan)
  end
end

-- Returns what became of the jobs.
local function end_lapsed(run)
  local out = {
    timed_out = 0, lost = 0, unconfirmed = 0, dead = 0, cancelled = 0, timed_priorities = '',
    front = {}, settled = {}, memory = {},
  }
  local plans, newer_ids, ids = read_lapsed(run)
  if #ids == 0 then return out end
  local memories = generation(run.generation, run.generation_start, run.window_ms)
  touch_ends(ids)
  local ended = {}
  for k, plan in ipairs(plans) do
    ended[k] = plan.id
    end_lapsed_lease(run, out, plan)
  end
  if #out.memory > 0 then call('HSET', begin(memories), unpack(out.memory)) end
  put_back(out.front)
  -- A newer broker knows what to do with these; until one comes, they must not hold up the others.
  for _, id in ipairs(newer_ids) do call('ZADD', base .. KEY_DEADLINES, now + NEWER_PAUSE_MS, id) end
  if #ended > 0 then end_leases(ended) end
  notify_waiters(run.waited_until, out.settled)
  return out
end
