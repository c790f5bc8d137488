-- One bounded run of maintenance of a queue, duty by duty (lib/duties/). To be called again while `more` is 1.
-- KEYS  meta, lane index, scheduled, leases, lease deadlines, start_by, dead, settled, tombstones, lane tombstone
--       counts
-- ARGV  items of each kind at most, cursor of the repair scan, '1' if the queue may be forgotten, random number in [0,
--       1), deduplication window ms, remembered ids at most, failure retention ms, dead retention ms, dead at most,
--       retained at most, max attempts, max losses, max unconfirmed, attempt timeout ms, initial backoff ms, longest
--       backoff ms, multiplier in thousandths, jitter in thousandths
-- RETURNS {now ms, more 0/1, next run ms or -1, jobs are scheduled, ready or leased 0/1, {quarantined id...}, promoted,
--         {timed out, their priorities as digits, lost, unconfirmed, dead, cancelled}, expired, pruned, {repaired, next
--         cursor}, {forgotten 0/1, ms from which the queue may be forgotten or -1}}
-- MOVES  SCHEDULED → READY, LEASED → READY, LEASED → SCHEDULED, LEASED → DEAD, LEASED → CANCELLED,
--        READY → EXPIRED, SCHEDULED → EXPIRED
local meta = call('HMGET', KEYS[1], META_GENERATION, META_GENERATION_START, META_WAITED_UNTIL)
local run = {
  limit = tonumber(ARGV[1]),
  random = tonumber(ARGV[4]),
  window_ms = tonumber(ARGV[5]),
  max_ids = tonumber(ARGV[6]),
  failure_retention = tonumber(ARGV[7]),
  dead_retention = tonumber(ARGV[8]),
  max_dead = tonumber(ARGV[9]),
  max_retained = tonumber(ARGV[10]),
  max_attempts = tonumber(ARGV[11]),
  max_losses = tonumber(ARGV[12]),
  max_unconfirmed = tonumber(ARGV[13]),
  attempt_timeout = tonumber(ARGV[14]),
  backoff = {
    initial_ms = tonumber(ARGV[15]), max_ms = tonumber(ARGV[16]),
    multiplier = tonumber(ARGV[17]), jitter = tonumber(ARGV[18]),
  },
  generation = meta[1],
  generation_start = meta[2],
  waited_until = meta[3],
  more = 0,
  quarantined = {},
}
touch(base .. KEY_MEMORY .. (meta[1] or 0), unpack(KEYS))

local promoted = promote_due(run)
local lapsed = end_lapsed(run)
local expired = expire_late(run)
trim_lanes(run)
prune_waits(run)
end_windows(run)
local pruned = prune_retained(run, base .. KEY_DEAD, now - run.dead_retention, run.max_dead)
pruned = pruned + prune_retained(run, base .. KEY_SETTLED, now, run.max_retained)
rotate_memory(run)
local repaired, cursor = repair_leases(run, ARGV[2])

local next_ms = next_run(run)
local busy = call('EXISTS', base .. KEY_LANES, base .. KEY_SCHEDULED, base .. KEY_LEASES) > 0
local forgotten, forget_ms = 0, -1
if not busy and next_ms < 0 then
  forgotten, forget_ms = forget_empty(run, ARGV[3] == '1')
end
return {
  now, run.more, next_ms, busy and 1 or 0, run.quarantined, promoted,
  { lapsed.timed_out, lapsed.timed_priorities, lapsed.lost, lapsed.unconfirmed, lapsed.dead, lapsed.cancelled },
  expired, pruned, { repaired, cursor }, { forgotten, forget_ms },
}
