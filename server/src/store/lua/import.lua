-- Stores jobs as they were exported, each in the state that it had then.
-- KEYS  meta, lane index, scheduled, unique keys, windows of unique keys, start_by, dead, settled
-- ARGV  broker, failure retention ms, success retention ms, dead retention ms, then per job: id, record, lane, flags
--       of its entry, letter of its state, due or settle time ms, start_by ms or '', unique key or '', when its window
--       ends ms or '', number of arguments that follow: fields and values of its state hash
-- RETURNS {now ms, per job: code (IMPORT_) and the id of the job that has its unique key or ''}
-- MOVES  -
local broker, failure_retention, success_retention = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local dead_retention = tonumber(ARGV[4])

-- Decide.
local meta_gen = call('HGET', KEYS[1], META_GENERATION)
local reply, jobs, seen, keys, at = { now }, {}, {}, {}, 5
while ARGV[at] do
  local job = {
    id = ARGV[at], record = ARGV[at + 1], lane = ARGV[at + 2], flags = tonumber(ARGV[at + 3]), state = ARGV[at + 4],
    ms = tonumber(ARGV[at + 5]), start_by = ARGV[at + 6], key = ARGV[at + 7], until_ms = tonumber(ARGV[at + 8] or nil),
    first = at + 10, last = at + 9 + tonumber(ARGV[at + 9]),
  }
  at = job.last + 1
  local is_waiting = job.state == STATE_READY or job.state == STATE_SCHEDULED
  local holder, _, ended
  if is_waiting and job.key ~= '' and (not job.until_ms or job.until_ms > now) then
    job.takes_key = true
    holder, _, ended = unique_holder(job.key)
    holder, job.ended = keys[job.key] or holder, ended
  end
  -- What ended in another way than this job says is not to come back.
  local letter = remembered_end(meta_gen, job.id)
  if seen[job.id] or state_of(job.id) or letter and letter ~= job.state then
    reply[#reply + 1], reply[#reply + 2] = IMPORT_DUPLICATE, ''
  elseif holder and holder ~= job.id then
    reply[#reply + 1], reply[#reply + 2] = IMPORT_UNIQUE_TAKEN, holder
  else
    seen[job.id] = true
    if job.takes_key then keys[job.key] = job.id end
    reply[#reply + 1], reply[#reply + 2] = IMPORT_STORED, ''
    jobs[#jobs + 1] = job
    touch(base .. KEY_RECORD .. job.id, base .. KEY_STATE .. job.id, base .. KEY_QUARANTINED_STATE .. job.id)
    touch(base .. KEY_LANE .. job.lane, base .. KEY_QUARANTINED_LANE .. job.lane)
  end
end
if #jobs == 0 then return reply end
touch(unpack(KEYS))

-- Act.
local earliest, ready = earliest_due(KEYS[3]), {}
for _, job in ipairs(jobs) do
  local id, state, flags = job.id, job.state, job.flags
  call('SET', base .. KEY_RECORD .. id, job.record)
  if job.last >= job.first then
    write_state(id, unpack(ARGV, job.first, job.last))
    if not has(flags, FLAG_STATE) then flags = flags + FLAG_STATE end
  end
  if job.takes_key then take_unique(job.key, id, job.until_ms, job.ended) end
  if state == STATE_DEAD then
    -- One that would be pruned at once is retained from now on.
    call('ZADD', KEYS[7], job.ms > now - dead_retention and job.ms <= now and job.ms or now, id)
  elseif state == STATE_READY or state == STATE_SCHEDULED then
    if job.start_by ~= '' then call('ZADD', KEYS[6], job.start_by, id) end
    if state == STATE_SCHEDULED and job.ms > now then
      earliest = schedule(KEYS[3], earliest, broker, id, job.ms)
    else
      ready[#ready + 1] = { id = id, flags = flags, lane = job.lane, ms = now }
    end
  else
    local default = state == STATE_SUCCEEDED and success_retention or failure_retention
    call('ZADD', KEYS[8], now + retention(head_of(job.record), default), id)
  end
end
make_ready(ready, false)
return reply
