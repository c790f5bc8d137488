-- Steps of an extension that few leases need: for extend.lua.

-- The fields of the state hash that hold the progress of a lease, whose first argument is at this place; and its log
-- lines as they came, behind the number of the call, if there are any.
local function progress_fields(at)
  local fields, percent, lines = {}, ARGV[at + 4], nil
  local mark = string.find(percent, EXTEND_LOG_MARK, 1, true)
  if mark then percent, lines = sub(percent, 1, mark - 1), sub(percent, mark + 1) end
  if percent ~= '' then fields = { FIELD_PROGRESS_PERCENT, percent, FIELD_PROGRESS_MESSAGE, ARGV[at + 5] } end
  if ARGV[at + 6] ~= '' then
    fields[#fields + 1] = FIELD_CHECKPOINT
    fields[#fields + 1] = ARGV[at + 6]
  end
  return fields, lines
end

-- How many of the oldest lines of a log make way for `count` new ones of `bytes` bytes, and how many bytes those have.
-- `kept` and `held` are the lines and bytes of now.
local function lines_to_drop(key, kept, held, count, bytes)
  local drop, freed = 0, 0
  while drop < kept do
    for _, line in ipairs(call('LRANGE', key, drop, drop + count - 1)) do
      if kept - drop + count <= LOG_MAX_LINES and held - freed + bytes <= LOG_MAX_BYTES then return drop, freed end
      drop, freed = drop + 1, freed + #line
    end
  end
  return drop, freed
end

-- Adds lines to the log of a job. A repetition of the same call adds nothing. A key of another type where the log
-- should be stays, and the lines are lost.
local function append_log(id, packed)
  local key, number = base .. KEY_LOG .. id, sub(packed, 1, EXTEND_LOG_CALL_BYTES)
  local kept, foreign = try('LLEN', key)
  local state = try('HMGET', base .. KEY_STATE .. id, FIELD_LOG_LINES, FIELD_LOG_BYTES, FIELD_LOG_CALL) or {}
  if foreign or state[3] == number then return end
  local lines, bytes, at, time = {}, 0, EXTEND_LOG_CALL_BYTES + 1, pack_ms(now)
  while at < #packed do
    local length = struct.unpack('>I2', packed, at)
    lines[#lines + 1] = time .. sub(packed, at + 2, at + 1 + length)
    bytes, at = bytes + #time + length, at + 2 + length
  end
  local held = tonumber(state[2]) or 0
  local drop, freed = lines_to_drop(key, kept, held, #lines, bytes)
  call('RPUSH', key, unpack(lines))
  if drop > 0 then call('LTRIM', key, drop, '-1') end
  local written = (tonumber(state[1]) or 0) + #lines
  write_state(id, FIELD_LOG_LINES, written, FIELD_LOG_BYTES, held + bytes - freed, FIELD_LOG_CALL, number)
end

-- What a job takes of a window: its record and its checkpoint.
local function job_bytes(id, flags)
  local checkpoint = has(flags, FLAG_STATE) and try('HSTRLEN', base .. KEY_STATE .. id, FIELD_CHECKPOINT) or 0
  return (try('STRLEN', base .. KEY_RECORD .. id) or 0) + checkpoint
end
