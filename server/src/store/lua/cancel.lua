-- Cancels a job: at once if no worker holds it, else by asking its holder to stop, who loses the lease after a grace.
-- KEYS  meta
-- ARGV  broker, id, reason, grace ms, deduplication window ms, failure retention ms
-- RETURNS {state, 1 if this call has ended the job}; '' if there is no such job
-- MOVES  READY → CANCELLED, SCHEDULED → CANCELLED
local id = ARGV[2]
local job = find_job(id)
-- Of a job that cannot be read, as of one that is gone, only the memory can tell.
if not job then return { remembered_end(call('HGET', KEYS[1], META_GENERATION), id) or '' } end
local outcome, state = cancel(job, {
  broker = ARGV[1], reason = ARGV[3], grace_ms = tonumber(ARGV[4]), window_ms = tonumber(ARGV[5]),
  failure_retention = tonumber(ARGV[6]),
})
if outcome == OUTCOME_DONE and state == STATE_CANCELLED then return { state, 1 } end
return { state }
