-- Operations: store/keys.rs has the fields of their hash.

-- Whether an operation is to be continued now. If not: how the step ends, and ms until the next one. One that ended
-- long ago is deleted.
local function begin_step(op_key, id, state, end_ms)
  if state == OPERATION_IS_RUNNING then return nil end
  if not state or state == OPERATION_IS_PAUSED then return STEP_IDLE, 0 end
  local left_ms = (tonumber(end_ms) or 0) + OPERATION_RETENTION_MS - now
  if left_ms > 0 then return STEP_KEPT, left_ms end
  touch(op_key, base .. KEY_OPERATIONS)
  call('UNLINK', op_key)
  call('ZREM', base .. KEY_OPERATIONS, id)
  return STEP_GONE, 0
end

-- Microseconds since the script began.
local function used_us()
  local at = call('TIME')
  return at[1] * 1000000 + at[2] - now_us
end
