-- Lists jobs of a filter, part by part.
-- KEYS  meta
-- ARGV  view, cursor ('' from the start), 1 newest first, jobs to examine, jobs to return, bytes after which to stop,
--       filter (lib/filter.lua)
-- RETURNS {now ms, jobs examined (-1: too many lanes), cursor ('' at the end), {id, state, time of its place in ms or
--         -1, record or its beginning, state hash as a flat list, lease or false}, ...}
-- MOVES  -
local view, most, bytes_left = ARGV[1], tonumber(ARGV[5]), tonumber(ARGV[6])
local filter = read_filter(7)
local fields = {
  FIELD_ATTEMPTS, FIELD_LOSSES, FIELD_UNCONFIRMED, FIELD_FINAL_STATE, FIELD_FINAL_AT, FIELD_CANCEL_REASON,
  FIELD_REDRIVES, FIELD_EDITS, FIELD_LOG_LINES,
  FIELD_FAILURE_TYPE, FIELD_FAILURE_MESSAGE, FIELD_PROGRESS_PERCENT, FIELD_PROGRESS_MESSAGE, FIELD_RESULT_TYPE,
}
if view == LIST_STATE then fields = { unpack(fields, 1, 9) } end

local function state_hash(id)
  local key = base .. KEY_STATE .. id
  if view == LIST_FULL then return try('HGETALL', key) or {} end
  local flat = {}
  for k, value in ipairs(try('HMGET', key, unpack(fields)) or {}) do
    if value then
      flat[#flat + 1] = fields[k]
      flat[#flat + 1] = value
    end
  end
  return flat
end

local reply = { now, 0, '' }
local looked, cursor = walk(filter, ARGV[2], ARGV[3] == '1', tonumber(ARGV[4]), function(job)
  local record = job.record
  if view ~= LIST_STATE then
    record = call('GETRANGE', base .. KEY_RECORD .. job.id, '0', view == LIST_FULL and '-1' or LIST_RECORD_END)
  end
  local hash = state_hash(job.id)
  local state = #filter.states == 1 and filter.states or state_of(job.id)
  local due = not job.ms and state == STATE_SCHEDULED and call('ZSCORE', base .. KEY_SCHEDULED, job.id)
  local deadline = not job.ms and state == STATE_LEASED and call('ZSCORE', base .. KEY_DEADLINES, job.id)
  local lease = job.lease or state == STATE_LEASED and call('HGET', base .. KEY_LEASES, job.id) or false
  reply[#reply + 1] = { job.id, state, tonumber(job.ms or due or deadline or -1), record, hash, lease }
  bytes_left = bytes_left - #record
  for k = 2, #hash, 2 do bytes_left = bytes_left - #hash[k] end
  return #reply - 3 >= most or bytes_left <= 0
end)
reply[2], reply[3] = looked or -1, cursor or ''
return reply
