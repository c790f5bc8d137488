-- The steps of a repair: for repair.lua. Each is written so that none can fail.

-- Sets how many entries of a job in a lane are tombstoned; `field` is the id and the lane.
local function set_tombstones(field, lane, before, after)
  if after > 0 then
    call('HSET', base .. KEY_TOMBSTONES, field, after)
  else
    call('HDEL', base .. KEY_TOMBSTONES, field)
  end
  if add(base .. KEY_TOMBSTONE_COUNTS, lane, after - before) <= 0 then
    call('HDEL', base .. KEY_TOMBSTONE_COUNTS, lane)
  end
end

-- Puts a job that is nowhere to where its state hash says, or to `due_ms`, or to the tail of its lane.
local function place(id, head, final, due_ms, retention_ms)
  if final == STATE_DEAD then
    call('ZADD', base .. KEY_DEAD, now, id)
  elseif final ~= '' then
    call('ZADD', base .. KEY_SETTLED, now + retention(head, retention_ms), id)
  elseif due_ms ~= '' and tonumber(due_ms) > now then
    call('ZADD', base .. KEY_SCHEDULED, due_ms, id)
    notify(NOTIFY_DUE_EARLIER .. NOBODY .. due_ms)
  else
    local flags = entry_flags(head.flags)
    if call('EXISTS', base .. KEY_STATE .. id) == 1 and not has(flags, FLAG_STATE) then flags = flags + FLAG_STATE end
    make_ready({ { id = id, flags = flags, lane = head.lane, ms = now } }, false)
  end
end

-- Takes a job out of one of the sets or out of the leases.
local function leave(id, part)
  if part == KEY_LEASES then
    call('HDEL', base .. KEY_LEASES, id)
    call('ZREM', base .. KEY_DEADLINES, id)
  else
    call('ZREM', base .. part, id)
  end
end

-- Says in the lease of a job that it has a state hash.
local function mark_lease(id)
  local lease = call('HGET', base .. KEY_LEASES, id)
  local flags = byte(lease, LEASE_FLAGS_AT)
  if has(flags, FLAG_STATE) then return end
  local marked = sub(lease, 1, LEASE_TIME_END) .. char(flags + FLAG_STATE) .. sub(lease, LEASE_OWNER_AT)
  call('HSET', base .. KEY_LEASES, id, marked)
end

-- Renames a key of a job to what it is called in quarantine.
local function set_aside(id, part, quarantined_part)
  if call('EXISTS', base .. part .. id) == 1 then call('RENAME', base .. part .. id, base .. quarantined_part .. id) end
end

-- Takes one step.
local function repair_job(id, step, retention_ms)
  local kind, a = step.kind, step.a
  if kind == REPAIR_PLACE then
    place(id, step.head, a, step.b, retention_ms)
  elseif kind == REPAIR_LEAVE then
    leave(id, a)
  elseif kind == REPAIR_TOMBSTONES then
    set_tombstones(id .. a, a, tonumber(step.b), tonumber(step.c))
  elseif kind == REPAIR_QUARANTINE then
    quarantine(id, a)
  elseif kind == REPAIR_LIST_QUARANTINED then
    call('HSET', base .. KEY_QUARANTINE, id, a)
  elseif kind == REPAIR_UNLIST_QUARANTINED then
    call('HDEL', base .. KEY_QUARANTINE, id)
  elseif kind == REPAIR_DEADLINE then
    call('ZADD', base .. KEY_DEADLINES, now, id)
  elseif kind == REPAIR_MARK_LEASE then
    mark_lease(id)
  elseif kind == REPAIR_FINAL then
    if a == '' then
      call('HDEL', base .. KEY_STATE .. id, FIELD_FINAL_STATE, FIELD_FINAL_AT)
    else
      write_state(id, FIELD_FINAL_STATE, a, FIELD_FINAL_AT, now)
    end
  elseif kind == REPAIR_FORGET_STATE then
    call('UNLINK', base .. KEY_STATE .. id, base .. KEY_LOG .. id)
  elseif kind == REPAIR_FORGET_LOG then
    call('UNLINK', base .. KEY_LOG .. id)
  elseif kind == REPAIR_SET_STATE_ASIDE then
    set_aside(id, KEY_STATE, KEY_QUARANTINED_STATE)
  elseif kind == REPAIR_TAKE_UNIQUE_KEY then
    call('HSET', base .. KEY_UNIQUE, a, id)
  elseif kind == REPAIR_DROP_UNIQUE_KEY then
    call('HDEL', base .. KEY_STATE .. id, FIELD_UNIQUE_KEY, FIELD_UNIQUE_SCOPE)
  else
    call('PERSIST', base .. KEY_RECORD .. id)
    call('PERSIST', base .. KEY_STATE .. id)
  end
end
