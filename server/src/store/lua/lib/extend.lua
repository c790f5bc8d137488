-- Steps of an extension that few leases need: for extend.lua.

-- The fields of the state hash that hold the progress of a lease, whose first argument is at this place.
local function progress_fields(at)
  local fields = { FIELD_PROGRESS_PERCENT, ARGV[at + 4], FIELD_PROGRESS_MESSAGE, ARGV[at + 5] }
  if ARGV[at + 6] ~= '' then fields[5], fields[6] = FIELD_CHECKPOINT, ARGV[at + 6] end
  return fields
end

-- What a job takes of a window: its record and its checkpoint.
local function job_bytes(id, flags)
  local checkpoint = has(flags, FLAG_STATE) and try('HSTRLEN', base .. KEY_STATE .. id, FIELD_CHECKPOINT) or 0
  return (try('STRLEN', base .. KEY_RECORD .. id) or 0) + checkpoint
end
