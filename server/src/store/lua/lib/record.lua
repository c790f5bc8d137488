-- The record of a job: domain/record/mod.rs.

-- Whether a newer version of the broker wrote a record. (Text and other foreign bytes begin above this.)
local function is_newer(record)
  local version = record and byte(record, 1)
  return version and version > RECORD_VERSION and version < 32
end

-- The head of a record. nil if it is none of ours, or cut.
local function head_of(record)
  if not record or #record <= RECORD_FIXED_BYTES or byte(record, 1) ~= RECORD_VERSION then return nil end
  local priority, type_len = byte(record, 3), byte(record, 4)
  if priority < 1 or priority > 9 or type_len == 0 or #record < RECORD_FIXED_BYTES + type_len then return nil end
  local head = {
    flags = byte(record, 2),
    lane = char(DIGIT_0 + priority) .. ':' .. sub(record, 5, 4 + type_len),
  }
  if has(head.flags, FLAG_POLICY) then
    local at = RECORD_FIXED_BYTES + 1 + type_len
    if #record < at + (POLICY_BYTES - 1) then return nil end
    local p = { struct.unpack('>I2I2I4I4I4I2I4I4B', record, at) }
    head.max_attempts, head.max_losses, head.initial_ms, head.max_ms = p[1], p[2], p[3], p[4]
    head.multiplier, head.jitter, head.timeout_ms, head.retention_ms = p[5], p[6], p[7], p[8]
    head.types_at, head.types = at + POLICY_BYTES, p[9]
  end
  return head
end

-- The head of a job's record, whatever the payload; or nil, and whether a newer version wrote it.
local function read_head(id)
  local record = try('GETRANGE', base .. KEY_RECORD .. id, '0', RECORD_HEAD_BYTES)
  local head = head_of(record)
  if head then return head end
  return nil, is_newer(record)
end

-- Whether the policy of a job names this type of failure among those that are not worth another attempt.
local function is_non_retryable(id, head, failure_type)
  if not head.types or head.types == 0 then return false end
  local record, at = call('GETRANGE', base .. KEY_RECORD .. id, 0, RECORD_HEAD_BYTES), head.types_at
  for _ = 1, head.types do
    local len = byte(record, at) or 0
    if sub(record, at + 1, at + len) == failure_type then return true end
    at = at + 1 + len
  end
  return false
end

-- Whether that many attempts are all that a job gets.
local function is_last_attempt(head, attempts, default)
  return attempts >= (head.max_attempts and head.max_attempts > 0 and head.max_attempts or default)
end

local function attempt_timeout(head, default_ms)
  return head and head.timeout_ms and head.timeout_ms > 0 and head.timeout_ms or default_ms
end

local function retention(head, default_ms)
  if head and head.retention_ms and head.retention_ms ~= RETENTION_UNSET then return head.retention_ms end
  return default_ms
end
