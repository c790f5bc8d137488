-- Steps of a fetch that few jobs need, and the lanes that it leaves: for lease.lua.

-- Whether an entry is tombstoned. An id that was used again has a tombstoned entry in front of its living one: only as
-- many entries are tombstoned as there are tombstones (`count`). Counts in the plan of the lane.
local function is_tombstoned(plan, field, count)
  plan.tombstones_left = plan.tombstones_left or {}
  local left = plan.tombstones_left[field] or tonumber(count) or 0
  if left <= 0 then return false end
  plan.tombstoned, plan.tombstones_left[field] = (plan.tombstoned or 0) + 1, left - 1
  return true
end

-- The first demand that takes a job of this size, and its number. A suspect job is for a stream, or for a lease call
-- that has nothing else.
local function demand_for(demands, size, suspect)
  for number, demand in ipairs(demands) do
    local takes_any = demand.allow_oversized and demand.taken == 0
    local fits = size <= demand.bytes and not (suspect and sub(demand.lease_end, 1, LEASE_OWNER_BYTES) == NOBODY)
    if demand.taken < demand.jobs and (takes_any or fits) then return demand, number end
  end
  return nil
end

-- The first `done` entries and records without those that were skipped.
local function without_skipped(entries, records, skipped, done)
  local some_entries, some_records = {}, {}
  for k = 1, done do
    if not (skipped and skipped[k]) then
      some_entries[#some_entries + 1] = entries[k]
      some_records[#some_entries] = records[k]
    end
  end
  return some_entries, some_records
end

-- Names the keys that end_unleased() writes.
local function touch_unleased(expired, unreadable)
  local ids = {}
  for _, job in ipairs(expired) do ids[#ids + 1] = job.id end
  for _, job in ipairs(unreadable) do ids[#ids + 1] = job.id end
  touch_ends(ids)
end

-- Ends jobs that no worker gets: late ones, unreadable ones, and keys of another type where a state should be.
local function end_unleased(expired, unreadable, strays, failure_retention)
  if #expired > 0 then
    local meta = call('HMGET', base .. KEY_META, META_GENERATION, META_GENERATION_START, META_WAITED_UNTIL)
    local memory, ids = begin(generation(meta[1], meta[2], math.huge)), {}
    for k, job in ipairs(expired) do
      ids[k] = job.id
      call('HSET', memory, job.id, STATE_EXPIRED)
      release_unique(job.id, job.flags)
      keep_settled(job.id, STATE_EXPIRED, now + retention(read_head(job.id), failure_retention), {})
      call('ZREM', base .. KEY_START_BY, job.id)
    end
    notify_waiters(meta[3], ids)
  end
  for _, job in ipairs(unreadable) do quarantine(job.id, job.why) end
  for _, id in ipairs(strays) do
    -- Unless it went with its job.
    if call('EXISTS', base .. KEY_STATE .. id) == 1 then
      call('RENAME', base .. KEY_STATE .. id, base .. KEY_QUARANTINED_STATE .. id)
    end
  end
end

-- Writes down which tombstones of a lane were passed.
local function drop_tombstones(plan)
  local tombstones, counts = base .. KEY_TOMBSTONES, base .. KEY_TOMBSTONE_COUNTS
  for field, left in pairs(plan.tombstones_left) do
    if left > 0 then call('HSET', tombstones, field, left) else call('HDEL', tombstones, field) end
  end
  if add(counts, plan.lane, -plan.tombstoned) <= 0 then call('HDEL', counts, plan.lane) end
end
