-- One step of an operation: goes on through the jobs of its filter, acts on those that match, and writes in the same
-- call how far it came. Several brokers may run steps of one operation at once.
-- KEYS  meta, operations, operation
-- ARGV  id, jobs to examine at most, jobs to act on at most, microseconds after which to stop, what to do (ACT_, or
--       STEP_ANALYZE), deduplication window ms, failure retention ms, two parameters of the act (alter.lua), filter
--       (lib/filter.lua)
-- RETURNS {STEP_, ms until the next step, microseconds of this one, jobs that were acted on}
-- MOVES  READY → READY, READY → CANCELLED, SCHEDULED → READY, SCHEDULED → CANCELLED, LEASED → READY, DEAD → READY,
--        DEAD → SCHEDULED, CANCELLED → READY, CANCELLED → SCHEDULED, EXPIRED → READY, EXPIRED → SCHEDULED,
--        READY → -, SCHEDULED → -, SUCCEEDED → -, DEAD → -, CANCELLED → -, EXPIRED → -
local id, most, most_acts, most_us, kind = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4]), ARGV[5]
local op_key = KEYS[3]
local op = call(
  'HMGET', op_key, OPERATION_STATE, OPERATION_END, OPERATION_CURSOR, OPERATION_START, OPERATION_RATE, OPERATION_PACE,
  OPERATION_SPARE_SCORE, OPERATION_SPARE_MEMBER
)
local verdict, left_ms = begin_step(op_key, id, op[1], op[2])
if verdict then return { verdict, left_ms, used_us(), 0 } end
local cursor, start_ms, rate, pace = op[3] or '', tonumber(op[4]), tonumber(op[5]) or 0, tonumber(op[6]) or now_us
local each_us = rate > 0 and 1000000 / rate or 0
if rate > 0 then
  -- A pause of a second at most can be made up for. A step waits until it is worth its call.
  pace = max(pace, now_us - 1000000)
  local room = floor((now_us - pace) / each_us)
  local wanted = min(most_acts, max(1, math.ceil(rate / 10)))
  if room < wanted then
    local wait_ms = math.ceil((pace + wanted * each_us - now_us) / 1000)
    return { STEP_MORE, max(1, wait_ms), used_us(), 0 }
  end
  most_acts = min(most_acts, room)
end
local one, other = ARGV[8], ARGV[9]
local params = {
  broker = NOBODY, window_ms = tonumber(ARGV[6]), failure_retention = tonumber(ARGV[7]),
  priority = one, delay_ms = other, reason = one, grace_ms = tonumber(other), without_loss = one == '1',
}
local filter = read_filter(10)
-- What came to its state later is passed over, so that an operation never meets its own results.
if filter.states == STATE_DEAD then
  filter.until_ms = min(filter.until_ms or start_ms + 1, start_ms + 1)
elseif filter.states ~= STATE_SCHEDULED and filter.states ~= STATE_READY and filter.states ~= STATE_LEASED then
  filter.settled_until, filter.needs_hash = min(filter.settled_until or start_ms + 1, start_ms + 1), true
end
local spare_score, spare_member = tonumber(op[7]), op[8]
touch(op_key, base .. KEY_OPERATIONS)

local reasons = {
  [OUTCOME_NOT_FOUND] = 'NOT_FOUND', [OUTCOME_WRONG_STATE] = 'WRONG_STATE', [OUTCOME_UNIQUE_TAKEN] = 'UNIQUE_TAKEN',
  [OUTCOME_UNREADABLE] = 'UNREADABLE',
}
local groups, counts, acted, done, is_end = {}, {}, 0, 0, false
local function count(field, jobs) counts[field] = (counts[field] or 0) + jobs end
local function store_counts()
  for field, jobs in pairs(counts) do call('HINCRBY', op_key, field, jobs) end
  counts = {}
end

local examined, behind = walk(filter, cursor, false, most, function(job)
  if job.lane and job.ms > start_ms then return false end
  if job.lease and unpack_ms(job.lease, LEASE_TIME_AT) > start_ms then return false end
  local ms = spare_score and job.ms
  if ms and (ms > spare_score or ms == spare_score and not is_before(job.id, spare_member)) then
    is_end = true
    return true
  end
  acted = acted + 1
  local outcome = OUTCOME_DONE
  if kind == STEP_ANALYZE then
    count_in_group(groups, job.id, sub(job.record, 5, 4 + byte(job.record, 4)), job.ms or now)
  else
    outcome = act(kind, job.id, params)
  end
  count(OPERATION_EXAMINED, 1)
  count(OPERATION_MATCHED, 1)
  if outcome == OUTCOME_DONE then done = done + 1 end
  count(outcome == OUTCOME_DONE and OPERATION_DONE or OPERATION_SKIPPED .. (reasons[outcome] or 'OTHER'), 1)
  -- The next act may end the script, if its keys are on their way to another node: what is done must be counted.
  if IN_CLUSTER then store_counts() end
  return acted >= most_acts or acted % ACTS_PER_CLOCK == 0 and used_us() >= most_us
end)
if not examined then
  call('HSET', op_key, OPERATION_STATE, OPERATION_IS_FAILED, OPERATION_END, now, OPERATION_ERROR, TOO_MANY_LANES_TEXT)
  return { STEP_ENDED, 0, used_us(), 0 }
end
count(OPERATION_EXAMINED, examined - acted)
store_counts()
if #groups > 0 then store_groups(op_key, groups, start_ms) end
call('HSET', op_key, OPERATION_CURSOR, behind, OPERATION_PACE, floor(pace + acted * each_us))
if not is_end and behind ~= '' then return { STEP_MORE, 0, used_us(), done } end
call('HSET', op_key, OPERATION_STATE, OPERATION_IS_DONE, OPERATION_END, now)
return { STEP_ENDED, 0, used_us(), done }
