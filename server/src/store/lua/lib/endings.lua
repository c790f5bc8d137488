-- The end of a job, and jobs that cannot be read.

-- Names the keys that the end of a job may need beside those that its script names, before the first write: `ids` are
-- those of the jobs.
local function touch_ends(ids)
  local keys = {
    base .. KEY_UNIQUE, base .. KEY_WAITERS, base .. KEY_QUARANTINE, base .. KEY_DEAD, base .. KEY_SETTLED,
    base .. KEY_START_BY,
  }
  for k, id in ipairs(ids) do
    for n, part in ipairs({ KEY_RECORD, KEY_STATE, KEY_LOG, KEY_QUARANTINED_RECORD, KEY_QUARANTINED_STATE }) do
      keys[5 * k + 1 + n] = base .. part .. id
    end
  end
  touch(unpack(keys))
end

-- Deletes all that is stored of a job outside of its place. Only a job with a state hash may have a log.
local function delete_job(id)
  call('UNLINK', base .. KEY_RECORD .. id, base .. KEY_STATE .. id, base .. KEY_LOG .. id)
end

-- Keeps a job in a final state until `until_ms`, or forgets it if that is not in the future. The caller has removed it
-- from where it was, or does so next. `fields` are further fields of the state hash. `has_state`: whether the job has a
-- state hash, if the caller knows it.
local function keep_settled(id, state, until_ms, fields, has_state)
  if state == STATE_DEAD then
    write_state(id, FIELD_FINAL_STATE, state, FIELD_FINAL_AT, now, unpack(fields))
    call('ZADD', base .. KEY_DEAD, now, id)
  elseif until_ms > now then
    write_state(id, FIELD_FINAL_STATE, state, FIELD_FINAL_AT, now, unpack(fields))
    call('ZADD', base .. KEY_SETTLED, until_ms, id)
  elseif has_state then
    delete_job(id)
  elseif call('UNLINK', base .. KEY_RECORD .. id, base .. KEY_STATE .. id) > 1 then
    call('UNLINK', base .. KEY_LOG .. id)
  end
end

-- Forgets a settled job that was retained.
local function forget_settled(id)
  call('ZREM', base .. KEY_DEAD, id)
  call('ZREM', base .. KEY_SETTLED, id)
  delete_job(id)
end

-- Counts an entry that stays in its lane although its job has ended: a fetch skips it.
local function add_tombstone(id, lane)
  add(base .. KEY_TOMBSTONES, id .. lane, 1)
  add(base .. KEY_TOMBSTONE_COUNTS, lane, 1)
end

-- Sets a job aside whose record cannot be read: record and state are renamed, so nothing is copied and nothing is lost.
-- Frees what the job held. A job that has no record at all leaves only its id and the reason.
local function quarantine(id, why)
  local key = try('HGET', base .. KEY_STATE .. id, FIELD_UNIQUE_KEY)
  if key and call('HGET', base .. KEY_UNIQUE, key) == id then call('HDEL', base .. KEY_UNIQUE, key) end
  call('ZREM', base .. KEY_START_BY, id)
  call('HSET', base .. KEY_QUARANTINE, id, why)
  if call('EXISTS', base .. KEY_RECORD .. id) == 1 then
    call('RENAME', base .. KEY_RECORD .. id, base .. KEY_QUARANTINED_RECORD .. id)
  end
  if call('EXISTS', base .. KEY_STATE .. id) == 1 then
    call('RENAME', base .. KEY_STATE .. id, base .. KEY_QUARANTINED_STATE .. id)
    call('UNLINK', base .. KEY_LOG .. id)
  end
end
