-- Deletes a queue: one step of an operation that deletes everything in it; or at once, if nothing is in it.
-- KEYS  meta, operations, operation
-- ARGV  id of the operation, or '' to delete a queue in which nothing is, jobs at most
-- RETURNS {STEP_ENDED if the queue is gone, or another STEP_, ms until the next step, microseconds of this one, jobs
--         that were deleted}
-- MOVES  -
local id, limit = ARGV[1], tonumber(ARGV[2])
local op = call('HMGET', KEYS[3], OPERATION_STATE, OPERATION_END)
if id ~= '' then
  local verdict, wait_ms = begin_step(KEYS[3], id, op[1], op[2])
  if verdict then return { verdict, wait_ms, used_us(), 0 } end
end
local meta = call('HMGET', KEYS[1], META_GENERATION, META_WAITED_UNTIL)
local part = next_part(limit)
if id == '' then
  if part then return { STEP_MORE, 0, used_us(), 0 } end
  for _, other in ipairs(call('ZRANGE', KEYS[2], '0', OPERATIONS_KEPT)) do
    local state = call('HGET', base .. KEY_OPERATION .. other, OPERATION_STATE)
    if state == OPERATION_IS_RUNNING or state == OPERATION_IS_PAUSED then return { STEP_MORE, 0, used_us(), 0 } end
  end
end
if not part then
  purge_rest(meta[1])
  return { STEP_ENDED, 0, used_us(), 0 }
end
touch(KEYS[3])
touch_part(part)
-- Act.
purge_part(part, meta[2])
call('HINCRBY', KEYS[3], OPERATION_EXAMINED, #part.ids)
call('HINCRBY', KEYS[3], OPERATION_MATCHED, #part.ids)
call('HINCRBY', KEYS[3], OPERATION_DONE, #part.ids)
return { STEP_MORE, 0, used_us(), #part.ids }
