-- One round of what nobody asks for: due jobs, dead leases, late starts, dead heads of lanes, old records, lost entries. Bounded; run again while `more` is 1.
-- KEYS  meta, lane index, scheduled, leases, lease deadlines, start_by, dead, settled, tombstones, lane tombstone counts
-- ARGV  items at most, dedupe window ms, dedupe ids at most, failure retention ms, max attempts, max losses, initial backoff ms, longest backoff ms,
--       multiplier in thousandths, jitter in thousandths, attempt timeout ms, dead retention ms, dead at most, settled at most,
--       cursor of the repair sweep, random number in [0, 1), max unconfirmed, '1' if the queue may be forgotten
-- RETURNS {now ms, more 0/1, next ms or -1, promoted, timed out, lost, dead, expired, cancelled, pruned, repaired, next cursor, {quarantined id...}, something in it 0/1, unconfirmed,
--         forgotten 0/1, ms from which the queue may be forgotten or -1, priorities of the attempts that timed out, as digits}
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
local timed_out, lost, unconfirmed, dead, cancelled, timed_priorities = 0, 0, 0, 0, 0, ''
local max_unconfirmed = tonumber(ARGV[17])
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
  local function die(id, flags, fields)
    dead = dead + 1
    release_unique(id, flags)
    keep_settled(id, STATE_DEAD, 0, fields)
    settle(id, STATE_DEAD)
  end
  -- To the head of its lane, with this many of what is counted.
  local function come_back(id, flags, lane, field, count)
    write_state(id, field, count)
    if not has(flags, FLAG_STATE) then flags = flags + FLAG_STATE end
    front[#front + 1] = { id, flags, lane, now }
  end
  local postponed, ended = {}, {}
  for k, id in ipairs(over) do
    local head, newer = read_head(id)
    local state, foreign = try('HMGET', base .. 's' .. id, 'a', 'l', 'cr', 'st', 'un', 'rl')
    if head then touch(base .. 'r:' .. head.lane, base .. 'qr:' .. head.lane) end
    if newer then
      -- A newer broker knows what to do; until one looks, others are not held up.
      postponed[#postponed + 1], postponed[#postponed + 2] = now + 10000, id
    else
      ended[#ended + 1] = id
      plans[#plans + 1] = { id = id, head = head, state = state or {}, foreign = foreign, value = values[k] }
    end
  end
  local memories = generation(meta[1], meta[2], window_ms)
  touch_ends(over)
  for _, plan in ipairs(plans) do
    local id, head, state, value = plan.id, plan.head, plan.state, plan.value
    -- A lease that is cut says nothing of whose it is: it ends as one that was lost.
    if head and value and #value < LEASE_BYTES then value = false end
    if not head then
      if value then
        quarantine(id, 'leased without a readable record')
        quarantined[#quarantined + 1] = id
      end
    elseif not state[4] then
      if plan.foreign and call('EXISTS', base .. 's' .. id) == 1 then call('RENAME', base .. 's' .. id, base .. 'qs' .. id) end
      local leased_ms = value and unpack_ms(value, 17) or now
      local flags = value and byte(value, 23) or entry_flags(head.flags)
      if not has(flags, FLAG_STATE) and call('EXISTS', base .. 's' .. id) == 1 then flags = flags + FLAG_STATE end
      local timed = value and now >= leased_ms + attempt_timeout(head, default_timeout)
      -- A Lease call is answered by nothing before its end: its attempt counts when it takes too long.
      local counts = not value or sub(value, 32, 32) == '1' or timed and sub(value, 24, 31) == NOBODY
      if (counts or state[3]) and has(flags, FLAG_START_BY) then call('ZREM', KEYS[6], id) end
      if state[3] then
        cancelled = cancelled + 1
        release_unique(id, flags)
        keep_settled(id, STATE_CANCELLED, now + retention(head, failure_retention), {})
        settle(id, STATE_CANCELLED)
      elseif not counts then
        -- Nobody said that it had arrived: neither an attempt nor a loss.
        unconfirmed = unconfirmed + 1
        local times = (tonumber(state[5]) or 0) + 1
        if times >= max_unconfirmed then
          call('ZREM', KEYS[6], id)
          die(id, flags, { 'un', times, 'ft', 'Unconfirmed', 'fm', times .. UNCONFIRMED_TEXT, 'fs', '', 'fa', now })
        else
          come_back(id, flags, head.lane, 'un', times)
        end
      elseif timed then
        timed_out = timed_out + 1
        timed_priorities = timed_priorities .. sub(head.lane, 1, 1)
        local attempts = (tonumber(state[1]) or 0) + 1
        local fields = { 'a', attempts, 'ft', 'Timeout', 'fm', 'context deadline exceeded: the attempt took longer than its attempt_timeout of '
          .. attempt_timeout(head, default_timeout) / 1000 .. ' s', 'fs', '', 'fa', now }
        if state[6] then fields[#fields + 1], fields[#fields + 2] = 'rl', 0 end
        local most = head.max_attempts and head.max_attempts > 0 and head.max_attempts or default_attempts
        if attempts >= most or is_hopeless(id, head, 'Timeout') then
          die(id, flags, fields)
        else
          write_state(id, unpack(fields))
          call('ZADD', KEYS[3], now + backoff_ms(head, attempts, defaults, random), id)
        end
      else
        lost = lost + 1
        local losses = (tonumber(state[2]) or 0) + 1
        if losses >= (head.max_losses and head.max_losses > 0 and head.max_losses or default_losses) then
          die(id, flags, { 'l', losses, 'ft', 'LeaseLost', 'fm', 'the workers that held this job were lost ' .. losses .. ' times', 'fs', '', 'fa', now })
        else
          come_back(id, flags, head.lane, 'l', losses)
        end
      end
    end
  end
  if #memory > 0 then call('HSET', begin(memories), unpack(memory)) end
  -- Each goes to the head.
  local last_first = {}
  for k = #front, 1, -1 do last_first[#last_first + 1] = front[k] end
  make_ready(last_first, true)
  if #postponed > 0 then call('ZADD', KEYS[5], unpack(postponed)) end
  if #ended > 0 then
    call('ZREM', KEYS[5], unpack(ended))
    call('HDEL', KEYS[4], unpack(ended))
  end
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
      add(KEYS[9], id .. head.lane, 1)
      add(KEYS[10], head.lane, 1)
    end
    keep_settled(id, STATE_EXPIRED, now + retention(head, failure_retention), {})
    call('ZREM', KEYS[3], id)
  end
  if #ids > 0 then call('HSET', begin(memories), unpack(memory)) end
  if #over_late > 0 then call('ZREM', KEYS[6], unpack(over_late)) end
  if #held > 0 then call('ZADD', KEYS[6], unpack(held)) end
  tell_waiters(meta[3], ids)
end

-- Entries at the head of a lane whose jobs have ended: where no worker comes, nobody skips them.
if call('EXISTS', KEYS[9]) == 1 then
  local lanes = call('ZRANGE', KEYS[2], '0', LANES_PER_LOOK)
  local buried = #lanes > 0 and call('HMGET', KEYS[10], unpack(lanes)) or {}
  local trims, left = {}, limit
  for k, lane in ipairs(lanes) do
    if buried[k] and left > 0 then
      local key, graves = base .. 'r:' .. lane, {}
      local entries = try('LRANGE', key, '0', left) or {}
      for n = 1, min(left, #entries) do graves[n] = sub(entries[n], 8) .. lane end
      local counts = #graves > 0 and call('HMGET', KEYS[9], unpack(graves)) or {}
      local left_of, dead_heads = {}, 0
      for n, grave in ipairs(graves) do
        local count = left_of[grave] or (tonumber(counts[n]) or 0)
        if count <= 0 then break end
        left_of[grave], dead_heads = count - 1, n
      end
      if dead_heads > 0 then
        trims[#trims + 1] = { lane = lane, key = key, count = dead_heads, left_of = left_of, following = entries[dead_heads + 1] }
        left = left - dead_heads
      end
    end
  end
  if left == 0 then more = 1 end
  touch(KEYS[2], KEYS[9], KEYS[10])
  for _, trim in ipairs(trims) do
    call('LTRIM', trim.key, trim.count, '-1')
    local gone = {}
    for grave, count in pairs(trim.left_of) do
      if count > 0 then call('HSET', KEYS[9], grave, count) else gone[#gone + 1] = grave end
    end
    if #gone > 0 then call('HDEL', KEYS[9], unpack(gone)) end
    if add(KEYS[10], trim.lane, -trim.count) <= 0 then call('HDEL', KEYS[10], trim.lane) end
    if not trim.following then
      call('ZREM', KEYS[2], trim.lane)
    elseif #trim.following == 23 then
      call('ZADD', KEYS[2], lane_score(trim.lane, unpack_ms(trim.following, 2)), trim.lane)
    end
  end
end

-- Those who have waited long enough for the end of a job.
local waited = call('ZRANGEBYSCORE', base .. 'wt', '-inf', now, 'LIMIT', 0, limit)
if #waited >= limit then more = 1 end
if #waited > 0 then call('ZREM', base .. 'wt', unpack(waited)) end

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
  local gen, start = tonumber(meta[1]) or 0, tonumber(meta[2]) or 0
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
-- What is only tidied up may wait for others.
local TIDY_MS = 5000
sooner(KEYS[3], 0)
sooner(KEYS[5], 0)
sooner(KEYS[6], 0)
sooner(KEYS[7], dead_retention + TIDY_MS)
sooner(KEYS[8], TIDY_MS)
sooner(base .. 'wt', TIDY_MS)
local busy = (call('EXISTS', KEYS[2], KEYS[3], KEYS[4]) > 0) and 1 or 0

-- A queue in which nothing is left, not even the memory of settled ids, and of which nothing is said, goes without a trace.
local forgotten, forget_ms = 0, -1
if busy == 0 and next_ms < 0
  and call('EXISTS', KEYS[6], KEYS[7], KEYS[8], KEYS[9], KEYS[10], base .. 'u', base .. 'q', base .. 'nv', base .. 'wt') == 0 then
  local about = call('HMGET', KEYS[1], 'dg', 'ds', 'w')
  local fields = (about[1] and 1 or 0) + (about[2] and 1 or 0) + (about[3] and 1 or 0)
  local gen, start = tonumber(about[1]) or 0, tonumber(about[2]) or 0
  if call('HLEN', KEYS[1]) == fields then
    local remembers = call('EXISTS', base .. 'd' .. gen, base .. 'd' .. (gen - 1)) > 0
    forget_ms = remembers and start + 2 * window_ms or now
    if ARGV[18] == '1' and not remembers then
      touch(KEYS[5])
      call('UNLINK', KEYS[1], KEYS[5])
      forgotten = 1
    end
  end
end
return { now, more, next_ms, promoted, timed_out, lost, dead, #expired, cancelled, pruned, repaired, scan[1], quarantined, busy, unconfirmed, forgotten, forget_ms,
  timed_priorities }
