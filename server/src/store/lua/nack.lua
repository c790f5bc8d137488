-- Settles leased jobs as not done.
-- KEYS  meta, leases, lease deadlines, settled, scheduled, lane index, dead
-- ARGV  broker, dedupe window ms, failure retention ms, max attempts, initial backoff ms, longest backoff ms, multiplier in thousandths,
--       jitter in thousandths, max unconfirmed, then per job: id, nonce, action ('T' retry, 'L' release (put off by 250 ms to 10 s from the sixth time in a row on), 'G' given back by a broker because no worker has it, 'U' the same, counted as an unconfirmed delivery, 'Z' snooze, 'D' dead-letter, 'C' discard, 'Q' set aside: the record cannot be read),
--       delay ms or '' ('G' and 'U': only if this stream (8) keeps it, '' always), random number in [0, 1), failure type, message, stack
-- RETURNS {now ms, per job: code, state, due ms (of a job that is ready again: now, if it is to expire, else 0)}
--         codes: 0 applied, 1 settled so before, 2 lease lost, 3 settled otherwise before
-- MOVES  LEASED → READY, LEASED → SCHEDULED, LEASED → DEAD, LEASED → CANCELLED
local broker, window_ms, failure_retention = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local default_attempts = tonumber(ARGV[4])
local defaults = { initial_ms = tonumber(ARGV[5]), max_ms = tonumber(ARGV[6]), multiplier = tonumber(ARGV[7]), jitter = tonumber(ARGV[8]) }
local max_unconfirmed = tonumber(ARGV[9])
local STRIDE, FIRST = 8, 10
-- Releases in a row, without an attempt in between, before a job is put off.
local FREE_RELEASES = 5
local count = (#ARGV - FIRST + 1) / STRIDE
local ids = {}
for k = 1, count do ids[k] = ARGV[FIRST + (k - 1) * STRIDE] end

-- decide
local values = call('HMGET', KEYS[2], unpack(ids))
local meta = call('HMGET', KEYS[1], 'dg', 'ds', 'w')
local before -- what is remembered of them; asked once one of them is not leased any more
local answers, plans, seen, lanes = {}, {}, {}, {}
for k = 1, count do
  local from = FIRST + (k - 1) * STRIDE
  local id, nonce, action = ids[k], ARGV[from + 1], ARGV[from + 2]
  local value, n = values[k], 3 * (k - 1)
  if not value or #value < LEASE_BYTES or sub(value, 1, 16) ~= nonce or seen[id] then
    if before == nil then
      -- with: remembered
      before = remembered(meta[1], ids) or false
    end
    local code, old = 2, before and before[k]
    if seen[id] then
      code = seen[id] == action and 1 or 3
    elseif old and sub(old, 2, 9) == sub(nonce, 1, 8) then
      code = sub(old, 10, 10) == action and 1 or 3
    end
    answers[n + 1], answers[n + 2], answers[n + 3] = code, '', 0
  else
    seen[id] = action
    local flags = byte(value, 23)
    local head = read_head(id)
    local state = {}
    if has(flags, FLAG_STATE) then state = try('HMGET', base .. 's' .. id, 'a', 'cr', 'un', 'rl') or {} end
    touch(base .. 's' .. id)
    local plan = { id = id, nonce = nonce, action = action, flags = flags, head = head, from = from }
    local delay = ARGV[from + 3]
    if not head or action == 'Q' then
      plan.to = 'Q'
    elseif (action == 'G' or action == 'U') and delay ~= '' and (sub(value, 24, 31) ~= delay or sub(value, 32, 32) == '1') then
      plan.to = nil -- another stream keeps it, or its worker has extended it and so has the job
    elseif action == 'C' then
      plan.to = STATE_CANCELLED
    elseif action == 'D' then
      plan.to = STATE_DEAD
    elseif state[2] then
      plan.to = STATE_CANCELLED -- a cancel was asked for: no further attempt
    elseif action == 'G' then
      plan.to = STATE_READY
    elseif action == 'L' then
      plan.releases = (tonumber(state[4]) or 0) + 1
      if plan.releases <= FREE_RELEASES then
        plan.to = STATE_READY
      else
        -- Nobody can do it at the moment: it does not go round and round.
        plan.to, plan.due = STATE_SCHEDULED, now + min(10000, 250 * 2 ^ (plan.releases - FREE_RELEASES - 1))
      end
    elseif action == 'U' then
      plan.unconfirmed = (tonumber(state[3]) or 0) + 1
      plan.to = plan.unconfirmed < max_unconfirmed and STATE_READY or STATE_DEAD
    elseif action == 'Z' then
      plan.to, plan.due = STATE_SCHEDULED, now + tonumber(delay)
    else
      plan.attempts = (tonumber(state[1]) or 0) + 1
      plan.releases = state[4] and 0
      local most = head.max_attempts and head.max_attempts > 0 and head.max_attempts or default_attempts
      if plan.attempts >= most or is_hopeless(id, head, ARGV[from + 5]) then
        plan.to = STATE_DEAD
      else
        plan.to = STATE_SCHEDULED
        plan.due = now + (delay ~= '' and tonumber(delay) or backoff_ms(head, plan.attempts, defaults, tonumber(ARGV[from + 4])))
      end
    end
    if plan.to == STATE_READY and has(flags, FLAG_START_BY) then
      -- The half: the moment has passed while a worker held it.
      local start_by = tonumber(call('ZSCORE', base .. 'b', id) or nil)
      if start_by and (start_by <= now or start_by % 1 > 0) then plan.due = now end
    end
    if plan.to == STATE_READY and not lanes[head.lane] then
      lanes[head.lane] = true
      touch(base .. 'r:' .. head.lane, base .. 'qr:' .. head.lane)
    end
    if plan.to then
      plans[#plans + 1] = plan
      answers[n + 1], answers[n + 2], answers[n + 3] = 0, plan.to, plan.due or 0
    else
      answers[n + 1], answers[n + 2], answers[n + 3] = 2, '', 0
    end
  end
end
if #plans == 0 then return { now, answers } end
touch(unpack(KEYS))
local memories = generation(meta[1], meta[2], window_ms)
touch_ends(ids)

-- act
local done, memory, front, ending = {}, {}, {}, {}
local earliest = call('ZRANGE', KEYS[5], 0, 0, 'WITHSCORES')[2]
earliest = earliest and tonumber(earliest)
for n, plan in ipairs(plans) do
  local id, to, from = plan.id, plan.to, plan.from
  done[n] = id
  memory[2 * n - 1], memory[2 * n] = id, to .. sub(plan.nonce, 1, 8) .. plan.action
  local fields = {}
  if ARGV[from + 5] ~= '' or ARGV[from + 6] ~= '' then
    fields = { 'ft', ARGV[from + 5], 'fm', ARGV[from + 6], 'fs', ARGV[from + 7], 'fa', now }
  end
  if plan.attempts then
    fields[#fields + 1] = 'a'
    fields[#fields + 1] = plan.attempts
  end
  if plan.releases then
    fields[#fields + 1] = 'rl'
    fields[#fields + 1] = plan.releases
  end
  if plan.unconfirmed then
    if to == STATE_DEAD then fields = { 'ft', 'Unconfirmed', 'fm', plan.unconfirmed .. UNCONFIRMED_TEXT, 'fs', '', 'fa', now } end
    fields[#fields + 1] = 'un'
    fields[#fields + 1] = plan.unconfirmed
  end
  -- A job that was given back has not begun.
  if to ~= STATE_READY and not (to == STATE_SCHEDULED and plan.action == 'L') and has(plan.flags, FLAG_START_BY) then call('ZREM', base .. 'b', id) end
  if to == 'Q' then
    -- with: quarantine
    quarantine(id, 'unreadable record')
  elseif to == STATE_READY then
    local flags = plan.flags
    if plan.unconfirmed or plan.releases then
      write_state(id, unpack(fields))
      if not has(flags, FLAG_STATE) then flags = flags + FLAG_STATE end
    end
    front[#front + 1] = { id, flags, plan.head.lane, now }
  elseif to == STATE_SCHEDULED then
    if #fields > 0 then write_state(id, unpack(fields)) end
    call('ZADD', KEYS[5], plan.due, id)
    if not earliest or plan.due < earliest then
      earliest = plan.due
      tell('z' .. broker .. string.format('%d', plan.due))
    end
  else
    ending[#ending + 1] = { plan, fields }
  end
end
local settled = {}
if #ending > 0 then
  -- with: release_unique, keep_settled, retention
  for k, item in ipairs(ending) do
    local plan = item[1]
    release_unique(plan.id, plan.flags)
    keep_settled(plan.id, plan.to, now + retention(plan.head, failure_retention), item[2])
    settled[k] = plan.id
  end
end
call('HSET', begin(memories), unpack(memory))
if #front > 0 then
  -- with: make_ready
  -- The last given back was the last handed out: put them back in that order.
  local reversed = {}
  for k = #front, 1, -1 do reversed[#reversed + 1] = front[k] end
  make_ready(reversed, true)
end
call('ZREM', KEYS[3], unpack(done))
call('HDEL', KEYS[2], unpack(done))
if #settled > 0 then
  -- with: tell_waiters
  tell_waiters(meta[3], settled)
end
return { now, answers }
