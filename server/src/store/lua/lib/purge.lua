-- Deleting a queue: everything in it, a bounded part at a time, leases and quarantine included.

-- Jobs of a lane from its head on; entries that are tombstoned name no job of this lane.
local function lane_part(lane, limit)
  local part, fields = { lane = lane, ids = {}, left_of = {}, tombstones = 0 }, {}
  local entries = try('LRANGE', base .. KEY_LANE .. lane, '0', limit - 1) or {}
  part.entries = #entries
  for n, entry in ipairs(entries) do fields[n] = sub(entry, ENTRY_ID_AT) .. lane end
  local counts = #entries > 0 and call('HMGET', base .. KEY_TOMBSTONES, unpack(fields)) or {}
  for n, entry in ipairs(entries) do
    local left = counts[n] and (part.left_of[fields[n]] or tonumber(counts[n])) or 0
    if left > 0 then
      part.left_of[fields[n]], part.tombstones = left - 1, part.tombstones + 1
    else
      part.ids[#part.ids + 1] = sub(entry, ENTRY_ID_AT)
    end
  end
  return part
end

-- The next jobs to delete: {ids, from: the set or hash that they are in, or a lane}. nil: none is left.
local function next_part(limit)
  for _, key in ipairs({ KEY_DEAD, KEY_SETTLED, KEY_SCHEDULED }) do
    local ids = call('ZRANGE', base .. key, '0', limit - 1)
    if #ids > 0 then return { ids = ids, set = key } end
  end
  local ids = call('HRANDFIELD', base .. KEY_LEASES, limit)
  if #ids > 0 then return { ids = ids, hash = KEY_LEASES } end
  local lane = call('ZRANGE', base .. KEY_LANES, '0', '0')[1]
  if lane then return lane_part(lane, limit) end
  for n, entry in ipairs(call('LRANGE', base .. KEY_NEWER, '0', limit - 1)) do
    ids[n] = sub(entry, ENTRY_ID_AT)
  end
  if #ids > 0 then return { ids = ids, list = KEY_NEWER } end
  ids = call('HRANDFIELD', base .. KEY_QUARANTINE, limit)
  if #ids > 0 then return { ids = ids, hash = KEY_QUARANTINE } end
  return nil
end

-- Every key that the part may write.
local function touch_part(part)
  touch_ends(part.ids)
  touch(base .. KEY_UNIQUE_WINDOWS, base .. KEY_DEADLINES, base .. KEY_LANES)
  touch(base .. KEY_TOMBSTONES, base .. KEY_TOMBSTONE_COUNTS)
  touch(base .. (part.set or part.hash or part.list or KEY_LANE .. part.lane), base .. KEY_SCHEDULED)
  if part.lane then touch(base .. KEY_QUARANTINED_LANE .. part.lane) end
end

-- Trims a lane behind its jobs, with the tombstones of the entries that go.
local function trim_part(part)
  local key, counts, gone = base .. KEY_LANE .. part.lane, base .. KEY_TOMBSTONE_COUNTS, {}
  for field, left in pairs(part.left_of) do
    if left > 0 then call('HSET', base .. KEY_TOMBSTONES, field, left) else gone[#gone + 1] = field end
  end
  if #gone > 0 then call('HDEL', base .. KEY_TOMBSTONES, unpack(gone)) end
  if part.tombstones > 0 and add(counts, part.lane, -part.tombstones) <= 0 then call('HDEL', counts, part.lane) end
  local first, foreign = try('LINDEX', key, part.entries)
  if foreign or not first then
    call('UNLINK', key, base .. KEY_QUARANTINED_LANE .. part.lane)
    call('ZREM', base .. KEY_LANES, part.lane)
  else
    call('LTRIM', key, part.entries, '-1')
    if #first == ENTRY_BYTES then
      call('ZADD', base .. KEY_LANES, lane_score(part.lane, unpack_ms(first, ENTRY_TIME_AT)), part.lane)
    end
  end
end

-- Deletes the jobs of a part: their records, what they hold, their places.
local function purge_part(part, waited_until)
  local keys, has_unique_keys = {}, call('EXISTS', base .. KEY_UNIQUE) == 1
  local names = { KEY_RECORD, KEY_STATE, KEY_LOG, KEY_QUARANTINED_RECORD, KEY_QUARANTINED_STATE }
  for _, id in ipairs(part.ids) do
    if has_unique_keys then drop_unique(id) end
    for _, name in ipairs(names) do
      keys[#keys + 1] = base .. name .. id
    end
  end
  if #keys > 0 then
    call('UNLINK', unpack(keys))
    call('ZREM', base .. KEY_START_BY, unpack(part.ids))
  end
  if part.set then call('ZREM', base .. part.set, unpack(part.ids)) end
  if part.hash then call('HDEL', base .. part.hash, unpack(part.ids)) end
  if part.hash == KEY_LEASES then call('ZREM', base .. KEY_DEADLINES, unpack(part.ids)) end
  if part.list then call('LTRIM', base .. part.list, #part.ids, '-1') end
  if part.lane then trim_part(part) end
  notify_waiters(waited_until, part.ids)
end

-- Deletes what is left of a queue without jobs, its operations too.
local function purge_rest(generation)
  local gen, keys = tonumber(generation) or 0, {}
  for _, id in ipairs(call('ZRANGE', base .. KEY_OPERATIONS, '0', OPERATIONS_KEPT)) do
    keys[#keys + 1] = base .. KEY_OPERATION .. id
  end
  for _, name in ipairs({
    KEY_META, KEY_POLICY, KEY_OPERATIONS, KEY_LANES, KEY_DEADLINES, KEY_START_BY, KEY_TOMBSTONES, KEY_TOMBSTONE_COUNTS,
    KEY_UNIQUE, KEY_UNIQUE_WINDOWS, KEY_QUARANTINE, KEY_WAITERS, KEY_MEMORY .. gen, KEY_MEMORY .. (gen - 1),
  }) do
    keys[#keys + 1] = base .. name
  end
  touch(unpack(keys))
  call('UNLINK', unpack(keys))
end
