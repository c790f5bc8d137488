-- Acts on jobs that have ended.

-- The memory of an end that is taken back: the generation that has it, and what it says from now on. As with a nack,
-- after which the job goes on, a repetition of the call that settled it is still known.
local function memory_taken_back(meta_gen, id, state)
  local gen = tonumber(meta_gen)
  if not gen then return nil end
  for number = gen, gen - 1, -1 do
    local key = base .. KEY_MEMORY .. number
    touch(key)
    local memory = call('HGET', key, id)
    if memory then return { key = key, value = state .. sub(memory, 2) } end
  end
end

-- Puts a job that did not succeed back into its queue, as if it had never run: at the tail of its lane, or scheduled.
-- Its last failure stays, and what its last attempt has reported.
local function redrive(job, params)
  local id = job.id
  if not job.is_final or job.state == STATE_SUCCEEDED then return OUTCOME_WRONG_STATE, job.state end
  local holder = unique_taken_from(id)
  if holder then return OUTCOME_UNIQUE_TAKEN, job.state, holder end
  local lane, delay_ms = lane_with(job.head, params.priority), tonumber(params.delay_ms)
  local state = delay_ms > 0 and STATE_SCHEDULED or STATE_READY
  local memory = memory_taken_back(call('HGET', base .. KEY_META, META_GENERATION), id, state)
  touch_act(id, job.head, lane)

  local state_key = base .. KEY_STATE .. id
  if lane ~= job.head.lane then write_priority(id, lane) end
  add(state_key, FIELD_REDRIVES, 1)
  call(
    'HDEL', state_key, FIELD_FINAL_STATE, FIELD_FINAL_AT, FIELD_ATTEMPTS, FIELD_LOSSES, FIELD_UNCONFIRMED,
    FIELD_RELEASES, FIELD_RESULT_TYPE, FIELD_RESULT_DATA, FIELD_CANCEL_REASON, FIELD_CANCEL_DEADLINE
  )
  retake_unique(id)
  if memory then call('HSET', memory.key, id, memory.value) end
  call('ZREM', base .. KEY_START_BY, id)
  if delay_ms > 0 then
    schedule(base .. KEY_SCHEDULED, earliest_due(base .. KEY_SCHEDULED), NOBODY, id, now + delay_ms)
  else
    put_last(job, lane)
  end
  call('ZREM', job.state == STATE_DEAD and base .. KEY_DEAD or base .. KEY_SETTLED, id)
  return OUTCOME_DONE, state
end
