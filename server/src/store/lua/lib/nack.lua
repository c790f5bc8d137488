-- What a nack makes of a job: for nack.lua.

-- Whether a stream that releases a job that no worker got still owns its lease. Not if another stream owns it, or if
-- the worker has confirmed the job meanwhile.
local function is_still_owned(value, owner)
  return owner == ''
    or sub(value, LEASE_OWNER_AT, LEASE_OWNER_END) == owner
      and sub(value, LEASE_CONFIRMED_AT, LEASE_CONFIRMED_AT) ~= '1'
end

-- The worker has not started the job.
local function plan_release(plan, releases)
  plan.releases = (tonumber(releases) or 0) + 1
  if plan.releases <= NACK_FREE_RELEASES then
    plan.to = STATE_READY
  else
    -- No worker can run it at the moment: it waits, so that no two workers toss it back and forth.
    local delay_ms = NACK_RELEASE_DELAY_MS * 2 ^ (plan.releases - NACK_FREE_RELEASES - 1)
    plan.to, plan.due = STATE_SCHEDULED, now + min(NACK_RELEASE_DELAY_MAX_MS, delay_ms)
  end
end

-- The attempt has failed.
local function plan_retry(plan, state, policy)
  plan.attempts = (tonumber(state[1]) or 0) + 1
  plan.releases = state[4] and 0
  local failure_type = ARGV[plan.from + 5]
  local is_last = is_last_attempt(plan.head, plan.attempts, policy.max_attempts)
  if is_last or is_non_retryable(plan.id, plan.head, failure_type) then
    plan.to = STATE_DEAD
  else
    local random = tonumber(ARGV[plan.from + 4])
    local delay_ms = plan.delay ~= '' and tonumber(plan.delay)
      or backoff_ms(plan.head, plan.attempts, policy.backoff, random)
    plan.to, plan.due = STATE_SCHEDULED, now + delay_ms
  end
end

-- Decides where a job goes: `plan.to` is a state, NACK_QUARANTINE, or nil if nothing is to be done; `plan.due` is when.
local function plan_nack(plan, value, policy)
  local id, action = plan.id, plan.action
  local head, state = read_head(id), {}
  if has(plan.flags, FLAG_STATE) then
    state = try(
      'HMGET', base .. KEY_STATE .. id, FIELD_ATTEMPTS, FIELD_CANCEL_REASON, FIELD_UNCONFIRMED, FIELD_RELEASES
    ) or {}
  end
  touch(base .. KEY_STATE .. id)
  plan.head = head
  if not head or action == NACK_QUARANTINE then
    plan.to = NACK_QUARANTINE
  elseif (action == NACK_UNDELIVERED or action == NACK_UNCONFIRMED) and not is_still_owned(value, plan.delay) then
    plan.to = nil
  elseif action == NACK_DISCARD then
    plan.to = STATE_CANCELLED
  elseif action == NACK_DEAD_LETTER then
    plan.to = STATE_DEAD
  elseif state[2] then
    plan.to = STATE_CANCELLED -- a cancel was asked for: no further attempt
  elseif action == NACK_UNDELIVERED then
    plan.to = STATE_READY
  elseif action == NACK_RELEASE then
    plan_release(plan, state[4])
  elseif action == NACK_UNCONFIRMED then
    plan.unconfirmed = (tonumber(state[3]) or 0) + 1
    plan.to = plan.unconfirmed < policy.max_unconfirmed and STATE_READY or STATE_DEAD
  elseif action == NACK_SNOOZE then
    plan.to, plan.due = STATE_SCHEDULED, now + tonumber(plan.delay)
  else
    plan_retry(plan, state, policy)
  end
  if plan.to == STATE_READY and has(plan.flags, FLAG_START_BY) then
    -- The half: the moment has passed while a worker held it.
    local start_by = tonumber(call('ZSCORE', base .. KEY_START_BY, id) or nil)
    if start_by and (start_by <= now or start_by % 1 > 0) then plan.due = now end
  end
end

-- The fields of the state hash that a nack writes, and their values.
local function nack_fields(plan)
  local fields, from = {}, plan.from
  if plan.unconfirmed and plan.to == STATE_DEAD then
    fields = {
      FIELD_FAILURE_TYPE, 'Unconfirmed', FIELD_FAILURE_MESSAGE, plan.unconfirmed .. UNCONFIRMED_TEXT,
      FIELD_FAILURE_STACK, '', FIELD_FAILED_AT, now,
    }
  elseif ARGV[from + 5] ~= '' or ARGV[from + 6] ~= '' then
    fields = {
      FIELD_FAILURE_TYPE, ARGV[from + 5], FIELD_FAILURE_MESSAGE, ARGV[from + 6], FIELD_FAILURE_STACK, ARGV[from + 7],
      FIELD_FAILED_AT, now,
    }
  end
  local function note(field, value)
    if value then
      fields[#fields + 1] = field
      fields[#fields + 1] = value
    end
  end
  note(FIELD_ATTEMPTS, plan.attempts)
  note(FIELD_RELEASES, plan.releases)
  note(FIELD_UNCONFIRMED, plan.unconfirmed)
  return fields
end
