-- Acts: what a broker does to one job by its id, wherever the job is. Each act reads and checks first, then names its
-- keys, then makes one whole move; so a script may do several, one after the other. This file: what all need.

-- The job of an act: {id, head, state, is_final}; or nil, the outcome, and what is known of the state.
local function find_job(id)
  local state, is_final = state_of(id)
  if not state then
    return nil, OUTCOME_NOT_FOUND, remembered_end(call('HGET', base .. KEY_META, META_GENERATION), id) or ''
  end
  local head = read_head(id)
  if not head then return nil, OUTCOME_UNREADABLE, state end
  return { id = id, head = head, state = state, is_final = is_final }
end

-- Names every key that an act may write; `lane` is the one to which it may put the job.
local function touch_act(id, head, lane)
  local keys = {}
  for n, part in ipairs({
    KEY_META, KEY_LANES, KEY_SCHEDULED, KEY_LEASES, KEY_DEADLINES, KEY_START_BY, KEY_DEAD, KEY_SETTLED, KEY_TOMBSTONES,
    KEY_TOMBSTONE_COUNTS, KEY_UNIQUE, KEY_UNIQUE_WINDOWS, KEY_WAITERS,
  }) do
    keys[n] = base .. part
  end
  for _, part in ipairs({ KEY_RECORD, KEY_STATE, KEY_LOG, KEY_QUARANTINED_STATE }) do
    keys[#keys + 1] = base .. part .. id
  end
  for _, name in ipairs({ head.lane, lane }) do
    keys[#keys + 1] = base .. KEY_LANE .. name
    keys[#keys + 1] = base .. KEY_QUARANTINED_LANE .. name
  end
  touch(unpack(keys))
end

-- The lane of a job with another priority (a digit, '' the same).
local function lane_with(head, priority)
  return priority == '' and head.lane or priority .. sub(head.lane, 2)
end

-- Writes the priority of a lane into the record of a job.
local function write_priority(id, lane)
  call('SETRANGE', base .. KEY_RECORD .. id, '2', char(byte(lane, 1) - DIGIT_0))
end

-- Puts a job at the tail of a lane.
local function put_last(job, lane)
  local flags = entry_flags(job.head.flags)
  if not has(flags, FLAG_STATE) and call('EXISTS', base .. KEY_STATE .. job.id) == 1 then flags = flags + FLAG_STATE end
  make_ready({ { id = job.id, flags = flags, lane = lane, ms = now } }, false)
end
