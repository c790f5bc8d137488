-- Acts on jobs that no worker holds.

-- Makes a scheduled job ready.
local function run_now(job)
  if job.state ~= STATE_SCHEDULED then return OUTCOME_WRONG_STATE, job.state end
  touch_act(job.id, job.head, job.head.lane)
  put_last(job, job.head.lane)
  call('ZREM', base .. KEY_SCHEDULED, job.id)
  return OUTCOME_DONE, STATE_READY
end

-- Ends a job that waits. `flags` are those of its record.
local function end_waiting(job, meta, memory, keep)
  local id = job.id
  call('HSET', begin(memory), id, STATE_CANCELLED)
  -- Somewhere in its lane: a fetch skips the entry.
  if job.state == STATE_READY then add_tombstone(id, job.head.lane) end
  keep()
  call('ZREM', base .. KEY_SCHEDULED, id)
  call('ZREM', base .. KEY_START_BY, id)
  notify_waiters(meta[3], { id })
end

local function read_meta()
  return call('HMGET', base .. KEY_META, META_GENERATION, META_GENERATION_START, META_WAITED_UNTIL)
end

-- Deletes a job and all that is kept of it. Of a job that waited its id is remembered, as if it had been cancelled.
local function delete(job, params)
  local id = job.id
  if job.state == STATE_LEASED then return OUTCOME_WRONG_STATE, job.state end
  local meta = read_meta()
  local memory = generation(meta[1], meta[2], params.window_ms)
  touch_act(id, job.head, job.head.lane)

  drop_unique(id)
  if job.is_final then
    call('ZREM', base .. KEY_START_BY, id)
    forget_settled(id)
  else
    end_waiting(job, meta, memory, function() forget_settled(id) end)
  end
  return OUTCOME_DONE, job.state
end

-- Gives a job another priority. A ready one goes to the tail of its new lane.
local function reprioritize(job, params)
  local id, head, state = job.id, job.head, job.state
  if state == STATE_LEASED or job.is_final and state ~= STATE_DEAD then return OUTCOME_WRONG_STATE, state end
  local lane = lane_with(head, params.priority)
  if lane == head.lane then return OUTCOME_DONE, state end
  touch_act(id, head, lane)

  write_priority(id, lane)
  if state == STATE_READY then
    put_last(job, lane)
    add_tombstone(id, head.lane)
  end
  return OUTCOME_DONE, state
end

-- Writes a new record of a job. It must have been made from the one that the job has: `etag` is the time of creation
-- (6 bytes), the priority as a digit and the number of edits of that. A ready job goes to the tail of its lane, unless
-- its entry stays as it is.
local function rewrite(job, params, may_be_dead)
  local id, head, state = job.id, job.head, job.state
  if state == STATE_LEASED or job.is_final and not (may_be_dead and state == STATE_DEAD) then
    return OUTCOME_WRONG_STATE, state
  end
  local had_state = call('EXISTS', base .. KEY_STATE .. id) == 1
  local edits = tonumber((try('HGET', base .. KEY_STATE .. id, FIELD_EDITS))) or 0
  local created_at = #head.lane + 2
  local created = call('GETRANGE', base .. KEY_RECORD .. id, created_at, created_at + 5)
  if params.etag ~= created .. sub(head.lane, 1, 1) .. edits then return OUTCOME_STALE_ETAG, state end
  local new = head_of(params.record)
  if not new then return OUTCOME_UNREADABLE, state end
  touch_act(id, head, new.lane)

  call('SET', base .. KEY_RECORD .. id, params.record)
  write_state(id, FIELD_EDITS, edits + 1)
  local flags, new_flags = entry_flags(head.flags), entry_flags(new.flags)
  local is_entry_right = had_state and new.lane == head.lane and (new_flags == flags or new_flags + FLAG_LARGE == flags)
  if state == STATE_READY and not is_entry_right then
    put_last({ id = id, head = new }, new.lane)
    add_tombstone(id, head.lane)
  end
  return OUTCOME_DONE, state
end
