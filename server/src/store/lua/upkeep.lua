-- One round of what nobody asks for: due jobs, dead leases, late starts, old records, lost entries. Bounded; run again while `more` is 1.
-- KEYS  meta, lane index, scheduled, leases, lease deadlines, start_by, dead, settled, tombstones, lane tombstone counts
-- ARGV  items at most, dedupe window ms, dedupe ids at most, failure retention ms, max attempts, max losses, initial backoff ms, longest backoff ms,
--       multiplier in thousandths, jitter in thousandths, attempt timeout ms, dead retention ms, dead at most, settled at most,
--       cursor of the repair sweep, random number in [0, 1)
-- RETURNS {now ms, more 0/1, next ms or -1, promoted, timed out, lost, dead, expired, cancelled, pruned, repaired, next cursor, {quarantined id...}, something in it 0/1}
-- MOVES  SCHEDULED → READY, LEASED → READY, LEASED → SCHEDULED, LEASED → DEAD, LEASED → CANCELLED, READY → EXPIRED, SCHEDULED → EXPIRED
local limit = tonumber(ARGV[1])
local window_ms, max_ids, failure_retention = tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local default_attempts, default_losses = tonumber(ARGV[5]), tonumber(ARGV[6])
local defaults = { initial_ms = tonumber(ARGV[7]), max_ms = tonumber(ARGV[8]), multiplier = tonumber(ARGV[9]), jitter = tonumber(ARGV[10]) }
local default_timeout, dead_retention, dead_max, settled_max = tonumber(ARGV[11]), tonumber(ARGV[12]), tonumber(ARGV[13]), tonumber(ARGV[14])
local random = tonumber(ARGV[16])
local meta = call('HMGET', KEYS[1], 'dg', 'ds', 'w')
touch(base .. 'd' .. (meta[1] or 0), unpack(KEYS))
local quarantined = {}
local more = 0

-- Due jobs.
local promoted, orphans = promote(limit)
if promoted + #orphans >= limit then more = 1 end
for _, id in ipairs(orphans) do
  quarantine(id, 'scheduled without a readable record')
  quarantined[#quarantined + 1] = id
end

-- Dead leases: the attempt took too long, a cancel was not answered, or the holder is gone.
local timed_out, lost, dead, cancelled = 0, 0, 0, 0
local over = call('ZRANGEBYSCORE', KEYS[5], '-inf', now, 'LIMIT', 0, limit)
if #over >= limit then more = 1 end
if #over > 0 then
  local values = call('HMGET', KEYS[4], unpack(over))
  local front, settled, plans, memory = {}, {}, {}, {}
  local function settle(id, state)
    settled[#settled + 1] = id
    memory[#memory + 1] = id
    memory[#memory + 1] = state
  end
  for k, id in ipairs(over) do
    local head = read_head(id)
    local state = call('HMGET', base .. 's' .. id, 'a', 'l', 'cr', 'st')
    if head then touch(base .. 'r:' .. head.lane, base .. 'qr:' .. head.lane) end
    plans[k] = { id = id, head = head, state = state, value = values[k] }
  end
  local memories = generation(meta[1], meta[2], window_ms)
  touch_ends(over)
  for _, plan in ipairs(plans) do
    local id, head, state, value = plan.id, plan.head, plan.state, plan.value
    if not head then
      if value then
        quarantine(id, 'leased without a readable record')
        quarantined[#quarantined + 1] = id
      end
    elseif not state[4] then
      local leased_ms = value and unpack_ms(value, 17) or now
      local flags = value and byte(value, 23) or entry_flags(head.flags)
      if not has(flags, FLAG_STATE) and call('EXISTS', base .. 's' .. id) == 1 then flags = flags + FLAG_STATE end
      if state[3] then
        cancelled = cancelled + 1
        release_unique(id, flags)
        keep_settled(id, STATE_CANCELLED, now + retention(head, failure_retention), {})
        settle(id, STATE_CANCELLED)
      elseif value and now >= leased_ms + attempt_timeout(head, default_timeout) then
        timed_out = timed_out + 1
        local attempts = tonumber(state[1] or 0) + 1
        local fields = { 'a', attempts, 'ft', 'Timeout', 'fm', 'context deadline exceeded: the attempt took longer than its timeout', 'fs', '', 'fa', now }
        if attempts >= (head.max_attempts and head.max_attempts > 0 and head.max_attempts or default_attempts) then
          dead = dead + 1
          release_unique(id, flags)
          keep_settled(id, STATE_DEAD, 0, fields)
          settle(id, STATE_DEAD)
        else
          call('HSET', base .. 's' .. id, unpack(fields))
          call('ZADD', KEYS[3], now + backoff_ms(head, attempts, defaults, random), id)
        end
      else
        lost = lost + 1
        local losses = tonumber(state[2] or 0) + 1
        if losses >= (head.max_losses and head.max_losses > 0 and head.max_losses or default_losses) then
          dead = dead + 1
          release_unique(id, flags)
          keep_settled(id, STATE_DEAD, 0, { 'l', losses, 'ft', 'LeaseLost', 'fm', 'the workers that held this job were lost ' .. losses .. ' times', 'fs', '', 'fa', now })
          settle(id, STATE_DEAD)
        else
          call('HSET', base .. 's' .. id, 'l', losses)
          if not has(flags, FLAG_STATE) then flags = flags + FLAG_STATE end
          front[#front + 1] = { id, flags, head.lane, now }
        end
      end
    end
  end
  if #memory > 0 then call('HSET', begin(memories), unpack(memory)) end
  make_ready(front, true)
  call('ZREM', KEYS[5], unpack(over))
  call('HDEL', KEYS[4], unpack(over))
  tell_waiters(meta[3], settled)
end

-- Late starts.
local late = call('ZRANGEBYSCORE', KEYS[6], '-inf', now, 'LIMIT', 0, limit)
if #late >= limit then more = 1 end
local expired, held, over_late = {}, {}, {}
for _, id in ipairs(late) do
  local head, newer = read_head(id)
  local state = try('HGET', base .. 's' .. id, 'st')
  if newer or head and not state and call('HEXISTS', KEYS[4], id) == 1 then
    -- A worker holds it. The half says that the moment has passed: if the job comes back unstarted, it expires.
    held[#held + 1] = string.format('%d.5', max(now + 1000, tonumber(call('ZSCORE', KEYS[5], id) or 0)))
    held[#held + 1] = id
  else
    over_late[#over_late + 1] = id
    if head and not state then expired[#expired + 1] = { id, head, call('ZSCORE', KEYS[3], id) } end
  end
end
if #late > 0 then
  local memories, memory, ids = generation(meta[1], meta[2], window_ms), {}, {}
  touch_ends({})
  for k, item in ipairs(expired) do
    local id, head, scheduled = item[1], item[2], item[3]
    ids[k], memory[2 * k - 1], memory[2 * k] = id, id, STATE_EXPIRED
    release_unique(id, head.flags)
    if not scheduled then
      call('HINCRBY', KEYS[9], id .. head.lane, 1)
      call('HINCRBY', KEYS[10], head.lane, 1)
    end
    keep_settled(id, STATE_EXPIRED, now + retention(head, failure_retention), {})
    call('ZREM', KEYS[3], id)
  end
  if #ids > 0 then call('HSET', begin(memories), unpack(memory)) end
  if #over_late > 0 then call('ZREM', KEYS[6], unpack(over_late)) end
  if #held > 0 then call('ZADD', KEYS[6], unpack(held)) end
  tell_waiters(meta[3], ids)
end

-- Old records: by age, then by count, oldest first.
local function prune(key, age_limit, most)
  local old = call('ZRANGEBYSCORE', key, '-inf', age_limit, 'LIMIT', 0, limit)
  if #old < limit then
    local excess = min(limit - #old, call('ZCARD', key) - #old - most)
    if excess > 0 then
      for _, id in ipairs(call('ZRANGE', key, #old, #old + excess - 1)) do old[#old + 1] = id end
    end
  end
  if #old > 0 then
    touch_ends(old)
    for _, id in ipairs(old) do call('UNLINK', base .. 'j' .. id, base .. 's' .. id) end
    call('ZREM', key, unpack(old))
  end
  if #old >= limit then more = 1 end
  return #old
end
local pruned = prune(KEYS[7], now - dead_retention, dead_max) + prune(KEYS[8], now, settled_max)

-- The memory of settled ids.
if meta[1] then
  local gen, start = tonumber(meta[1]), tonumber(meta[2])
  local too_old = now - start >= window_ms and call('EXISTS', base .. 'd' .. gen, base .. 'd' .. (gen - 1)) > 0
  local held = call('HLEN', base .. 'd' .. gen)
  if too_old or held > 0 and held >= max_ids then begin(next_generation(gen, start, window_ms)) end
end

-- Leases without a deadline, and deadlines without a lease: a lost key, a hand that slipped. Both are brought to an end by the next round.
local repaired = 0
local scan = call('HSCAN', KEYS[4], ARGV[15], 'COUNT', 20)
local entries = scan[2]
for k = 1, #entries, 2 do
  if not call('ZSCORE', KEYS[5], entries[k]) then
    repaired = repaired + 1
    call('ZADD', KEYS[5], now, entries[k])
    more = 1
  end
end

-- When there will be something to do.
local next_ms = -1
local function sooner(key, add)
  local first = call('ZRANGE', key, 0, 0, 'WITHSCORES')[2]
  if first and first ~= 'inf' then
    local ms = tonumber(first) + add
    if next_ms < 0 or ms < next_ms then next_ms = ms end
  end
end
sooner(KEYS[3], 0)
sooner(KEYS[5], 0)
sooner(KEYS[6], 0)
sooner(KEYS[7], dead_retention)
sooner(KEYS[8], 0)
local busy = (call('EXISTS', KEYS[2], KEYS[3], KEYS[4]) > 0) and 1 or 0
return { now, more, next_ms, promoted, timed_out, lost, dead, #expired, cancelled, pruned, repaired, scan[1], quarantined, busy }
