-- Settles leased jobs as not succeeded.
-- KEYS  meta, leases, lease deadlines, settled, scheduled, lane index, dead
-- ARGV  broker, deduplication window ms, failure retention ms, max attempts, initial backoff ms, longest backoff ms,
--       multiplier in thousandths, jitter in thousandths, max unconfirmed, then per job: id, nonce, action (NACK_),
--       delay ms or '' (NACK_UNDELIVERED, NACK_UNCONFIRMED: the owner (8) that the lease must have, '' any), random
--       number in [0, 1), failure type, message, stack
-- RETURNS {now ms, per job: code (CODE_), state, due ms (of a job that is ready again: now, if it is to expire, else
--         0)}
-- MOVES  LEASED → READY, LEASED → SCHEDULED, LEASED → DEAD, LEASED → CANCELLED
local broker, window_ms, failure_retention = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local policy = {
  max_attempts = tonumber(ARGV[4]),
  backoff = {
    initial_ms = tonumber(ARGV[5]), max_ms = tonumber(ARGV[6]),
    multiplier = tonumber(ARGV[7]), jitter = tonumber(ARGV[8]),
  },
  max_unconfirmed = tonumber(ARGV[9]),
}
local count = (#ARGV - (NACK_FIRST - 1)) / NACK_STRIDE
local ids = {}
for k = 1, count do ids[k] = ARGV[NACK_FIRST + (k - 1) * NACK_STRIDE] end

-- Decide.
local values = call('HMGET', KEYS[2], unpack(ids))
local meta = call('HMGET', KEYS[1], META_GENERATION, META_GENERATION_START, META_WAITED_UNTIL)
local memories -- read once one of the leases is not there
local answers, plans, seen, lanes = {}, {}, {}, {}
for k = 1, count do
  local from = NACK_FIRST + (k - 1) * NACK_STRIDE
  local id, nonce, action = ids[k], ARGV[from + 1], ARGV[from + 2]
  local value, n = values[k], 3 * (k - 1)
  if not value or #value < LEASE_BYTES or sub(value, 1, LEASE_NONCE_END) ~= nonce or seen[id] then
    if memories == nil then
      --@ define remembered
      memories = remembered(meta[1], ids) or false
    end
    local code, memory = CODE_LEASE_LOST, memories and memories[k]
    if seen[id] then
      code = seen[id] == action and CODE_ALREADY or CODE_OTHERWISE
    elseif memory and sub(memory, MEMORY_NONCE_AT, MEMORY_NONCE_END) == sub(nonce, 1, MEMORY_NONCE_BYTES) then
      code = sub(memory, MEMORY_ACTION_AT, MEMORY_ACTION_AT) == action and CODE_ALREADY or CODE_OTHERWISE
    end
    answers[n + 1], answers[n + 2], answers[n + 3] = code, '', 0
  else
    seen[id] = action
    local plan = {
      id = id, nonce = nonce, action = action, flags = byte(value, LEASE_FLAGS_AT), from = from, delay = ARGV[from + 3],
    }
    plan_nack(plan, value, policy)
    if plan.to == STATE_READY and not lanes[plan.head.lane] then
      lanes[plan.head.lane] = true
      touch(base .. KEY_LANE .. plan.head.lane, base .. KEY_QUARANTINED_LANE .. plan.head.lane)
    end
    if plan.to then
      plans[#plans + 1] = plan
      answers[n + 1], answers[n + 2], answers[n + 3] = CODE_APPLIED, plan.to, plan.due or 0
    else
      answers[n + 1], answers[n + 2], answers[n + 3] = CODE_LEASE_LOST, '', 0
    end
  end
end
if #plans == 0 then return { now, answers } end
touch(unpack(KEYS))
local chosen = generation(meta[1], meta[2], window_ms)
touch_ends(ids)

-- Act.
local done, memory, front, ending = {}, {}, {}, {}
local earliest = earliest_due(KEYS[5])
for n, plan in ipairs(plans) do
  local id, to = plan.id, plan.to
  done[n] = id
  memory[2 * n - 1], memory[2 * n] = id, to .. sub(plan.nonce, 1, MEMORY_NONCE_BYTES) .. plan.action
  -- A job that was released has not begun.
  local has_begun = to ~= STATE_READY and not (to == STATE_SCHEDULED and plan.action == NACK_RELEASE)
  if has_begun and has(plan.flags, FLAG_START_BY) then
    call('ZREM', base .. KEY_START_BY, id)
  end
  if to == NACK_QUARANTINE then
    --@ define quarantine
    quarantine(id, 'unreadable record')
  else
    local fields = nack_fields(plan)
    if to == STATE_READY then
      local flags = plan.flags
      if plan.unconfirmed or plan.releases then
        write_state(id, unpack(fields))
        if not has(flags, FLAG_STATE) then flags = flags + FLAG_STATE end
      end
      front[#front + 1] = { id = id, flags = flags, lane = plan.head.lane, ms = now }
    elseif to == STATE_SCHEDULED then
      if #fields > 0 then write_state(id, unpack(fields)) end
      earliest = schedule(KEYS[5], earliest, broker, id, plan.due)
    else
      ending[#ending + 1] = { plan = plan, fields = fields }
    end
  end
end
local settled = {}
if #ending > 0 then
  --@ define release_unique, keep_settled, retention
  for k, item in ipairs(ending) do
    local plan = item.plan
    release_unique(plan.id, plan.flags)
    keep_settled(plan.id, plan.to, now + retention(plan.head, failure_retention), item.fields)
    settled[k] = plan.id
  end
end
call('HSET', begin(chosen), unpack(memory))
if #front > 0 then
  --@ define put_back
  put_back(front)
end
end_leases(done)
if #settled > 0 then
  --@ define notify_waiters
  notify_waiters(meta[3], settled)
end
return { now, answers }
