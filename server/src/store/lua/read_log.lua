-- Reads lines of the log of a job.
-- KEYS  meta
-- ARGV  id, number of the last line that is known, lines at most
-- RETURNS {1 if the job is there, lines written in all, lines kept, line...: from the first kept one that is not known}
-- MOVES  -
local id, known, most = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local is_there = call('EXISTS', base .. KEY_RECORD .. id)
local written = tonumber((try('HGET', base .. KEY_STATE .. id, FIELD_LOG_LINES)) or 0) or 0
local kept = try('LLEN', base .. KEY_LOG .. id) or 0
local first = max(0, known - (written - kept))
local lines = kept > first and call('LRANGE', base .. KEY_LOG .. id, first, first + most - 1) or {}
return { is_there, written, kept, lines }
