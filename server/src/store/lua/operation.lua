-- Starts an operation, or changes its state.
-- KEYS  meta, operations, operation
-- ARGV  id, what: OPERATION_VERB_PAUSE, OPERATION_VERB_RESUME, OPERATION_VERB_CANCEL, OPERATION_VERB_FAIL with the
--         error, or OPERATION_VERB_BEGIN with: definition, plan, fingerprint, jobs a second or 0, estimated total, key
--         of the set or '', newest members of it to spare
-- RETURNS {OPERATION_CODE_}
-- MOVES  -
local id, verb = ARGV[1], ARGV[2]
touch(KEYS[2], KEYS[3])

if verb ~= OPERATION_VERB_BEGIN then
  local state = call('HGET', KEYS[3], OPERATION_STATE)
  if not state then return { OPERATION_CODE_UNKNOWN } end
  if state ~= OPERATION_IS_RUNNING and state ~= OPERATION_IS_PAUSED then return { OPERATION_CODE_SAME } end
  if verb == OPERATION_VERB_PAUSE then
    call('HSET', KEYS[3], OPERATION_STATE, OPERATION_IS_PAUSED)
  elseif verb == OPERATION_VERB_CANCEL then
    call('HSET', KEYS[3], OPERATION_STATE, OPERATION_IS_CANCELLED, OPERATION_END, now)
  elseif verb == OPERATION_VERB_FAIL then
    call('HSET', KEYS[3], OPERATION_STATE, OPERATION_IS_FAILED, OPERATION_END, now, OPERATION_ERROR, ARGV[3])
  elseif state == OPERATION_IS_PAUSED then
    -- The pause earns no jobs.
    call('HSET', KEYS[3], OPERATION_STATE, OPERATION_IS_RUNNING, OPERATION_PACE, now_us)
  end
  return { OPERATION_CODE_CHANGED }
end

local definition, plan, fingerprint, rate = ARGV[3], ARGV[4], ARGV[5], ARGV[6]
local estimate, set, spare = ARGV[7], ARGV[8], tonumber(ARGV[9])
local before = call('HGET', KEYS[3], OPERATION_FINGERPRINT)
if before then return { before == fingerprint and OPERATION_CODE_SAME or OPERATION_CODE_OTHER } end
local all = call('ZRANGE', KEYS[2], '0', OPERATIONS_KEPT)
local unended, excess = 0, {}
for _, other in ipairs(all) do
  local state = call('HGET', base .. KEY_OPERATION .. other, OPERATION_STATE)
  if state == OPERATION_IS_RUNNING or state == OPERATION_IS_PAUSED then
    unended = unended + 1
  elseif #excess <= #all - OPERATIONS_KEPT then
    excess[#excess + 1] = other
  end
end
if unended >= OPERATIONS_UNENDED then return { OPERATION_CODE_TOO_MANY } end
-- The newest members of the set are spared: the walk ends before the oldest of them.
local score, member = '', ''
if spare > 0 then
  local oldest = call('ZRANGE', base .. set, spare - 1, spare - 1, 'REV', 'WITHSCORES')
  score, member = oldest[2] or '-1', oldest[1] or ''
end
if #excess > 0 then
  touch_all(base .. KEY_OPERATION, excess)
end
-- Act.
for _, other in ipairs(excess) do
  call('UNLINK', base .. KEY_OPERATION .. other)
  call('ZREM', KEYS[2], other)
end
call(
  'HSET', KEYS[3], OPERATION_STATE, OPERATION_IS_RUNNING, OPERATION_DEFINITION, definition, OPERATION_PLAN, plan,
  OPERATION_FINGERPRINT, fingerprint, OPERATION_START, now, OPERATION_RATE, rate, OPERATION_PACE, now_us,
  OPERATION_ESTIMATE, estimate, OPERATION_SPARE_SCORE, score, OPERATION_SPARE_MEMBER, member
)
call('ZADD', KEYS[2], now, id)
return { OPERATION_CODE_CHANGED }
